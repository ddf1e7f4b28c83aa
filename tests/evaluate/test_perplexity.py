from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import prunekit as pk
import prunekit.evaluate.perplexity as module
from prunekit.evaluate.perplexity import Perplexity


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_equals_the_models_own_loss(family, golden_model, golden_windows):
    model = golden_model(family)
    found = pk.perplexity(model, golden_windows, 64, progress=False)
    with torch.no_grad():
        losses = [model(input_ids=w[None], labels=w[None]).loss.item() for w in golden_windows]
    np.testing.assert_allclose(found.nll, losses, rtol=1e-5)
    assert found.value == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)


def test_uniform_predictions_have_the_vocabulary_as_perplexity(golden_model, golden_windows):
    model = golden_model("llama")
    model.lm_head.weight.data.zero_()
    assert pk.perplexity(model, golden_windows, 64, progress=False).value == pytest.approx(256, rel=1e-5)


def test_text_is_cut_and_the_rest_dropped(golden_model, golden_windows):
    model, text = golden_model("llama"), golden_windows.flatten()
    assert np.array_equal(pk.perplexity(model, text[:64 * 5 + 63], 64, progress=False).nll,
                          pk.perplexity(model, golden_windows[:5], 64, progress=False).nll)


def test_few_logits_at_a_time_give_the_same(golden_model, golden_windows, monkeypatch):
    model = golden_model("llama")
    whole = pk.perplexity(model, golden_windows, 64, progress=False).nll
    monkeypatch.setattr(module, "LOGIT_BUDGET", 256 * 10)
    np.testing.assert_allclose(pk.perplexity(model, golden_windows, 64, progress=False).nll, whole, rtol=1e-6)


def test_heads_that_cap_their_logits_go_through_the_model():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    model = Gemma2ForCausalLM(Gemma2Config(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, final_logit_softcapping=0.1)).eval()
    windows = torch.randint(96, (3, 24))
    with torch.no_grad():
        expected = [model(input_ids=w[None], labels=w[None]).loss.item() for w in windows]
    np.testing.assert_allclose(pk.perplexity(model, windows, 24, progress=False).nll, expected, rtol=1e-5)


@pytest.mark.parametrize(("nll", "message"), [
    ([1.0, math.inf, 2.0], "the loss of 1 of 3 windows is not finite"), ([math.nan], "1 of 1"),
    ([], "shape (0,)"), ([[1.0, 2.0]], "shape (1, 2)")])
def test_losses_that_are_none_are_refused_wherever_they_come_from(nll, message):
    with pytest.raises(pk.UsageError) as refused:
        Perplexity(np.array(nll))
    assert message in str(refused.value)


def test_pairing_sees_what_the_intervals_hide():
    """A shift much smaller than the spread over windows is found in pairs; noise around zero is not."""
    generator = np.random.default_rng(0)
    nll = generator.normal(3.0, 0.5, size=200)

    base, shifted = Perplexity(nll), Perplexity(nll + generator.normal(0.02, 0.01, size=200))
    noisy = Perplexity(nll + generator.normal(0.0, 0.05, size=200))
    assert base.interval[1] > shifted.interval[0]
    found = pk.compare(shifted, base)
    assert found.verdict == "higher" and found.ratio == pytest.approx(math.exp(0.02), rel=0.002)
    assert str(found).startswith("higher (ratio 1.019, 95 % interval 1.0")
    assert str(pk.compare(noisy, base)).startswith("indistinguishable")


def test_what_is_refused(golden_model, golden_windows):
    model = golden_model("llama")
    cases = [(golden_windows[0], 65, "hold no window of 65"),
             (golden_windows + 256, 64, "not in the model's vocabulary of 256"),
             (golden_windows, 32, "tokens of shape (16, 64) hold no window of 32")]
    for tokens, seqlen, message in cases:
        with pytest.raises(pk.UsageError) as refused:
            pk.perplexity(model, tokens, seqlen, progress=False)
        assert message in str(refused.value)
    model.lm_head.weight.data[0, 0] = math.nan
    with pytest.raises(pk.UsageError, match="of 16 windows is not finite"):
        pk.perplexity(model, golden_windows, 64, progress=False)
