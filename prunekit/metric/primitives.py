"""The primitives of the metric language: one registry, read by every other module of `prunekit.metric`.

Terminals, per linear layer with weight (out, in); all float32:
  W (out, in)  absolute value of the weight
  G (out, in)  accumulated gradient norm, >= 0
  X (1, in)    mean over sequences of the squared L2 norm of each input column, >= 0
The grammar `reference` has the 15 operations of the published code (lib/gptree.py); `extended` adds
element-wise division, row- and column-relative magnitude (as in RIA, ICLR 2024) and a closed set of positive
constants (closed, so that sampling, mutation and equality stay finite). Functions call tensor methods only:
nothing here imports torch.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prunekit.errors import UsageError, did_you_mean

TERMINALS = ("W", "G", "X")
CONSTANTS = {"0.1": 0.1, "0.5": 0.5, "1": 1.0, "2": 2.0, "10": 10.0, "100": 100.0}
GRAMMARS = ("reference", "extended")
LOG_SHIFT = 0.001
# The reference clamps the argument of exp at 100, where float32 has long been infinite (from 88.73 on), so
# that a tree is invalid there; at 88 it stays finite. Below 88 the two are identical.
EXP_CLAMP = 88.0

Tensor = Any


@dataclass(frozen=True)
class Primitive:
    """One operation: what it computes, how it is written, and what is known of it without evaluating it.

    function: operands, then the values that `freeze` found in them -> result (broadcast shape)
    freeze:   matrix-wide values (0-d, (out, 1) or (1, in)) of the operands, NaN where the operation is
              undefined, so that it makes the whole score NaN; None for element-wise operations
    infix, latex: templates; {0} {1} operands, {p0} {p1} in brackets if they bind weaker, {q0} unless an atom
    binding:  1 sum, 2 product, 3 minus sign, 8 power, 9 atom
    sign:     signs of the operands (1: proven >= 0, -1: proven <= 0, 0: unknown) -> sign of the result
    monotone: "increasing" | "decreasing" | "even" (increasing in the magnitude) | "affine" (positive scale
              and a shift, both matrix-wide, of the first operand) | "none", strictly and in exact arithmetic
    """

    name: str
    arity: int
    function: Callable[..., Tensor]
    infix: str
    latex: str
    sign: Callable[..., int]
    monotone: str = "none"
    freeze: Callable[..., tuple[Tensor, ...]] | None = None
    grammar: str = "reference"
    binding: int = 9

    def __call__(self, *operands: Tensor) -> Tensor:
        """The value on whole matrices."""
        return self.function(*operands, *(self.freeze(*operands) if self.freeze else ()))


def _positive(value: Tensor) -> Tensor:
    return value.where((value > 0) & (value < math.inf), math.nan)


def _shape(x: Tensor, y: Tensor) -> tuple[int, int]:
    return max(x.shape[0], y.shape[0]), max(x.shape[1], y.shape[1])


def _range(x: Tensor) -> tuple[Tensor, Tensor]:
    low, high = x.aminmax()
    return low, _positive(high - low)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    low, high = x.aminmax()  # the std of a constant matrix may be rounding noise instead of 0
    return x.mean(), _positive(x.std(correction=min(1, x.numel() - 1))).where(low < high, math.nan)


def _norm(x: Tensor, y: Tensor) -> tuple[Tensor]:
    return (_positive(y.expand(_shape(x, y)).norm()),)  # the norm of y as broadcast against x


def _divide(x: Tensor, y: Tensor, norm: Tensor) -> Tensor:
    return x.expand(_shape(x, y)) / norm


def _nonzero(x: Tensor) -> Tensor:
    return x.where(x != 0, 1.0)


PRIMITIVES: dict[str, Primitive] = {p.name: p for p in (
    Primitive("sqr", 1, lambda x: x * x, "sqr({0})", "{q0}^2", lambda a: 1, "even"),
    Primitive("neg", 1, lambda x: -x, "-{p0}", "-{p0}", lambda a: -a, "decreasing", binding=3),
    Primitive("abs", 1, lambda x: x.abs(), "|{0}|", r"\left|{0}\right|", lambda a: 1, "even"),
    Primitive("log", 1, lambda x: x.abs().add_(LOG_SHIFT).log_(), "log({0})",
              r"\ln\left(\left|{0}\right| + 0.001\right)", lambda a: 0, "even"),
    Primitive("exp", 1, lambda x: x.clamp(max=EXP_CLAMP).exp_(), "exp({0})", r"\exp\left({0}\right)",
              lambda a: 1, "increasing"),
    Primitive("sqrt", 1, lambda x: x.abs().sqrt_(), "sqrt({0})", r"\sqrt{{\left|{0}\right|}}", lambda a: 1,
              "even"),
    Primitive("tanh", 1, lambda x: x.tanh(), "tanh({0})", r"\tanh\left({0}\right)", lambda a: a,
              "increasing"),
    Primitive("pow", 1, lambda x: x.pow(2), "pow({0})", "{q0}^2", lambda a: 1, "even"),  # a duplicate of sqr
    Primitive("skp", 1, lambda x: x, "skp({0})", "{0}", lambda a: a, "affine"),
    # (x - min x)/(max x - min x) and (x - mean x)/std x (n - 1), over the matrix
    Primitive("mms", 1, lambda x, low, span: (x - low).div_(span), "mms({0})",
              r"\operatorname{{mms}}\left({0}\right)", lambda a: 1, "affine", _range),
    Primitive("zsn", 1, lambda x, mean, std: (x - mean).div_(std), "zsn({0})",
              r"\operatorname{{zsn}}\left({0}\right)", lambda a: 0, "affine", _moments),
    Primitive("add", 2, lambda x, y: x + y, "{p0} + {p1}", "{p0} + {p1}", lambda a, b: a if a == b else 0,
              "increasing", binding=1),
    Primitive("sub", 2, lambda x, y: x - y, "{p0} - {p1}", "{p0} - {p1}", lambda a, b: a if a == -b else 0,
              binding=1),
    Primitive("mul", 2, lambda x, y: x * y, "{p0} * {p1}", r"{p0} \cdot {p1}", lambda a, b: a * b, binding=2),
    # by ||y||_2, one scalar norm over y broadcast against x; element by element, 0 where y = 0
    Primitive("div", 2, _divide, "{p0} / {p1}", r"\frac{{{0}}}{{\left\| {1} \right\|_2}}", lambda a, b: a,
              "affine", _norm, binding=2),
    Primitive("ediv", 2, lambda x, y: (x / _nonzero(y)).mul_(y != 0), "{p0} ./ {p1}", r"\frac{{{0}}}{{{1}}}",
              lambda a, b: a * b, grammar="extended", binding=2),
    # by the sum of |x| over its row, or column (0 where that is 0)
    Primitive("rrow", 1, lambda x, total: x / total, "rrow({0})", r"\operatorname{{rrow}}\left({0}\right)",
              lambda a: a, freeze=lambda x: (_nonzero(x.abs().sum(1, keepdim=True)),), grammar="extended"),
    Primitive("rcol", 1, lambda x, total: x / total, "rcol({0})", r"\operatorname{{rcol}}\left({0}\right)",
              lambda a: a, freeze=lambda x: (_nonzero(x.abs().sum(0, keepdim=True)),), grammar="extended"),
)}


def arity(symbol: str) -> int:
    """Number of operands of a symbol; UsageError for an unknown one, naming the nearest."""
    if symbol in TERMINALS or symbol in CONSTANTS:
        return 0
    if symbol in PRIMITIVES:
        return PRIMITIVES[symbol].arity
    known = [*PRIMITIVES, *TERMINALS, *CONSTANTS]
    hint = next((f" (did you mean '{k}'?)" for k in known if k.lower() == symbol.lower()), None)
    raise UsageError(f"unknown symbol '{symbol[:40]}' in a metric{hint or did_you_mean(symbol[:40], known)}")


def symbols(grammar: str = "reference") -> tuple[str, ...]:
    """Every symbol of a grammar: operations, then terminals, then constants."""
    if grammar not in GRAMMARS:
        raise UsageError(f"unknown grammar '{grammar}'{did_you_mean(grammar, GRAMMARS)}")
    wide = grammar == "extended"
    operations = (p.name for p in PRIMITIVES.values() if wide or p.grammar == "reference")
    return (*operations, *TERMINALS, *(CONSTANTS if wide else ()))
