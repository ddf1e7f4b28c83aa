from __future__ import annotations

import pytest
import torch

from prunekit.errors import UsageError
from prunekit.metric.catalogue import GROUPS, METHODS, UPDATES, resolve
from prunekit.metric.tree import Tree
from tests.metric.conftest import layer


def test_metrics_equal_their_published_formulas():
    W, G, X = layer().values()
    w, norm = W.abs(), X.sqrt()
    formulas = {
        "magnitude": w,
        "wanda": w * norm,
        "admm": w * norm,
        "pruner-zero": w**2 * (G - G.min()) / (G.max() - G.min()),
        "gblm": w * norm + w * G,
        "wanda++": w * (100 * G + norm),
        "grad-weight": w * G,
        "fisher": (w * G) ** 2,
        "ria": (w / w.sum(0, keepdim=True) + w / w.sum(1, keepdim=True)) * norm**0.5,
        "w2g": w**2 * G,
        "obd-layer": w**2 * X,
        "weight-x": w * X,
        "gradient": G,
        "wanda-variant": w * norm,
        "pruner-zero-variant": w**2 * (G - G.min()) / (G.max() - G.min()),
    }
    assert set(formulas) == set(METHODS) - {"sparsegpt"}
    for name, expected in formulas.items():
        torch.testing.assert_close(METHODS[name].tree.score(W, G, X), expected, msg=name)


def test_groups_updates_and_needs():
    assert METHODS["magnitude"].group == "layer" and METHODS["magnitude"].needs == {"W"}
    assert METHODS["wanda"].group == "row" and METHODS["wanda"].needs == {"W", "X"}
    assert METHODS["sparsegpt"].tree is None and METHODS["sparsegpt"].needs == {"W", "H"}
    assert METHODS["pruner-zero"].needs == {"W", "G"}
    assert all(
        m.group in GROUPS and m.update in (None, *UPDATES) and m.source and m.note for m in METHODS.values()
    )
    assert {n for n, m in METHODS.items() if m.group == "variant"} == {"wanda-variant", "pruner-zero-variant"}


def test_resolve_names_trees_and_text():
    assert resolve("wanda") is not None and resolve("wanda") == METHODS["wanda"]
    tree = Tree.parse("mul(W, sqrt(X))")
    for given in (tree, "mul(W, sqrt(X))", "W * sqrt(X)"):
        found = resolve(given)
        assert (found.name, found.tree, found.group, found.update) == ("mul(W, sqrt(X))", tree, "row", None)
    assert resolve("W").tree == Tree(("W",)) and resolve("W-G").tree == Tree(("sub", "W", "G"))
    assert resolve(METHODS["wanda"], update="obs").needs == {"W", "X", "H"}
    assert resolve("magnitude", group="row", update="obs-iter").group == "row"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("wnada",), "unknown method 'wnada' .did you mean 'wanda'"),
        (("sparse-gpt",), "did you mean 'sparsegpt'"),
        (("mul(W, sqrt(Y))",), "unknown symbol 'Y'"),
        ((7,), "not int"),
        ((["W"],), "not list"),
        (("wanda", "rows"), "unknown comparison group 'rows' .did you mean 'row'"),
        (("wanda", None, "obs_iter"), "did you mean 'obs-iter'"),
        (("sparsegpt", None, "obs"), "must be 'obs-iter'"),
        (("wanda-variant", None, "obs-iter"), "so group 'variant' is not what would happen"),
        (("wanda", "layer", "obs-iter"), "so group 'layer' is not what would happen"),
        (("sparsegpt", "variant"), "never negative"),
        (("log(W)", "variant"), "never negative"),
        (("W" * 5000,), "unknown|at most"),
    ],
)
def test_resolve_refuses(arguments, message):
    with pytest.raises(UsageError, match=message) as caught:
        resolve(*arguments)
    assert len(str(caught.value)) < 500
