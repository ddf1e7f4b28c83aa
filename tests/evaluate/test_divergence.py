from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy

import prunekit as pk
import prunekit.evaluate.perplexity as module
from prunekit.evaluate.divergence import Divergence
from prunekit.evaluate.intervals import mean_of


@pytest.fixture
def pair(golden_model):
    dense, pruned = golden_model("llama"), golden_model("llama")
    pk.prune(pruned, None, method="magnitude", sparsity=0.5, progress=False)
    return pruned, dense


def test_equals_scipys_relative_entropy(pair, golden_windows):
    pruned, dense = pair
    found = pk.divergence(pruned, dense, golden_windows, 64, progress=False)
    with torch.no_grad():
        q, p = (m(input_ids=golden_windows).logits[:, :-1].double().softmax(-1).numpy()
                for m in (pruned, dense))
    np.testing.assert_allclose(found.kl, entropy(p, q, axis=-1).mean(1), rtol=1e-4)
    np.testing.assert_allclose(found.changed, (p.argmax(-1) != q.argmax(-1)).mean(1))
    assert 0 < found.changed.mean() < 1
    row = found.row()
    assert row["kl_low"] < row["kl"] < row["kl_high"] and row["n"] == len(golden_windows)


def test_intervals_end_where_the_truth_must():
    """Few windows, one far off: the interval of the mean would reach below zero, that of a share above 1."""
    row = Divergence(np.array([0.1, 0.1, 0.1, 4.0]), np.array([0.9, 1.0, 1.0, 0.2])).row()
    assert row["kl_low"] == 0.0 and row["kl_high"] > row["kl"] > 0
    assert row["changed_high"] == 1.0 and 0 <= row["changed_low"] < row["changed"]


def test_intervals_know_that_neighbouring_windows_resemble_each_other():
    found = Divergence(*(0.5 + 0.2 * wave(np.arange(40) / 4) for wave in (np.sin, np.cos)))
    row = found.row()
    for name in ("kl", "changed"):
        interval = mean_of(getattr(found, name), running=True).interval()
        assert (row[f"{name}_low"], row[f"{name}_high"]) == interval


def test_a_model_does_not_differ_from_itself(golden_model, golden_windows):
    found = pk.divergence(golden_model("opt"), golden_model("opt"), golden_windows.flatten(), 64,
                          progress=False)
    assert np.abs(found.kl).max() < 1e-6 and not found.changed.any()
    row = found.row()
    assert row["kl_low"] <= row["kl"] <= row["kl_high"] and row["changed_low"] == row["changed_high"] == 0


def test_few_logits_at_a_time_give_the_same(pair, golden_windows, monkeypatch):
    whole = pk.divergence(*pair, golden_windows, 64, progress=False)
    monkeypatch.setattr(module, "LOGIT_BUDGET", 256 * 10)
    parts = pk.divergence(*pair, golden_windows, 64, progress=False)
    np.testing.assert_allclose(parts.kl, whole.kl, rtol=1e-5)
    assert np.array_equal(parts.changed, whole.changed)


def test_a_certain_model_against_a_uniform_one(golden_model, golden_windows):
    """KL(p || uniform) = ln(vocabulary) - entropy of p; a head of zeros is uniform."""
    dense, uniform = golden_model("llama"), golden_model("llama")
    uniform.lm_head.weight.data.zero_()
    found = pk.divergence(uniform, dense, golden_windows, 64, progress=False)
    with torch.no_grad():
        p = dense(input_ids=golden_windows).logits[:, :-1].double().softmax(-1).numpy()
    np.testing.assert_allclose(found.kl, math.log(256) - entropy(p, axis=-1).mean(1), rtol=1e-4)


def test_other_vocabularies_are_refused(golden_model, golden_windows):
    dense, other = golden_model("llama"), golden_model("llama")
    other.resize_token_embeddings(200)
    with pytest.raises(pk.UsageError, match="vocabularies of 200 and 256 tokens"):
        pk.divergence(other, dense, golden_windows, 64, progress=False)


def test_what_is_not_finite_is_refused_and_pieces_are_alike_on_two_devices(monkeypatch):
    model, tokenizer = pk.load_model("embedded/llama", dtype="float32")
    dense, _ = pk.load_model("embedded/llama", dtype="float32")
    ids = pk.token_windows("embedded", tokenizer, "test", 2, 32)
    sizes = iter((8192, 4096, 4096, 4096))  # as cards with more and less memory have it
    monkeypatch.setattr(module, "batch_tokens", lambda model: next(sizes))
    assert pk.divergence(model, dense, ids, 32, progress=False).kl.tolist() == pytest.approx([0, 0], abs=1e-6)
    torch.nn.init.constant_(model.get_output_embeddings().weight, math.inf)
    with pytest.raises(pk.UsageError, match="2 of 2 windows is not finite"):
        pk.divergence(model, dense, ids, 32, progress=False)
