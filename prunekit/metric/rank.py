"""Rank equivalence: the canonical form of a metric's mask, and the key that metrics share only on a proof.

A mask depends on the order of scores inside a comparison group and on nothing else. Starting from that at the
root, `rules.operand_contexts` passes down what can still be seen of each operand, and everything that
cannot be seen is removed: strictly increasing functions, positive factors, shifts. Products become monomials
(|t| = Π |u|^e; where only order is seen, all exponents share a factor), sums become integer combinations, and
a term that is a strictly monotone function of one of its subtrees becomes that subtree.

Claim: two trees with equal `rank_key` give the same masks, ties included, in exact arithmetic (exp without
its clamp), on every layer where both are valid. It is a proof by rules, so it is not complete: different keys
may still give the same mask. Inside the solver (`obs-iter`) updated weights are scored with the minimum,
span, sums and norms of those before: there mms(W) may be negative, which these rules rule out, so a tree that
takes such a value of W is proven to be the same as itself only.
"""
from __future__ import annotations

from collections.abc import Callable, Hashable
from fractions import Fraction
from functools import lru_cache
from math import gcd

from prunekit.errors import UsageError, did_you_mean
from prunekit.metric.catalogue import GROUPS
from prunekit.metric.facts import Node, constant, flat, nested, order_key, shape, sign
from prunekit.metric.primitives import PRIMITIVES
from prunekit.metric.rewrite import Rewriter, run
from prunekit.metric.rules import AFFINE, ORDER, RULES, SCALED, SHIFT, Context, rule
from prunekit.metric.tree import Tree

RANK_RULES = (
    rule("exp x -> x", "ORDER", "strictly increasing", "mul(W, exp(G))", modes="ORDER", signs="plain"),
    rule("tanh x -> x", "ORDER", "strictly increasing and odd", "mul(W, tanh(G))", modes="ORDER"),
    rule("mms x -> x", "ORDER", "positive scale and a shift", "mul(W, mms(G))",
         modes="AFFINE ORDER", signs="plain flip"),
    rule("zsn x -> x", "ORDER", "positive scale and a shift", "mul(W, zsn(G))",
         modes="AFFINE ORDER", signs="plain flip"),
    rule("div a b -> a", "ORDER", "a positive factor", "add(W, div(G, X))", modes="SCALE AFFINE ORDER"),
    rule("abs x -> x", "REAL", "only magnitudes are seen", "mul(abs(zsn(W)), G)", signs="mag"),
    rule("neg x -> x", "REAL", "this sign is not seen", "neg(W)", signs="mag flip"),
    rule("sqr x -> x", "ORDER", "increasing in the magnitude", "mul(sqr(zsn(W)), G)",
         modes="ORDER", signs="mag"),
    rule("sqrt x -> x", "ORDER", "increasing in the magnitude", "mul(sqrt(zsn(W)), G)",
         modes="ORDER", signs="mag"),
    rule("sqr x -> abs x", "ORDER", "increasing in the magnitude", "mul(sqr(W), G)", modes="ORDER"),
    rule("sqrt x -> abs x", "ORDER", "increasing in the magnitude", "mul(sqrt(W), G)", modes="ORDER"),
    rule("log x -> abs x", "ORDER", "increasing in the magnitude", "mul(log(W), G)",
         modes="ORDER", signs="plain"),
    rule("mms neg x -> neg mms x", "REAL", "mms(−x) = 1 − mms(x), a shift", "mul(W, mms(neg(G)))",
         modes="SHIFT"),
    rule("mul exp a exp b -> exp add a b", "REAL", "eᵃ·eᵇ = eᵃ⁺ᵇ"),
)
ROW_RULES = (rule("rrow x -> x", "ORDER", "one positive factor per row", "add(rrow(W), G)", modes="ORDER"),)

# Products ---------------------------------------------------------------------------------------------------

Powers = dict[Node, tuple[Fraction, bool]]  # base -> exponent of its magnitude, and whether its sign counts


@lru_cache(maxsize=1 << 14)
def _factors(t: Node) -> tuple[int, tuple]:
    """(±1, items): t = ± Π |u|^e · Π sgn(u). Bases proven >= 0 never carry a sign."""
    op = t[0] if not isinstance(t, str) else ""
    if op == "neg":
        outer, items = _factors(t[1])
        return -outer, items
    if op in ("sqr", "pow", "sqrt", "abs"):
        factor = {"sqrt": Fraction(1, 2), "abs": Fraction(1)}.get(op, Fraction(2))
        return 1, tuple((u, (e * factor, False)) for u, (e, _) in _factors(t[1])[1])
    if op == "mul":
        (outer, left), (other, right) = _factors(t[1]), _factors(t[2])
        powers: Powers = dict(left)
        for u, (e, odd) in right:
            known, parity = powers.get(u, (Fraction(0), False))
            powers[u] = (known + e, parity != odd)
        return outer * other, tuple(powers.items())
    return 1, ((t, (Fraction(1), sign(t) != 1)),)


def _chain(op: str, terms: list[Node]) -> Node:
    """Right-nested, smallest first: stable under sorting of operands."""
    first, *rest = sorted(terms, key=order_key)
    return (op, first, _chain(op, rest)) if rest else first


def _written(outer: int, powers: Powers, signs_seen: bool) -> Node:
    """The smallest tree of a monomial: exponents in binary, by Horner's scheme from both ends."""
    bits: dict[int, list[Node]] = {}
    signed: list[Node] = []
    for u, (e, odd) in powers.items():
        if odd and signs_seen:
            signed.append(u)
            e -= 1  # a base that carries its sign has exponent 1 or more
        scale = e.denominator.bit_length() - 1
        for k, bit in enumerate(reversed(bin(e.numerator)[2:])):
            if bit == "1":
                bits.setdefault(k - scale, []).append(u)
    squares: list[Node] = []  # at most one each: what stands under the squares, and under the roots
    roots: list[Node] = []
    for k in range(max(bits, default=0), 0, -1):
        squares = [("sqr", _chain("mul", bits.get(k, []) + squares))]
    for k in range(min(bits, default=0), 0):
        roots = [("sqrt", _chain("mul", bits.get(k, []) + roots))]
    plain = [u for u in bits.get(0, []) if sign(u) == 1 or not signs_seen]
    unsigned = [u for u in bits.get(0, []) if u not in plain]
    parts = plain + signed + ([("abs", _chain("mul", unsigned))] if unsigned else [])
    t = _chain("mul", parts + squares + roots)
    return ("neg", t) if outer == -1 and signs_seen else t


def _product(t: Node, context: Context) -> Node:
    """The monomial of t as small as it goes; positive constants dropped where a factor is free."""
    if isinstance(t, str) or t[0] not in ("mul", "sqr", "sqrt", "abs"):
        return t
    outer, items = _factors(t)
    powers = {u: p for u, p in items if not (context.mode in SCALED and constant(u) in ("+", "-"))}
    for u, (_, odd) in items:
        outer *= -1 if u not in powers and constant(u) == "-" and odd else 1
    if not powers or not (context.free or max(map(shape, powers)) == shape(t)):
        return t
    if context.sign == "flip":
        outer = 1
    if context.mode == ORDER and (context.sign == "mag" or sign(t) == 1):
        exponents = [e for e, _ in powers.values()]
        unit = Fraction(gcd(*(e.numerator for e in exponents)), 1) / max(e.denominator for e in exponents)
        reduced = [{u: (e / unit / 2**k, False) for u, (e, _) in powers.items()} for k in range(8)
                   if max(exponents) >= unit * 2**k]
    else:
        reduced = [powers]
    return min((_written(outer, p, context.sign != "mag") for p in reduced), key=order_key)


# Sums -------------------------------------------------------------------------------------------------------


def _terms(t: Node, factor: int, terms: dict[Node, int]) -> dict[Node, int]:
    """`terms` (term -> integer factor) plus `factor` times those of t."""
    op = t[0] if not isinstance(t, str) else ""
    if op == "neg":
        return _terms(t[1], -factor, terms)
    if op in ("add", "sub"):
        return _terms(t[2], factor if op == "add" else -factor, _terms(t[1], factor, terms))
    return terms | {t: terms.get(t, 0) + factor}


def _sum(t: Node, context: Context) -> Node:
    """The integer combination of t: like terms joined, what cancels gone, constants where a shift is free."""
    if isinstance(t, str) or t[0] not in ("add", "sub"):
        return t
    shifts = context.mode == SHIFT or (context.mode in (AFFINE, ORDER) and context.sign != "mag")
    unseen = ("0", "+", "-", "?") if shifts else ("0",)
    terms = {u: n for u, n in _terms(t, 1, {}).items() if n and constant(u) not in unseen}
    if not terms or not (context.free or max(map(shape, terms)) == shape(t)):
        return t
    if context.mode in SCALED:
        common = gcd(*terms.values())
        terms = {u: n // common for u, n in terms.items()}
    choices = [terms, {u: -n for u, n in terms.items()}][: 2 if context.sign else 1]
    return min((_combination(c) for c in choices), key=order_key)


def _combination(terms: dict[Node, int]) -> Node:
    plus = [u for u, n in terms.items() for _ in range(n)]
    minus = [u for u, n in terms.items() for _ in range(-n)]
    if not minus:
        return _chain("add", plus)
    return ("sub", _chain("add", plus), _chain("add", minus)) if plus else ("neg", _chain("add", minus))


# Monotone images --------------------------------------------------------------------------------------------


@lru_cache(maxsize=1 << 14)
def monotone(t: Node) -> dict[Node, int]:
    """Subtrees u of which t is a strictly increasing (1) or decreasing (-1) function, within one layer."""
    itself = {t: 1}
    if isinstance(t, str):
        return itself
    op, x, y = t[0], t[1], t[-1]
    if op in ("add", "sub", "mul"):
        return {**itself, **_combined(op, x, y)}
    kind = PRIMITIVES[op].monotone
    if len(t) == 3 and kind != "affine":
        return itself
    if kind == "even" and sign(x) != 1:
        return {**itself, ("abs", x): 1}
    step = {"increasing": 1, "affine": 1, "decreasing": -1, "even": 1}.get(kind)
    if step is None:
        return itself
    return {**{u: d * step for u, d in monotone(x).items()}, **itself}


def _combined(op: str, x: Node, y: Node) -> dict[Node, int]:
    left, right = monotone(x), monotone(y)
    turn = -1 if op == "sub" else 1
    if op in ("add", "sub"):
        if constant(y):
            return left
        if constant(x):
            return {u: turn * d for u, d in right.items()}
        return {u: d for u, d in left.items() if right.get(u) == turn * d}
    for bases, factor in ((left, constant(y)), (right, constant(x))):
        if factor in ("+", "-"):
            return bases if factor == "+" else {u: -d for u, d in bases.items()}
    if sign(x) != 1 or sign(y) != 1:
        return {}
    # of two values >= 0 that grow strictly the product grows strictly
    return {u: d for u, d in left.items() if right.get(u) == d}


def _image(t: Node, context: Context) -> Node:
    if context.mode != ORDER or context.sign:
        return t
    images = monotone(t).items()
    bases = (u if d == 1 else ("neg", u) for u, d in images if context.free or shape(u) == shape(t))
    return min(bases, key=order_key)


def _zero(t: Node, context: Context) -> Node:
    if constant(t) != "0":
        return t
    return {2: ("sub", "W", "W"), 1: ("sub", "X", "X")}.get(shape(t), t)


_STRUCTURAL: tuple[tuple[str, Callable[[Node, Context], Node]], ...] = (
    ("zero", _zero), ("monotone function of one subtree", _image), ("sum as integer combination", _sum),
    ("product as monomial", _product))


def _structural(t: Node, context: Context) -> tuple[str, Node] | None:
    for name, method in _STRUCTURAL:
        new = method(t, context)
        if order_key(new) < order_key(t):
            return name, new
    return None


# Keys -------------------------------------------------------------------------------------------------------

_ANY_WEIGHTS = frozenset({"zsn", "div"})  # of unknown sign, or by a positive factor, whatever W becomes


def _of_first_weights(t: Node) -> bool:
    """Does t take a minimum and span, or sums, of W, whose proofs end where W is updated?"""
    if isinstance(t, str):
        return False
    frozen = PRIMITIVES[t[0]].freeze and t[0] not in _ANY_WEIGHTS
    return frozen and "W" in flat(t) or any(map(_of_first_weights, t[1:]))


def reduced(tree: Tree, group: str) -> tuple[Tree | None, Rewriter]:
    """The canonical form (None: proven invalid on every layer), and the rewriter whose steps led there."""
    known = (*GROUPS, "solver")
    if group not in known:
        raise UsageError(f"unknown comparison group {group!r}{did_you_mean(group, known)}")
    if group == "solver" and _of_first_weights(nested(tree)):
        rewriter = Rewriter(())
        return run(tree, rewriter, Context()), rewriter
    if group != "variant":
        rewriter = Rewriter((*RULES, *RANK_RULES, *(ROW_RULES if group == "row" else ())), _structural)
        return run(tree, rewriter, Context(ORDER, "", True)), rewriter
    if tree.sign != 1:
        raise UsageError("group 'variant' cumulates scores, so it needs a metric that is never negative; "
                         f"{tree} is not proven to be")
    rewriter = Rewriter(tuple(r for r in RULES if r.level == "BIT"))
    form = run(tree, rewriter, Context())
    while form is not None and form[0] == "div":  # one positive factor
        form = Tree(form[form.span(1)])
    return form, rewriter


def canonical(tree: Tree, group: str = "row") -> Tree:
    """The smallest tree found that has the same masks in this comparison group; the tree itself if it is
    proven invalid on every layer. Idempotent, never larger. In floats rules of order break ties: evaluate it.
    """
    return reduced(tree, group)[0] or tree


def rank_key(tree: Tree, group: str = "row") -> Hashable:
    """Equal keys: proven to give the same masks in a comparison group, at any sparsity (the module's claim).

    group: "row" (also for N:M), "layer", "solver" (whatever `obs-iter` compares), "variant" (cumulated
    scores: only bit-identical rewrites and a positive factor). A tree proven invalid on every layer has a key
    of its own, ("invalid", tree). Raises UsageError for an unknown group, and for "variant" with a score not
    proven >= 0.
    """
    form, _ = reduced(tree, group)
    return ("invalid", tuple(tree)) if form is None else (group, tuple(form))
