"""What a parent can see of a value (its `Context`), and the table of rules with guards and proofs."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from prunekit.metric.facts import Node, shape, sign
from prunekit.metric.primitives import PRIMITIVES, arity

EXACT, SHIFT, SCALE, AFFINE, ORDER = "EXACT", "SHIFT", "SCALE", "AFFINE", "ORDER"
SCALED = frozenset({SCALE, AFFINE, ORDER})


class Context(NamedTuple):
    """A value may be replaced by any other that is equal in this sense.

    mode: EXACT; SHIFT: plus a scalar; SCALE: times a positive scalar; AFFINE: both; ORDER: a strictly
    increasing function of it within a comparison group. sign "mag": only the magnitude of each entry is seen
    (mode then speaks of the magnitudes); "flip": the sign of the whole matrix is not seen. free: a value
    constant over the rows may stand as (1, in), since nothing above counts entries.
    """

    mode: str = EXACT
    sign: str = ""
    free: bool = False


def operand_contexts(t: tuple, context: Context) -> list[Context]:
    """What an operation in a context can see of each of its operands."""
    op, (mode, seen, free) = t[0], context
    scaled = mode in SCALED
    flip = "flip" if seen else ""
    if op in ("skp", "neg"):
        return [context]
    if op == "mms":  # >= 0, and unchanged by a positive affine map of its operand
        keep = seen if mode == AFFINE else ""
        return [Context(ORDER, "", free) if mode == ORDER else Context(AFFINE, keep, free)]
    if op == "zsn":  # its std counts entries; zsn(−x) = −zsn(x)
        ordered = (mode, seen) == (ORDER, "")
        return [Context(ORDER, "", free) if ordered else Context(AFFINE, flip, free and scaled)]
    if op == "exp":  # a factor outside is a shift inside
        return [Context(ORDER if mode == ORDER else SHIFT if scaled else EXACT, "", free)]
    if op == "tanh":
        return [Context(ORDER if mode == ORDER else EXACT, seen, free)]
    if op == "log":
        return [Context(ORDER if (mode, seen) == (ORDER, "") else EXACT, "mag", free)]
    if op in ("sqr", "pow", "sqrt", "abs"):
        return [Context(ORDER if mode == ORDER else SCALE if scaled else EXACT, "mag", free)]
    if op in ("add", "sub"):
        shifts = mode == SHIFT or (mode in (AFFINE, ORDER) and seen != "mag")
        return [Context(SHIFT if shifts else EXACT, "", free)] * 2
    if op in ("mul", "ediv"):
        return [Context(SCALE if scaled else EXACT, seen, free)] * 2
    if op == "div":
        return [Context(mode, seen, False), Context(EXACT, "mag", False)]
    if op in ("rrow", "rcol"):
        return [Context(SCALE, seen, False)]
    return [Context()] * (len(t) - 1)


@dataclass(frozen=True)
class Rule:
    """`pattern` → `result` in prefix notation (small letters stand for any subtree), where `guard` holds of
    them and the context's mode and sign are among `modes` and `signs`. REAL and ORDER rules also keep the
    shape. `counterexample`: a tree whose mask changes when the guard, the modes or the shape are ignored.
    """

    name: str
    level: str
    pattern: Node
    result: Node
    proof: str
    guard: Callable[[dict[str, Node]], bool] | None = None
    modes: frozenset[str] | None = None
    signs: frozenset[str] | None = None
    counterexample: str = ""

    def apply(self, t: Node, context: Context, guarded: bool = True) -> Node | None:
        """The rewritten expression, or None where the rule does not apply."""
        if guarded and ((self.modes and context.mode not in self.modes)
                        or (self.signs is not None and context.sign not in self.signs)):
            return None
        for parts in _match(self.pattern, t, {}):
            new = _fill(self.result, parts)
            keeps_shape = self.level == "BIT" or context.free or shape(new) == shape(t)
            if not guarded or (keeps_shape and (self.guard is None or self.guard(parts))):
                return new
        return None


def _pattern(text: str) -> Node:
    stack: list[Node] = []
    for word in reversed(text.split()):
        operands = [stack.pop() for _ in range(arity(word) if word in PRIMITIVES else 0)]
        stack.append((word, *operands) if operands else word)
    return stack[0]


def _match(pattern: Node, t: Node, parts: dict[str, Node]) -> Iterator[dict[str, Node]]:
    """Every way in which t is the pattern: `parts`, what each small letter stands for."""
    if isinstance(pattern, str):
        if parts.get(pattern, t) == t:
            yield {**parts, pattern: t}
    elif not isinstance(t, str) and t[0] == pattern[0]:
        for operands in (t[1:], t[:0:-1]) if t[0] in ("add", "mul") else (t[1:],):
            for first in _match(pattern[1], operands[0], parts):
                yield from _match(pattern[2], operands[1], first) if len(operands) == 2 else (first,)


def _fill(result: Node, parts: dict[str, Node]) -> Node:
    return parts[result] if isinstance(result, str) else (result[0], *(_fill(r, parts) for r in result[1:]))


def rule(line: str, level: str, proof: str, counterexample: str = "", guard: Callable | None = None,
         modes: str = "", signs: str | None = None) -> Rule:
    """A rule from `pattern -> result` in prefix notation; modes and signs ("plain": none) with blanks."""
    left, right = line.split("->")
    name = f"{line}, {signs} seen" if signs and signs != "plain" else line
    seen = None if signs is None else frozenset("" if s == "plain" else s for s in signs.split())
    return Rule(name, level, _pattern(left), _pattern(right), proof, guard, frozenset(modes.split()) or None,
                seen, counterexample)


def _nonnegative(parts: dict[str, Node]) -> bool:
    return sign(parts["x"]) == 1


def _nonpositive(parts: dict[str, Node]) -> bool:
    return sign(parts["x"]) == -1


def _same_count(parts: dict[str, Node]) -> bool:
    return shape(parts["x"]) >= shape(parts["y"])


RULES: tuple[Rule, ...] = (
    rule("skp x -> x", "BIT", "identity"),
    rule("pow x -> sqr x", "BIT", "both are x·x"),
    rule("mul x x -> sqr x", "BIT", "sqr is x·x"),
    rule("neg neg x -> x", "BIT", "only the sign bit moves"),
    rule("neg sub a b -> sub b a", "BIT", "rounding is symmetric in sign"),
    rule("abs abs x -> abs x", "BIT", "idempotent"),
    rule("abs neg x -> abs x", "BIT", "the sign bit is dropped"),
    *(rule(f"{f} {g} x -> {f} x", "BIT", "the operation takes |x| first, or squares")
      for f in ("sqr", "sqrt", "log") for g in ("neg", "abs")),
    rule("abs x -> x", "BIT", "x >= 0", "abs(zsn(W))", _nonnegative),
    rule("abs x -> neg x", "BIT", "x <= 0", "abs(W)", _nonpositive),
    rule("tanh neg x -> neg tanh x", "BIT", "odd, and computed so"),
    rule("zsn neg x -> neg zsn x", "BIT", "mean changes sign, std does not, rounding is symmetric"),
    rule("mul neg a neg b -> mul a b", "BIT", "signs cancel"),
    rule("mul neg a b -> neg mul a b", "BIT", "rounding is symmetric in sign"),
    rule("div neg a b -> neg div a b", "BIT", "the norm is positive, rounding is symmetric in sign"),
    rule("div a neg b -> div a b", "BIT", "a norm takes magnitudes"),
    rule("div a abs b -> div a b", "BIT", "a norm takes magnitudes"),
    rule("add a neg b -> sub a b", "BIT", "IEEE subtraction"),
    rule("sub a neg b -> add a b", "BIT", "IEEE subtraction"),
    rule("mms mms x -> mms x", "BIT", "min is exactly 0 and max exactly 1"),
    rule("sqrt sqr x -> abs x", "BIT", "the root of a rounded square rounds back (no under- or overflow)"),
    rule("sqr sqrt x -> abs x", "REAL", "(√|x|)² = |x|"),
    rule("zsn zsn x -> zsn x", "REAL", "mean 0 and std 1 already"),
    rule("mms zsn x -> mms x", "REAL", "min-max undoes a positive affine map"),
    rule("zsn mms x -> zsn x", "REAL", "z-score undoes a positive affine map"),
    rule("mms div x y -> mms x", "REAL", "min-max undoes a positive factor",
         "add(W, div(X, mms(div(X, G))))"),
    rule("zsn div x y -> zsn x", "REAL", "z-score undoes a positive factor; its std counts entries",
         "sub(zsn(zsn(div(log(X), pow(G)))), log(W))", _same_count),
    rule("add sub a b b -> a", "REAL", "(a − b) + b = a", "add(div(X, add(sub(X, W), W)), W)"),
    rule("sub add a b b -> a", "REAL", "(a + b) − b = a", "add(div(X, sub(add(X, W), W)), W)"),
    rule("sub a sub a b -> b", "REAL", "a − (a − b) = b", "add(div(X, sub(W, sub(W, X))), W)"),
    rule("add x sub a a -> x", "REAL", "a − a = 0", "add(div(X, add(X, sub(W, W))), W)"),
    rule("sub x sub a a -> x", "REAL", "a − a = 0", "add(div(X, sub(X, sub(W, W))), W)"),
    rule("exp log x -> abs x", "ORDER", "exp(ln(|x| + 0.001)) = |x| + 0.001, a shift", "mul(exp(log(W)), G)",
         modes="SHIFT AFFINE ORDER"),
    rule("log exp x -> x", "ORDER", "ln(eˣ + 0.001) increases strictly with x",
         "mul(log(exp(neg(W))), G)", modes="ORDER", signs="plain"),
)
# What summaries of the paper name, without guards: for the ablation only.
NAIVE: tuple[Rule, ...] = tuple(rule(line, "NAIVE", "none") for line in (
    "skp x -> x", "neg neg x -> x", "exp log x -> x", "log exp x -> x", "sqrt sqr x -> x", "sqr sqrt x -> x",
    "sqrt pow x -> x", "pow sqrt x -> x", "add sub a b b -> a", "sub add a b b -> a", "mul div a b b -> a",
    "div mul a b b -> a"))
# Rewrites that look right and are wrong; each with a tree whose mask it changes.
NEVER: tuple[Rule, ...] = (
    rule("mul div a b b -> a", "NEVER", "div is by a scalar norm: b stays as a factor", "mul(div(W, X), X)"),
    rule("div mul a b b -> a", "NEVER", "div is by a scalar norm: b stays as a factor", "div(mul(W, X), X)"),
    rule("div a b -> b", "NEVER", "the norm alone is a constant: div(a, a) is a/‖a‖, not 1", "div(W, G)"),
    rule("sqrt sqr x -> x", "NEVER", "gives |x|: the whole order can be inverted", "sqrt(sqr(neg(W)))"),
    rule("sqr sqrt x -> x", "NEVER", "gives |x|: the whole order can be inverted", "sqr(sqrt(neg(W)))"),
)
