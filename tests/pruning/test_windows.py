"""Windows that a model cannot read are one sentence, whoever is given them, before anything is computed."""
from __future__ import annotations

import pytest
import torch

import prunekit as pk
from prunekit.models import positions
from tests.pruning.families import FAMILIES, FURTHER, VOCAB, windows

READERS = {
    "prune": lambda model, ids: pk.prune(model, ids, "wanda", 0.5, progress=False),
    "prune by magnitude": lambda model, ids: pk.prune(model, ids, "magnitude", 0.5, progress=False),
    "gradients": lambda model, ids: pk.collect_gradients(model, ids, progress=False),
    "regional gradients": lambda model, ids: pk.collect_gradients(model, ids, local=True, progress=False),
    "activations": lambda model, ids: pk.collect_activations(model, ids, progress=False),
    "perplexity": lambda model, ids: pk.perplexity(model, ids, ids.shape[-1], progress=False),
    "divergence": lambda model, ids: pk.divergence(model, model, ids, ids.shape[-1], progress=False),
    "search": lambda model, ids: pk.Bench(model, windows(), ids),
    "search calibration": lambda model, ids: pk.Bench(model, ids, windows()),
    "other search windows": lambda model, ids: pk.Evaluator(pk.Bench(model, windows(), windows())).on([ids]),
    "fine-tuning": lambda model, ids: pk.finetune_lora(model, ids, progress=False),
}
UNREADABLE = {
    "too long": (windows(2, 65), "windows of 65 tokens are too long for the model, which has 64 positions"),
    "another tokenizer": (torch.full((2, 8), VOCAB), f"token {VOCAB} is not in the model's vocabulary of"),
    "negative": (torch.full((2, 8), -100), f"token -100 is not in the model's vocabulary of {VOCAB}"),
    "float": (windows().float(), r"have shape \(4, 12\) and dtype torch.float32; give token ids"),
}


@pytest.fixture(scope="module")
def models():
    return {family: FAMILIES[family].model(max_position_embeddings=64) for family in ("OPT", "GPT-2")}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", UNREADABLE)
@pytest.mark.parametrize("family", ["OPT", "GPT-2"])
def test_unreadable_windows_are_one_sentence(models, family, case, reader):
    ids, message = UNREADABLE[case]
    before = {name: tensor.clone() for name, tensor in models[family].state_dict().items()}
    with pytest.raises(pk.UsageError, match=message):
        READERS[reader](models[family], ids)
    assert all(torch.equal(before[name], tensor) for name, tensor in models[family].state_dict().items())


@pytest.mark.parametrize("reader", sorted(READERS.keys() - {"perplexity", "divergence"}))
@pytest.mark.parametrize("ids", [windows()[:0], windows(4, 1), windows().flatten(), windows().tolist()],
                         ids=["none", "short", "flat", "list"])
def test_what_is_no_window_is_one_sentence(models, ids, reader):
    with pytest.raises(pk.UsageError, match=r"give token ids, a LongTensor \(n, seqlen\)"):
        READERS[reader](models["OPT"], ids)


@pytest.mark.parametrize("seqlen", [0, 1, -3, 8.0])
def test_impossible_window_lengths(models, seqlen):
    for measure, read in ((pk.perplexity, [models["OPT"]]), (pk.divergence, [models["OPT"]] * 2)):
        with pytest.raises(pk.UsageError, match=f"seqlen = {seqlen} is no length of a window"):
            measure(*read, windows().flatten(), seqlen, progress=False)


@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_windows_leave_no_checkpoint(models, case, tmp_path):
    models["OPT"].save_pretrained(tmp_path / "source")
    ids, message = UNREADABLE[case]
    with pytest.raises(pk.UsageError, match=message):
        pk.prune_checkpoint(tmp_path / "source", tmp_path / "target", ids, "wanda", 0.5, progress=False)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("family", [*FAMILIES, *FURTHER])
def test_the_longest_window_is_what_the_model_can_read(family):
    """One token more breaks where positions lie in a table; where they are computed, any length will do."""
    made = (FAMILIES | FURTHER)[family]
    key = "max_seq_len" if family == "mpt" else "max_position_embeddings"
    model = made.model(**({} if family == "BLOOM" else {key: 40}))
    limit = positions(model)
    with torch.no_grad():
        model(input_ids=windows(1, limit or 80), use_cache=False)
        if limit:
            assert limit == 40
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=windows(1, 41), use_cache=False)
