from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.errors import UsageError
from prunekit.metric.facts import flat, nested, shape, sign
from prunekit.metric.primitives import PRIMITIVES
from prunekit.metric.rank import RANK_RULES, ROW_RULES, canonical, rank_key
from prunekit.metric.rewrite import Rewriter, run
from prunekit.metric.rules import NAIVE, NEVER, RULES, Context
from prunekit.metric.simplify import simplify
from prunekit.metric.tree import Tree, defect, evaluate
from tests.metric.conftest import layer, trees
from tests.metric.exact import Outside, order, probe, same, value

EVERY = (*RULES, *RANK_RULES, *ROW_RULES)
SLOW = settings(max_examples=60, deadline=None)


def variables(pattern) -> set[str]:
    if isinstance(pattern, str):
        return {pattern}
    return set().union(*map(variables, pattern[1:]))


def filled(pattern, found):
    return (
        found[pattern] if isinstance(pattern, str) else (pattern[0], *(filled(p, found) for p in pattern[1:]))
    )


def instances(rule):
    """(before, after) of a rule with random subtrees for its variables, where its guard holds and shapes
    agree.
    """
    subtrees = st.tuples(*(trees("extended", max_leaves=3).map(nested) for _ in range(3)))
    names = sorted(variables(rule.pattern))

    def keeps(found):
        before, after = filled(rule.pattern, found), filled(rule.result, found)
        return (rule.guard is None or rule.guard(found)) and (
            rule.level == "BIT" or shape(before) == shape(after)
        )

    found = subtrees.map(lambda three: dict(zip(names, three, strict=False)))
    if rule.guard:  # make the guard likely
        prefix = {"abs x -> x": ("sqr",), "abs x -> neg x": ("neg", "sqr")}.get(rule.name, ())
        for op in reversed(prefix):
            found = found.map(lambda f, op=op: {**f, "x": (op, f["x"])})
    return found.filter(keeps).map(
        lambda f: (Tree(flat(filled(rule.pattern, f))), Tree(flat(filled(rule.result, f))))
    )


# Each rule by itself ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [r for r in EVERY if r.level == "BIT"], ids=lambda r: r.name)
def test_bit_rules_give_identical_floats(rule):
    inputs = {k: v.abs() for k, v in layer().items()}

    @SLOW
    @given(instances(rule))
    def check(pair):
        before, after = (evaluate(t, inputs).score for t in pair)
        if not (before.isfinite().all() and after.isfinite().all()):
            return
        assert before.shape == after.shape
        if rule.name == "sqrt sqr x -> abs x":  # squares of 1e-20 underflow
            before, after = (s.where(after > 1e-15, 0) for s in (before, after))
        assert torch.equal(before, after), pair

    check()


@pytest.mark.parametrize(
    "rule", [r for r in EVERY if r.level == "REAL" and not (r.modes or r.signs)], ids=lambda r: r.name
)
def test_real_rules_give_equal_values(rule):
    @SLOW
    @given(instances(rule), st.integers(0, 10_000))
    def check(pair, seed):
        try:
            before, after = (value(t, probe(seed)) for t in pair)
        except Outside:
            return
        assert same(before, after), pair

    check()


def test_real_rules_hold_in_float64_too():
    inputs = {k: v.abs().double() for k, v in layer(rows=64, columns=64).items()}
    for before, after in [
        ("sqr(sqrt(zsn(W)))", "abs(zsn(W))"),
        ("zsn(zsn(mul(W, X)))", "zsn(mul(W, X))"),
        ("mms(zsn(G))", "mms(G)"),
        ("zsn(mms(log(X)))", "zsn(log(X))"),
        ("mms(div(G, X))", "mms(G)"),
        ("zsn(div(W, G))", "zsn(W)"),
        ("add(sub(W, G), G)", "W"),
        ("sub(W, sub(W, G))", "G"),
        ("mul(exp(W), exp(G))", "exp(add(W, G))"),
        ("mms(neg(G))", "sub(1, mms(G))"),
    ]:
        a, b = (evaluate(Tree.parse(t), inputs).score for t in (before, after))
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def placed(rule, t: Tree) -> Tree:
    """The tree in a place where the rule's mode and sign hold."""
    if rule.modes == {"SHIFT"}:
        return Tree(("add", "W", *t))
    return Tree(("abs", *t)) if rule.signs and "mag" in rule.signs else t


@pytest.mark.parametrize("rule", [r for r in EVERY if r.modes or r.signs], ids=lambda r: r.name)
def test_order_rules_keep_every_rank_in_their_context(rule):
    group = "row" if rule in ROW_RULES else "layer"

    @SLOW
    @given(instances(rule), st.integers(0, 10_000))
    def check(pair, seed):
        try:
            before, after = (value(placed(rule, t), probe(seed)) for t in pair)
        except Outside:
            return
        assert order(before, group) == order(after, group), pair

    check()


# Guards, forbidden rules ------------------------------------------------------------------------------------


def changed(before: Tree, after: Tree, group: str = "row") -> bool:
    """Whether some layer has another order of scores."""
    for seed in range(40):
        try:
            a, b = (value(t, probe(seed)) for t in (before, after))
        except Outside:
            continue
        if order(a, group) != order(b, group):
            return True
    return False


def needs_guard(rule) -> bool:
    moves = rule.level == "REAL" and variables(rule.pattern) != variables(
        rule.result
    )  # may lose a wider operand
    return bool(rule.guard or rule.modes or rule.signs or moves)


@pytest.mark.parametrize("rule", [r for r in EVERY if needs_guard(r)], ids=lambda r: r.name)
def test_without_its_guard_a_rule_changes_a_mask(rule):
    tree = Tree.parse(rule.counterexample)
    bare = Rewriter((replace(rule, guard=None, modes=None, signs=None),), guarded=False)
    wrong = run(tree, bare, Context())
    assert wrong != tree and changed(tree, wrong)
    assert not changed(tree, simplify(tree)) and not changed(tree, canonical(tree))


@pytest.mark.parametrize("rule", NEVER, ids=lambda r: r.name)
def test_forbidden_rules_have_a_counterexample(rule):
    tree = Tree.parse(rule.counterexample)
    wrong = run(tree, Rewriter((rule,), guarded=False), Context())
    assert wrong != tree and changed(tree, wrong)
    assert not any((r.pattern, r.result) == (rule.pattern, rule.result) for r in EVERY)


def test_naive_level_makes_the_mistakes_that_summaries_make():
    inverted = Tree.parse("sqrt(sqr(neg(W)))")
    W = layer()["W"]
    assert simplify(inverted, "naive") == Tree.parse("neg(W)")
    assert torch.equal(simplify(inverted, "naive").score(W), -inverted.score(W))
    assert simplify(Tree.parse("mul(div(W, X), X)"), "naive") == Tree.parse("W")
    assert simplify(Tree.parse("div(W, X)"), "naive") == Tree.parse("div(W, X)")


# The whole --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("mul(abs(mul(W, W)), mms(G))", "mul(mms(G), sqr(W))"),
        ("add(sub(W, G), G)", "W"),
        ("add(G, sub(W, G))", "W"),
        ("exp(log(W))", "W"),
        ("mul(G, exp(log(W)))", "mul(G, exp(log(W)))"),
        ("log(exp(neg(G)))", "neg(G)"),
        ("add(log(exp(W)), G)", "add(G, log(exp(W)))"),
        ("sqrt(sqr(zsn(W)))", "abs(zsn(W))"),
        ("skp(skp(pow(W)))", "sqr(W)"),
        ("abs(neg(sqr(W)))", "sqr(W)"),
        ("zsn(neg(sub(W, G)))", "zsn(sub(G, W))"),
        ("mul(neg(W), neg(X))", "mul(W, X)"),
        ("add(W, sub(X, X))", "W"),
        ("add(X, sub(W, W))", "add(X, sub(W, W))"),
        ("mms(div(W, X))", "mms(W)"),
        ("add(div(X, add(sub(X, W), W)), W)", "add(W, div(X, add(W, sub(X, W))))"),
        ("mms(exp(log(X)))", "mms(X)"),
    ],
)
def test_oos_by_hand(before, after):
    assert str(simplify(Tree.parse(before))) == str(Tree.parse(after))


@pytest.mark.parametrize(
    "text",
    [
        "zsn(sub(W, W))",
        "sub(W, W)",
        "exp(sub(G, G))",
        "div(W, sub(X, X))",
        "add(W, mul(G, mms(sub(add(W, G), add(G, W)))))",
        "add(div(X, mms(sub(W, W))), W)",
        "mms(div(sub(W, W), G))",
        "div(W, mul(G, sub(X, X)))",
    ],
)
def test_what_is_invalid_everywhere_comes_back_unchanged(text):
    tree = Tree.parse(text)
    assert simplify(tree) == tree == simplify(tree, "rank")
    W, G, X = layer().values()
    assert defect(tree.score(W, G, X, check=False))


@settings(max_examples=400, deadline=None)
@given(trees("extended", max_leaves=10), st.sampled_from(["naive", "oos", "rank"]))
def test_simplifying_never_grows_and_is_idempotent(tree, level):
    once = simplify(tree, level)
    assert once.size <= tree.size and simplify(once, level) == once


@settings(max_examples=300, deadline=None)
@given(trees("extended", max_leaves=6), st.integers(0, 10_000))
def test_oos_keeps_every_mask(tree, seed):
    try:
        before, after = value(tree, probe(seed)), value(simplify(tree), probe(seed))
    except Outside:
        return
    assert order(before, "layer") == order(after, "layer")


@settings(max_examples=300, deadline=None)
@given(trees("extended"), st.integers(0, 10_000))
def test_static_signs_hold(tree, seed):
    try:
        found = value(tree, probe(seed))
    except Outside:
        return
    assert not sign(nested(tree)) or all(v * sign(nested(tree)) >= -1e-190 for v in found.flat)


def test_the_table_covers_the_language_and_names_are_unique():
    assert len({r.name for r in EVERY}) == len(EVERY) and all(r.proof for r in EVERY)
    assert {p for r in RULES for p in flat(r.pattern)} >= set(PRIMITIVES) - {"ediv", "rrow", "rcol"}
    assert {"exp log x -> x", "mul div a b b -> a"} <= {r.name for r in NAIVE}


def test_unknown_level():
    with pytest.raises(UsageError, match="unknown simplification level 'osp'.*oos"):
        simplify(Tree(("W",)), "osp")


def test_large_trees_are_simplified():
    deep = Tree.parse("abs(neg(sqr(sqrt(tanh(" * 12 + "W" + ")))))" * 12)
    assert simplify(deep, "rank") == Tree(("W",))
    wide = Tree.parse("+".join(["W*G*X - sqrt(X)*W"] * 20))
    assert str(simplify(wide, "rank")) == "sub(mul(W, mul(G, X)), mul(W, sqrt(X)))"


def test_a_sum_too_long_to_write_as_a_chain_is_left_alone():
    terms = [(f, x) for f in ("sqr", "log", "exp", "sqrt", "tanh", "mms", "zsn") for x in "WGX"]
    inner = [(f, x) for f in ("log", "exp", "tanh", "mms") for x in "WGX"]
    terms += [(f, *t) for f in ("tanh", "exp", "log", "sqr") for t in inner]

    def balanced(some):
        half = len(some) // 2
        return some[0] if not half else ("add", *balanced(some[:half]), *balanced(some[half:]))

    tree = Tree(balanced(terms[:68]))  # 68 terms in a row would be 67 levels deep
    assert simplify(tree, "rank") == tree and rank_key(tree) == ("row", tuple(tree))
    assert simplify(Tree(balanced(terms[:40])), "rank").depth > 35
