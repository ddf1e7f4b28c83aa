"""The numbers of the published code, run by run. `tests/golden/README.md` says how they were made."""
from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import prunekit as pk
from prunekit.models import layers
from prunekit.pruning.inputs import InputStatistics
from tests.conftest import GOLDEN

RUNS = [run for run in json.loads((GOLDEN / "golden.json").read_text()) if run["method"] != "dense"]
PUBLISHED_NAMES = {"mag": "magnitude", "wanda": "wanda"}
UPDATES = {"seq": "obs", "iter": "obs-iter"}


def as_asked(run: dict) -> tuple[str, dict]:
    """A published method name as method and arguments of `prune`."""
    if run["method"].startswith("ablate_"):
        _, method, update = run["method"].split("_")
        return PUBLISHED_NAMES[method], {"update": UPDATES[update]}
    return run["method"], {"group": "variant"} if run["variant"] else {}


@pytest.fixture(scope="module")
def kept():
    return {family: load_file(GOLDEN / f"{family}-kept-masks.safetensors") for family in ("llama", "opt")}


@pytest.fixture(scope="module")
def weights():
    return {family: load_file(GOLDEN / f"{family}-weights.safetensors") for family in ("llama", "opt")}


def weigh_later_windows_less(monkeypatch, seqlen: int):
    """In X alone, as the published ablations do: the k-th window has 2/k of its weight."""
    plain = InputStatistics.add

    def add(self, x):
        k = 1 + torch.arange(self.tokens, self.tokens + len(x)) // seqlen
        weighted = self.X + (x.square() * (2 / k)[:, None]).sum(0) / self.n
        plain(self, x)
        self.X.copy_(weighted)
    monkeypatch.setattr(InputStatistics, "add", add)


@pytest.mark.parametrize("run", RUNS, ids=lambda r: "-".join(
    (r["model"], r["method"], *["variant"] * r["variant"], r["pattern"])))
def test_same_as_the_published_code(run, golden_model, golden_windows, golden_gradients, kept, weights,
                                    monkeypatch):
    model = golden_model(run["model"])
    method, options = as_asked(run)
    if "ablate_wanda" in run["method"]:
        weigh_later_windows_less(monkeypatch, golden_windows.shape[1])
    report = pk.prune(model, golden_windows, method, run["sparsity"], run["pattern"], progress=False,
                      gradients=golden_gradients[run["model"]], **options)
    loss = pk.perplexity(model, golden_windows, golden_windows.shape[1], progress=False).nll.mean()
    name = run["method"] + "-variant" * run["variant"]
    for layer in layers(model):
        key = f"{name}|{run['sparsity']}|{run['pattern']}|{layer.block}.{layer.kind}"
        if key in kept[run["model"]]:
            keep = np.unpackbits(kept[run["model"]][key].numpy(),
                                 axis=1)[:, :layer.weight.shape[1]].astype(bool)
            assert np.array_equal(keep, (layer.weight != 0).numpy()), key
        else:
            expected = weights[run["model"]][key]
            assert torch.equal(expected != 0, layer.weight != 0), key
            assert (expected - layer.weight).abs().max() <= 1e-4 * expected.abs().max(), key
    assert report.sparsity == pytest.approx(run["zeros"], abs=1e-6)
    assert loss == pytest.approx(run["calib_loss"], abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_gradients_within_float16_rounding(family, golden_model, golden_windows, golden_gradients):
    ours, theirs = pk.collect_gradients(golden_model(family), golden_windows,
                                        progress=False), golden_gradients[family]
    assert len(ours) == len(theirs)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=2**-10, atol=2e-7)


def test_published_tree_on_opt_where_the_published_code_crashes(golden_model, golden_windows,
                                                                golden_gradients):
    model = golden_model("opt")
    report = pk.prune(model, golden_windows, "pruner-zero", 0.5, gradients=golden_gradients["opt"],
                      progress=False)
    assert report.sparsity == 0.5
