from __future__ import annotations

import copy
import json
import pickle
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.mathtext import MathTextParser
from safetensors.torch import load_file

from prunekit.errors import UsageError
from prunekit.metric.primitives import PRIMITIVES, TERMINALS
from prunekit.metric.tree import Tree, defect, evaluate
from tests.metric.conftest import layer, trees

GOLDEN = Path(__file__).parents[1] / "golden"
PUBLISHED = Tree.parse("mul(abs(mul(W, W)), mms(G))")


# Value ------------------------------------------------------------------------------------------------------


def test_published_metric_gives_the_golden_masks_bit_for_bit():
    weights = load_file(GOLDEN / "llama/model.safetensors")
    gradients = torch.load(GOLDEN / "llama-grad-l2.pth", weights_only=True)
    seen = 0
    for key, packed in load_file(GOLDEN / "llama-kept-masks.safetensors").items():
        method, sparsity, pattern, name = key.split("|")
        if (method, pattern) != ("pruner-zero", "unstructured"):
            continue
        block, linear = name.split(".", 1)
        W, G = weights[f"model.layers.{block}.{linear}.weight"], gradients[f"{linear}_layer_{block}"]
        score = PUBLISHED.score(W, G)
        gone = score.sort(dim=1, stable=True).indices[:, : int(W.shape[1] * float(sparsity))]
        keep = torch.ones_like(score, dtype=torch.bool).scatter_(1, gone, False)
        golden = np.unpackbits(packed.numpy(), axis=1)[:, : W.shape[1]].astype(bool)
        assert np.array_equal(keep.numpy(), golden), key
        seen += 1
    assert seen == 14


def test_score_is_float32_of_the_absolute_weight_whatever_comes_in():
    W, G, X = layer().values()
    tree = Tree.parse("add(mul(W, sqrt(X)), sqrt(G))")
    expected = W.abs() * X.sqrt() + G.sqrt()
    assert torch.equal(tree.score(W, G, X), expected)
    assert torch.equal(tree.score(-W, G, X[0]), expected)
    half = tree.score(W.bfloat16(), G.half(), X.double())
    assert half.dtype == torch.float32
    assert torch.equal(half, tree.score(W.bfloat16().float(), G.half().float(), X))
    whole = torch.tensor([[-128, 3]], dtype=torch.int8)
    assert Tree.parse("W").score(whole).tolist() == [[128.0, 3.0]]
    assert Tree.parse("W").bind(whole).score(W=whole).tolist() == [[128.0, 3.0]]
    strided = W.t().contiguous().t()
    assert torch.equal(tree.score(strided, G, X), expected)


def test_score_on_columns_alone_is_broadcast_and_may_be_written_to():
    W, _, X = layer().values()
    score = Tree.parse("sqrt(X)").score(W, X=X)
    assert score.shape == W.shape and torch.equal(score, X.sqrt().expand_as(W))
    score[0, 0] = -1
    assert score[1, 0] != -1


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("mul(W, G)", {"X": torch.ones(3)}, "needs G"),
        ("mul(W, X)", {"G": torch.ones(2, 3)}, "needs X"),
        ("mul(W, G)", {"G": torch.ones(3, 2)}, r"G must be \(2, 3\)"),
        ("mul(W, X)", {"X": torch.ones(2, 1)}, r"X must be \(1, 3\)"),
        ("zsn(sub(W, W))", {}, "invalid metric.*not finite"),
        ("div(W, sub(W, W))", {}, "invalid metric.*not finite"),
        ("tanh(div(W, sub(W, W)))", {}, "not finite"),
        ("exp(neg(div(W, G)))", {"G": torch.zeros(2, 3)}, "not finite"),
        ("ediv(div(W, G), G)", {"G": torch.zeros(2, 3)}, "not finite"),
        ("sub(W, W)", {}, "constant"),
        ("exp(exp(exp(exp(exp(W)))))", {}, "constant"),
        ("W", {"W": torch.full((2, 3), float("nan"))}, "not finite"),
        ("W", {"W": torch.tensor([[1.0, float("inf")]])}, "not finite"),
        ("W", {"W": torch.ones(3)}, r"W must be \(out, in\)"),
    ],
)
def test_score_refuses(text, arguments, message):
    inputs = {"W": torch.arange(6.0).reshape(2, 3), **arguments}
    with pytest.raises(UsageError, match=message):
        Tree.parse(text).score(**inputs)


def test_defect_answers_where_score_does_not_check():
    W = torch.arange(6.0).reshape(2, 3)
    assert defect(Tree.parse("sub(W, W)").score(W, check=False)) == "constant"
    assert defect(Tree.parse("mms(sub(W, W))").score(W, check=False)) == "not finite"
    assert defect(W) is None


def test_common_subexpressions_are_evaluated_once(monkeypatch):
    calls = []
    tanh = PRIMITIVES["tanh"]
    counted = type(tanh)(**{**tanh.__dict__, "function": lambda x: calls.append(1) or x.tanh()})
    monkeypatch.setitem(PRIMITIVES, "tanh", counted)
    Tree.parse("add(mul(tanh(W), tanh(W)), sqr(tanh(W)))").score(layer()["W"])
    assert len(calls) == 1


@settings(max_examples=300, deadline=None)
@given(trees("extended"), st.lists(st.integers(1, 19), max_size=4), st.booleans())
def test_bound_scores_over_any_partition_equal_the_whole_bit_for_bit(tree, cuts, replace):
    W, G, X = layer().values()
    edges = [0, *sorted(set(cuts)), 20]
    whole, bound = tree.score(W, G, X, check=False), tree.bind(W, G, X)
    parts = [bound.score(slice(a, b), W[:, a:b] if replace else None) for a, b in pairwise(edges)]
    assert torch.equal(torch.cat(parts, 1).nan_to_num(), whole.nan_to_num())


def test_bound_tree_keeps_the_layers_scalars_when_weights_move():
    W = layer()["W"]
    bound = Tree.parse("mms(W)").bind(W)
    moved = bound.score(slice(3, 7), W=10 * W[:, 3:7])
    low, high = W.abs().min(), W.abs().max()
    assert torch.equal(moved, ((10 * W[:, 3:7]).abs() - low) / (high - low))
    with pytest.raises(UsageError, match="not finite"):
        Tree.parse("mms(sub(W, W))").bind(W).score(check=True)


# Structure --------------------------------------------------------------------------------------------------


def test_tree_is_a_value():
    assert PUBLISHED == Tree.parse(" mul( abs(mul(W,W)) ,mms(G) ) ") and hash(PUBLISHED) == hash(
        tuple(PUBLISHED)
    )
    assert tuple(PUBLISHED) == ("mul", "abs", "mul", "W", "W", "mms", "G")
    assert pickle.loads(pickle.dumps(PUBLISHED)) == PUBLISHED and type(copy.deepcopy(PUBLISHED)) is Tree
    assert (PUBLISHED.size, PUBLISHED.depth, PUBLISHED.terminals) == (7, 3, {"W", "G"})
    assert Tree(("W",)).depth == 0
    assert PUBLISHED[PUBLISHED.span(1)] == ("abs", "mul", "W", "W") and PUBLISHED.span(5) == slice(5, 7)
    assert str(PUBLISHED.replace(1, ("X",))) == "mul(X, mms(G))"
    assert eval(repr(PUBLISHED), {"Tree": Tree}) == PUBLISHED


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mul(W, sqrt(X))", True),
        ("mul(abs(mul(W, W)), mms(G))", True),
        ("tanh(X)", False),
        ("log(G)", False),
        ("add(W, G)", False),
        ("add(mul(W, sqrt(X)), mul(W, G))", False),
        ("add(W, mms(X))", True),
        ("sub(mul(W, X), neg(mul(X, zsn(G))))", True),
        ("exp(mms(X))", True),
        ("div(G, W)", True),
        ("mul(W, div(W, X))", True),
        ("add(W, div(W, X))", False),
        ("add(G, div(G, X))", False),
        ("add(G, div(mul(G, mms(G)), W))", False),
        ("mms(add(div(W, X), div(W, G)))", False),
        ("tanh(mms(div(G, X)))", True),
        ("sqr(zsn(X))", True),
        ("sqr(add(X, div(X, W)))", False),
        ("ediv(mul(W, X), X)", True),
        ("mul(rrow(X), W)", True),
        ("mul(0.5, X)", True),
        ("add(0.5, X)", False),
        ("sqr(div(W, log(G)))", True),
        ("add(mul(W, W), sqr(sqrt(sqr(W))))", True),
    ],
)
def test_homogeneous(text, expected):
    assert Tree.parse(text).homogeneous is expected


@settings(max_examples=400, deadline=None)
@given(trees("extended"), st.sampled_from([(4.0, 1.0), (1.0, 0.25), (0.0625, 16.0)]))
def test_homogeneous_trees_keep_their_order_when_statistics_are_rescaled(tree, factors):
    if not tree.homogeneous:
        return
    inputs = {k: v.abs().double() for k, v in layer().items()}
    scaled = {"W": inputs["W"], "G": inputs["G"] * factors[1], "X": inputs["X"] * factors[0]}
    a, b = (evaluate(tree, i).score.expand(12, 20) for i in (inputs, scaled))
    if defect(a) or defect(b):
        return
    a, b = (
        (s - s.min()) / (s.max() - s.min()) for s in (a, b)
    )  # order up to rounding: compare after one affine map
    order = a.flatten().sort().indices
    assert (b.flatten()[order].diff() > -1e-6).all(), str(tree)


# Reading and writing ----------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(trees("extended", max_leaves=20))
def test_text_infix_and_json_round_trip(tree):
    assert Tree.parse(str(tree)) == tree
    assert Tree.parse(tree.infix()) == tree
    assert Tree.from_json(tree.to_json()) == tree
    assert Tree.from_json(json.loads(json.dumps(tree.to_json(meta={"ppl": 5.5})))) == tree
    assert tree.latex().count("{") == tree.latex().count("}") and tree.latex().count(
        r"\left"
    ) == tree.latex().count(r"\right")
    assert len(tree.ascii().splitlines()) == tree.size


@pytest.mark.parametrize(
    ("written", "meant", "back"),
    [
        ("|W*W| * mms(G)", "mul(abs(mul(W, W)), mms(G))", "|W * W| * mms(G)"),
        ("W - G - X", "sub(sub(W, G), X)", "W - G - X"),
        ("W - (G - X)", "sub(W, sub(G, X))", "W - (G - X)"),
        ("W + G * X", "add(W, mul(G, X))", "W + G * X"),
        ("(W + G) * X", "mul(add(W, G), X)", "(W + G) * X"),
        ("W / X ./ G", "ediv(div(W, X), G)", "W / X ./ G"),
        ("-W * X", "mul(neg(W), X)", "-W * X"),
        ("-(W * X)", "neg(mul(W, X))", "-(W * X)"),
        ("W - -X", "sub(W, neg(X))", "W - -X"),
        ("--W", "neg(neg(W))", "--W"),
        ("||W| - |G||", "abs(sub(abs(W), abs(G)))", "||W| - |G||"),
        ("((W))", "W", "W"),
        ("0.5*W", "mul(0.5, W)", "0.5 * W"),
    ],
)
def test_infix(written, meant, back):
    assert str(Tree.parse(written)) == meant and Tree.parse(written).infix() == back


def test_latex_and_ascii_and_json_by_hand():
    assert (
        Tree.parse("mul(add(W, G), sqr(sub(W, X)))").latex()
        == r"\left(W + G\right) \cdot \left(W - X\right)^2"
    )
    assert Tree.parse("sqr(sqr(W))").latex() == r"\left(W^2\right)^2"
    assert Tree.parse("div(skp(add(W, G)), X)").latex() == r"\frac{W + G}{\left\| X \right\|_2}"
    assert Tree.parse("mul(W, sqrt(X))").ascii() == "mul\n├── W\n└── sqrt\n    └── X"
    assert Tree.parse("mul(W, sqrt(X))").to_json() == {
        "data": "mul",
        "left": {"data": "W"},
        "right": {"data": "sqrt", "left": {"data": "X"}},
    }


def test_latex_drops_bars_where_nothing_is_negative_and_matplotlib_reads_it():
    assert Tree.parse("sqrt(X)").latex() == r"\sqrt{X}" and Tree.parse("sqrt(log(X))").latex().startswith(
        r"\sqrt{\left|"
    )
    every = " + ".join(
        f"{p.name}(zsn(W), G)" if p.arity == 2 else f"{p.name}(zsn(W))" for p in PRIMITIVES.values()
    )
    MathTextParser("path").parse(f"${Tree.parse(every).latex()}$")


def test_json_files(tmp_path):
    path = tmp_path / "tree.json"
    PUBLISHED.to_json(path, meta={"found": "by hand"})
    assert Tree.from_json(path) == Tree.from_json(str(path)) == PUBLISHED
    assert json.loads(path.read_text())["meta"] == {"found": "by hand"}


def test_drawing_has_one_box_per_node_and_no_overlap():
    figure, ax = plt.subplots()
    assert PUBLISHED.draw(ax) is ax
    assert [t.get_text() for t in ax.texts] == list(PUBLISHED)
    assert len({t.get_position() for t in ax.texts}) == PUBLISHED.size and len(ax.lines) == PUBLISHED.size - 1
    colours = {t.get_text(): t.get_bbox_patch().get_facecolor() for t in ax.texts}
    assert colours["W"] != colours["G"] and colours["mul"] == colours["abs"]
    plt.close(figure)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "mul(W)",
        "mul(W, G, X)",
        "abs(W, G)",
        "mul W G",
        "W G",
        "W(G)",
        "mul(W, G",
        "mul(W, G))",
        "W +",
        "* W",
        "|W",
        "()",
        "W; import os",
        "__import__('os')",
        "W[0]",
        "W.abs()",
        "lambda: W",
        "0x10",
        "1e3",
        "7",
        "nan",
        "inf",
        "é",
        "W\x00",
        "(" * 5000 + "W" + ")" * 5000,
        "-" * 5000 + "W",
        "abs(" * 3000 + "W" + ")" * 3000,
        "W+" * 5000 + "W",
        "|" * 9000,
        "W" * 30_000,
        "sqr(" * 70 + "W" + ")" * 70,
        None,
        7,
        b"W",
        ["W"],
        {"data": "W"},
    ],
)
def test_hostile_text(text):
    with pytest.raises(UsageError) as caught:
        Tree.parse(text)
    assert len(str(caught.value)) < 400


def test_a_text_is_read_once_and_a_refusal_is_not_remembered(monkeypatch):
    from prunekit.metric import primitives

    assert Tree.parse("mul(W, sqrt(X))") is Tree.parse("mul(W, sqrt(X))")
    with pytest.raises(UsageError, match="unknown symbol 'third'"):
        Tree.parse("third(W)")
    monkeypatch.setitem(primitives.PRIMITIVES, "third", primitives.PRIMITIVES["sqr"])
    assert Tree.parse("third(W)") == ("third", "W")


def _deep(levels: int) -> str:
    return '{"data": "abs", "left": ' * levels + '{"data": "W"}' + "}" * levels


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_deep(10_000), "nested|more than"),
        (_deep(100_000)[:990_000], "is not readable JSON: it is nested too deeply"),
        (_deep(70), "levels"),
        ("", "JSON"),
        ("[1, 2]", "object"),
        ('"W"', "object"),
        ('{"data": 7}', "name under 'data', this one has 7 there"),
        ('{"data": NaN}', "NaN"),
        ('{"data": "abs", "left": NaN}', "NaN"),
        ('{"data": "abs", "left": Infinity}', "Infinity"),
        ('{"data": "W", "data": "G"}', "occurs twice"),
        ('{"data": "W", "left": {"data": "W"}}', "'W' takes no operand, here left"),
        ('{"data": "mul", "left": {"data": "W"}}', "'mul' takes 2 operands"),
        ('{"data": "abs", "right": {"data": "W"}}', "'abs' takes 1 operand \\(left\\), here right"),
        ('{"data": "abs", "left": null}', "not None"),
        ('{"data": "w"}', "did you mean 'W'"),
        ('{"data": "W", "code": "x"}', "unknown key 'code'"),
        ('{"data": "abs", "left": {"data": "W", "meta": 1}}', "unknown key 'meta'"),
        ("{" * 200_000, "nested|JSON"),
        ('{"data": ' + "9" * 5000 + "}", "JSON|name"),
        ('{"data": "W"} x', "JSON"),
        ('{"left": {"data": "W"}}', "nothing"),
    ],
)
def test_hostile_files(tmp_path, content, message):
    path = tmp_path / "tree.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=message) as caught:
        Tree.from_json(path)
    assert len(str(caught.value)) < 500


def test_hostile_paths_and_objects(tmp_path):
    big = tmp_path / "big.json"
    with big.open("wb") as file:
        file.truncate(100_000_000)
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00{")
    cyclic: dict = {"data": "abs"}
    cyclic["left"] = cyclic
    for source, message in [
        (big, "100000000 bytes"),
        (binary, "JSON"),
        (tmp_path, "no tree file"),
        ("nowhere.json", "no tree file"),
        (cyclic, "refers to itself"),
        ({}, "nothing"),
        (None, "not from a NoneType"),
        ([1, 2], "not from a list"),
        ("a\x00b", "no tree file|not readable"),
        ({1: 2, "data": "W"}, "unknown key '1'"),
    ]:
        with pytest.raises(UsageError, match=message):
            Tree.from_json(source)


@pytest.mark.parametrize(
    "symbols",
    [
        (),
        ("mul", "W"),
        ("W", "W"),
        ("mul",),
        ("Y",),
        (7,),
        (None,),
        ("W",) * 5000,
        ("abs",) * 65 + ("W",),
        (("W",),),
    ],
)
def test_hostile_tuples(symbols):
    with pytest.raises(UsageError):
        Tree(symbols)


def test_terminals_are_the_papers_letters():
    assert TERMINALS == ("W", "G", "X")
