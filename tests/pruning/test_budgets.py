from __future__ import annotations

import numpy as np
import pytest
import torch

import prunekit as pk
from prunekit.models import layers
from prunekit.pruning.budgets import layer_targets
from tests.pruning.families import FAMILIES, windows


def test_mean_is_the_target_and_outliers_are_spared(golden_model, golden_windows):
    model = golden_model("llama")
    # a few large inputs weights in block 1: outliers in every row of every layer that has one
    with torch.no_grad():
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(model.model.layers[1].self_attn, name).weight[:, :2] *= 40
    budget = pk.owl_budget(model, golden_windows, 0.6, progress=False)
    assert np.mean(budget) == pytest.approx(0.6, abs=1e-12)
    assert budget == pytest.approx([0.68, 0.52])
    report = pk.prune(model, golden_windows, "wanda", budget, progress=False)
    assert report.target == pytest.approx(0.6, abs=1e-9)
    assert report.to_frame().groupby("block")["target"].first().tolist() == budget


def test_the_budget_is_that_of_the_published_formula():
    """Of three blocks whose shares of outliers all differ, so that the middle one says how they count."""
    model, ids = FAMILIES["LLaMA"].model(), windows(8, 12)
    norms, outliers, entries = pk.collect_activations(model, ids, progress=False), np.zeros(3), np.zeros(3)
    for layer in layers(model):
        A = layer.weight.abs().detach() * norms[layer.name].sqrt()
        outliers[layer.block] += (A > 5 * A.sum() / A.numel()).sum().item()
        entries[layer.block] += A.numel()
    shares = outliers / entries
    u = 2 * (shares - shares.min()) / (shares.max() - shares.min())
    assert len(set(u)) == 3
    found = pk.owl_budget(model, ids, 0.6, progress=False)
    assert found == pytest.approx((0.6 + 0.08 * (u.mean() - u)).tolist(), abs=1e-12)


def test_blocks_alike_share_alike(golden_model, golden_windows):
    assert pk.owl_budget(golden_model("llama"), golden_windows, 0.7, threshold=1e9,
                         progress=False) == [0.7, 0.7]


def test_a_spread_that_leaves_nothing_is_refused(golden_model, golden_windows):
    with pytest.raises(pk.UsageError, match="take a smaller spread"):
        pk.owl_budget(golden_model("llama"), golden_windows, 0.95, threshold=2.0, spread=0.2, progress=False)


@pytest.mark.parametrize(("options", "message"), [
    ({"sparsity": "0.6"}, "sparsity = '0.6' must be a number"),
    ({"sparsity": float("nan")}, "sparsity = nan must be a finite number"),
    ({"spread": float("nan")}, "spread = nan must be a finite number"),
    ({"spread": -0.08}, "spread = -0.08 must be at least 0"),
    ({"threshold": float("nan")}, "threshold = nan must be a finite number"),
])
def test_what_is_no_number_is_refused(options, message):
    with pytest.raises(pk.UsageError, match=message):
        pk.owl_budget(None, None, **{"sparsity": 0.6, **options})


def test_a_list_needs_a_target_for_each_block_that_has_layers(golden_model):
    with pytest.raises(pk.UsageError, match="1 sparsities were given for a model of 2 decoder blocks"):
        layer_targets(layers(golden_model("llama")), [0.5])
