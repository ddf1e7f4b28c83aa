"""Gradient files as they come: ours, the published ones under any suffix, and what only looks like one."""
from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import prunekit as pk
from tests.conftest import GOLDEN


class Hostile:
    """Unpickled, it would leave a file behind."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_saved_and_loaded_with_how_it_was_made(tmp_path, golden_gradients):
    made = pk.Gradients(dict(golden_gradients["llama"]),
                        {"norm": "l2", "n": 16, "seqlen": 64, "scale": 100.0})
    loaded = pk.Gradients.load(made.save(tmp_path / "deep" / "G.safetensors"))
    assert loaded.meta == made.meta
    assert all(torch.equal(loaded[name], made[name]) and loaded[name].dtype == torch.float32 for name in made)
    half = pk.Gradients.load(made.save(tmp_path / "half.safetensors", dtype=torch.float16))
    assert all(torch.equal(half[name], made[name]) for name in made)  # the golden file is float16 already


@pytest.mark.parametrize("suffix", [".pth", ".path", ".safetensors", ""])
def test_published_files_are_known_by_content(suffix, tmp_path, golden_gradients):
    copy = shutil.copy(GOLDEN / "llama-grad-l2.pth", tmp_path / f"gradients{suffix}")
    loaded = pk.Gradients.load(copy)
    published, path = "self_attn.q_proj_layer_1", "model.layers.1.self_attn.q_proj"
    assert torch.equal(loaded[published],
                       loaded[path]) and torch.equal(loaded[path], golden_gradients["llama"][path])
    with pytest.raises(KeyError):
        loaded["model.layers.2.self_attn.q_proj"]


def bad_file(folder: Path, case: str) -> Path:
    path = folder / "G.pth"
    if case == "malicious pickle":
        path.write_bytes(pickle.dumps({"self_attn.q_proj_layer_0": Hostile(folder / "trace")}))
    elif case == "malicious zip":
        torch.save({"self_attn.q_proj_layer_0": Hostile(folder / "trace")}, path)
    elif case == "torn zip":
        path.write_bytes((GOLDEN / "llama-grad-l2.pth").read_bytes()[:5000])
    elif case == "torn safetensors":
        save_file({"model.layers.0.a": torch.ones(3)}, path)
        path.write_bytes(path.read_bytes()[:-4])
    elif case == "not a mapping":
        torch.save([torch.ones(2)], path)
    elif case == "strange names":
        save_file({"lm_head": torch.ones(3)}, path)
    elif case == "activations":
        pk.Activations({"model.layers.0.a": torch.ones(3)}).save(path)
    elif case == "text":
        path.write_text(json.dumps({"a": 1}))
    elif case == "no JSON":
        save_file({"model.layers.0.a": torch.ones(3)}, path, metadata={"prunekit": "{n: 16"})
    elif case == "no mapping":
        save_file({"model.layers.0.a": torch.ones(3)}, path, metadata={"prunekit": "[" * 10**5})
    elif case == "sparse":
        torch.save({"a_layer_0": torch.ones(3, 3).to_sparse()}, path)
    elif case == "complex":
        torch.save({"a_layer_0": torch.ones(3, 3, dtype=torch.complex64)}, path)
    elif case == "two names":
        save_file({"model.layers.0.a": torch.ones(3), "a_layer_0": torch.ones(3)}, path)
    elif case == "empty":
        path.write_bytes(b"")
    return path


@pytest.mark.parametrize(("case", "message"), [
    ("missing", "does not exist"),
    ("malicious pickle", "is damaged or holds code, which is never run"),
    ("malicious zip", "is damaged or holds code, which is never run"),
    ("torn zip", "is damaged or holds code, which is never run"),
    ("torn safetensors", "is damaged"),
    ("not a mapping", "does not map layer names to tensors"),
    ("strange names", "gradient 'lm_head' names no layer of a decoder block"),
    ("activations", "holds activations, not gradients"),
    ("no JSON", "does not say in JSON how it was made"),
    ("no mapping", "does not say in JSON how it was made"),
    ("sparse", "layer a_layer_0 is torch.sparse_coo, torch.float32; give a dense tensor of real numbers"),
    ("complex", "layer a_layer_0 is torch.strided, torch.complex64; give a dense tensor of real numbers"),
    ("two names", "hold one layer under two names, a_layer_0 and model.layers.0.a"),
    ("text", "never run"),
    ("empty", "never run"),
])
def test_bad_files_get_one_sentence_and_run_nothing(case, message, tmp_path):
    with pytest.raises(pk.UsageError) as refused:
        pk.Gradients.load(bad_file(tmp_path, case))
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(("value", "message"), [
    (float("nan"), "is not finite"), (float("inf"), "is not finite"), (-1e-3, "is negative somewhere")])
def test_what_is_no_norm_is_refused_for_the_layer(value, message, golden_model, golden_gradients):
    broken = dict(golden_gradients["llama"])
    broken["mlp.up_proj_layer_1"] = broken["mlp.up_proj_layer_1"].clone()
    broken["mlp.up_proj_layer_1"][2, 3] = value
    with pytest.raises(pk.UsageError, match=rf"model\.layers\.1\.mlp\.up_proj {message}"):
        pk.prune(golden_model("llama"), None, "grad-weight", 0.5, gradients=pk.Gradients(broken),
                 progress=False)


def test_checkpoints_read_the_same_metadata(tmp_path):
    for case, message in (("no JSON", "does not say in JSON"), ("two names", "under two names"),
                          ("activations", "holds activations")):
        with pytest.raises(pk.UsageError, match=message):
            pk.prune_checkpoint(GOLDEN / "llama", tmp_path / "target", None, "grad-weight", 0.5,
                                gradients=bad_file(tmp_path, case))


def test_what_a_caller_left_in_grad_is_no_sample(golden_model, golden_windows):
    model = golden_model("llama")
    clean = pk.collect_gradients(model, golden_windows[:2], progress=False)
    model.train()
    model(input_ids=golden_windows[:1], labels=golden_windows[:1]).loss.backward()
    again = pk.collect_gradients(model, golden_windows[:2], progress=False)
    assert model.training and all(torch.equal(clean[name], again[name]) for name in clean)


def test_a_dtype_that_cannot_hold_G_is_refused_when_it_is_saved(tmp_path):
    G = pk.Gradients({"model.layers.0.q": torch.full((2, 2), 1e5)})
    with pytest.raises(pk.UsageError, match=r"beyond torch\.float16"):
        G.save(tmp_path / "G.safetensors", dtype=torch.float16)
    with pytest.raises(pk.UsageError, match=r"dtype torch\.int8 holds no G"):
        G.save(tmp_path / "G.safetensors", dtype=torch.int8)
    assert not list(tmp_path.iterdir())
    assert pk.Gradients.load(G.save(tmp_path / "G", dtype=torch.bfloat16))["model.layers.0.q"].max() < 1.01e5


def test_a_dtype_that_makes_G_vanish_is_refused_and_a_few_least_numbers_may_go(tmp_path):
    G = torch.logspace(-9, 0, 1000).view(20, 50)  # from 1e-9 on; float16 begins at 6e-8
    with pytest.raises(pk.UsageError, match=r"torch\.float16 makes 0 of it"):
        pk.Gradients({"model.layers.0.q": G}).save(tmp_path / "G.safetensors", dtype=torch.float16)
    assert not list(tmp_path.iterdir())
    few = G.clamp(min=1e-6).index_put((torch.arange(10), torch.tensor(3)), torch.tensor(1e-9))
    for dtype, held, zeros in ((torch.float16, few, 10), (torch.bfloat16, G, 0)):
        kept = pk.Gradients({"model.layers.0.q": held}).save(tmp_path / "G", dtype=dtype)
        assert (pk.Gradients.load(kept)["model.layers.0.q"] == 0).sum() == zeros


def test_a_published_file_of_no_layers_or_no_numbers_is_refused(tmp_path):
    torch.save({"q_layer_" + "9" * 5000: torch.ones(1)}, tmp_path / "long.pth")
    with pytest.raises(pk.UsageError, match="names no layer of a decoder block"):
        pk.Gradients.load(tmp_path / "long.pth")
    torch.save({"q_layer_0": torch.ones(1, device="meta")}, tmp_path / "meta.pth")
    with pytest.raises(pk.UsageError, match="does not map layer names to tensors"):
        pk.Gradients.load(tmp_path / "meta.pth")
