"""A metric as a tree: an immutable prefix tuple of symbols, its checks, and its value on a layer.

`Tree.parse("mul(abs(mul(W, W)), mms(G))")` is the tuple ("mul", "abs", "mul", "W", "W", "mms", "G"). Reading
and writing (text, infix, JSON, LaTeX) is in `syntax.py`, the operations in `primitives.py`.
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Self

from prunekit.errors import UsageError
from prunekit.metric import drawing, syntax
from prunekit.metric.primitives import CONSTANTS, PRIMITIVES, TERMINALS, Tensor, arity
from prunekit.metric.syntax import MAX_SIZE

MAX_DEPTH = 64  # edges from the root to the deepest leaf


class Tree(tuple):
    """An expression over W, G and X. Hashable, picklable; `tree[tree.span(i)]` is a subtree's tuple.

    Raises UsageError on an unknown symbol, a wrong number of operands, or more than MAX_SIZE nodes or
    MAX_DEPTH levels.
    """

    __slots__ = ()

    def __new__(cls, symbols: Iterable[str]) -> Self:
        self = super().__new__(cls, symbols)
        if not self or len(self) > MAX_SIZE:
            raise UsageError(f"a metric has 1 to {MAX_SIZE} nodes, this one has {len(self)}")
        heights: list[int] = []
        for symbol in reversed(self):
            if not isinstance(symbol, str):
                raise UsageError(f"a metric's nodes are names such as 'mul' or 'W', not {symbol!r:.60}")
            n = arity(symbol)
            if n > len(heights):
                raise UsageError(f"'{symbol}' takes {n} operand{'s'[:n != 1]}, here it has {len(heights)}")
            heights.append(1 + max([heights.pop() for _ in range(n)], default=-1))
        if len(heights) != 1:
            raise UsageError(f"'{' '.join(self[:8])}' is not one expression but {len(heights)}")
        if heights[0] > MAX_DEPTH:
            raise UsageError(f"a metric has at most {MAX_DEPTH} levels, this one has {heights[0]}")
        return self

    # Reading and writing ------------------------------------------------------------------------------------

    @classmethod
    def parse(cls, source: str) -> Tree:
        """From text (`mul(W, sqrt(X))`), infix (`|W*W| * mms(G)`) or a mixture; see `syntax.parse`."""
        return _read(source) if isinstance(source, str) else cls(syntax.parse(source))

    @classmethod
    def from_json(cls, source: Any) -> Tree:
        """From a path or a dict in the reference's schema {"data", "left", "right"}: `syntax.from_json`."""
        return cls(syntax.from_json(source))

    def to_json(self, path: Any = None, meta: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The reference's schema, also written to `path` if given; `meta` goes under "meta" of the root."""
        return syntax.to_json(self, path, meta)

    def __str__(self) -> str:
        """The canonical text form: `mul(abs(mul(W, W)), mms(G))`."""
        return syntax.fold(self, lambda s, args: f"{s}({', '.join(args)})" if args else s)

    def __repr__(self) -> str:
        return f"Tree.parse({str(self)!r})"

    def infix(self) -> str:
        """`|W * W| * mms(G)`; `/` is division by the norm, `./` element by element. `parse` reads it back."""
        return syntax.infix(self)

    def latex(self) -> str:
        """LaTeX of the expression, for math mode."""
        return syntax.latex(self)

    def ascii(self) -> str:
        """The tree drawn with lines, one node per text line."""
        return drawing.ascii(self)

    def draw(self, ax: Any, fontsize: float = 11) -> Any:
        """Draw on matplotlib axes (colours are safe for colour blindness); returns the axes."""
        return drawing.draw(self, ax, fontsize)

    def _repr_latex_(self) -> str:
        return f"${self.latex()}$"

    # Structure ----------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Number of nodes."""
        return len(self)

    @property
    def depth(self) -> int:
        """Edges from the root to the deepest leaf (a terminal alone has depth 0)."""
        return syntax.fold(self, lambda s, args: 1 + max(args, default=-1))

    @property
    def terminals(self) -> frozenset[str]:
        """Which of W, G and X occur."""
        return frozenset(self) & frozenset(TERMINALS)

    @property
    def sign(self) -> int:
        """1: the score is proven >= 0, -1: proven <= 0, 0: neither."""
        return syntax.fold(self, lambda s, args: PRIMITIVES[s].sign(*args) if args else 1)

    @property
    def homogeneous(self) -> bool:
        """True: masks provably stay when G or X is multiplied by a positive number (exact arithmetic, groups
        row and layer). False: not proven; such a metric depends on n, seqlen and scale of the collected
        statistics."""
        return syntax.fold(self, _scaling) is not None

    def span(self, index: int) -> slice:
        """The slice of the subtree that starts at a node index."""
        need, end = 1, index
        while need:
            need += arity(self[end]) - 1
            end += 1
        return slice(index, end)

    def replace(self, index: int, other: tuple[str, ...]) -> Tree:
        """A new tree in which the subtree at `index` is `other`."""
        span = self.span(index)
        return Tree((*self[:span.start], *other, *self[span.stop:]))

    # Value --------------------------------------------------------------------------------------------------

    def score(self, W: Tensor, G: Tensor = None, X: Tensor = None, *, check: bool = True) -> Tensor:
        """S (out, in), float32: what a mask ranks. W (out, in) of any sign and dtype (its absolute value is
        used), G (out, in), X (1, in) or (in,). Evaluated in float32.

        Raises UsageError if G or X is missing or of the wrong shape and, with `check`, if the score is
        invalid (not finite, or constant). With `check=False` use `defect(score)` to ask.
        """
        inputs = _inputs(self, W, G, X)
        return _finish(self, evaluate(self, inputs).score, inputs["W"].shape, check)

    def bind(self, W: Tensor, G: Tensor = None, X: Tensor = None) -> BoundTree:
        """Freeze this layer's matrix-wide values (min, max, mean, std, norms), to score column slices."""
        inputs = _inputs(self, W, G, X)
        return BoundTree(self, inputs, evaluate(self, inputs, only_frozen=True).frozen)


@lru_cache(maxsize=1024)  # a search reads every text several times, soon after another
def _read(source: str) -> Tree:
    return Tree(syntax.parse(source))


@dataclass(frozen=True)
class BoundTree:
    """A tree with the matrix-wide values of one layer: column slices score as within the whole layer."""

    tree: Tree
    inputs: Mapping[str, Tensor]
    frozen: Mapping[int, tuple[Tensor, ...]]

    def score(self, columns: slice = slice(None), W: Tensor = None, *, check: bool = False) -> Tensor:
        """S (out, columns), float32, of a slice of columns; `W` (out, columns) replaces the weights bound
        (updated ones, say: the matrix-wide values stay those of the layer as bound). `check` as in
        `Tree.score`."""
        # contiguous: vectorised exp, log and tanh may differ in the last bit on strided memory
        inputs = {k: v[:, columns].contiguous() for k, v in self.inputs.items()}
        if W is not None:
            inputs["W"] = W.to(inputs["W"]).abs().contiguous()
        width = self.inputs["W"].shape[1]
        frozen = {i: tuple(v[:, columns] if v.dim() == 2 and v.shape[1] == width else v for v in values)
                  for i, values in self.frozen.items()}
        return _finish(self.tree, evaluate(self.tree, inputs, frozen).score, inputs["W"].shape, check)


class _Plan(NamedTuple):
    """A tree as a list of distinct subexpressions, operands first: (symbol, operand numbers…)."""

    nodes: list[tuple]
    last_use: list[int]
    freezing: frozenset[int]  # the nodes that the matrix-wide values depend on


class Evaluation(NamedTuple):
    score: Tensor  # of broadcastable shape; None if only the frozen values were wanted
    frozen: dict[int, tuple[Tensor, ...]]


@lru_cache(maxsize=4096)
def _plan(tree: tuple[str, ...]) -> _Plan:
    nodes: dict[tuple, int] = {}
    stack: list[int] = []
    for symbol in reversed(tree):
        key = (symbol, *(stack.pop() for _ in range(arity(symbol))))
        stack.append(nodes.setdefault(key, len(nodes)))
    last_use = [len(nodes)] * len(nodes)
    for i, (_, *operands) in enumerate(nodes):
        for n in operands:
            last_use[n] = i
    wanted: set[int] = set()
    for i, (symbol, *operands) in reversed(list(enumerate(nodes))):
        if i in wanted or (operands and PRIMITIVES[symbol].freeze):
            wanted.update(operands)
    return _Plan(list(nodes), last_use, frozenset(wanted))


def evaluate(tree: Tree, inputs: Mapping[str, Tensor], frozen: Mapping[int, tuple] | None = None, *,
             only_frozen: bool = False) -> Evaluation:
    """The value of a tree on tensors as they are (not converted, also float64), each subexpression once.

    inputs: the terminals (W taken as given: pass its absolute value). frozen: matrix-wide values of an
    earlier evaluation, by node of the plan; without, they are computed here. An undefined operation (a norm
    of 0, min-max of a constant) gives NaN everywhere.
    """
    plan = _plan(tuple(tree))
    values: list[Tensor] = [None] * len(plan.nodes)
    wide: dict[int, tuple[Tensor, ...]] = dict(frozen or {})
    for i, (symbol, *operands) in enumerate(plan.nodes):
        if not operands:
            constant = CONSTANTS.get(symbol)
            values[i] = inputs[symbol] if constant is None else inputs["W"].new_full((1, 1), constant)
            continue
        args = [values[n] for n in operands]
        if PRIMITIVES[symbol].freeze and frozen is None:
            wide[i] = PRIMITIVES[symbol].freeze(*args)
        if not only_frozen or i in plan.freezing:
            values[i] = PRIMITIVES[symbol].function(*args, *wide.get(i, ()))
        for n in operands:
            if plan.last_use[n] == i:
                values[n] = None  # give the memory back
    return Evaluation(values[-1], wide)


def defect(score: Tensor) -> str | None:
    """Why a score is no metric: "not finite", "constant", or None if it can be ranked."""
    low, high = (float(v) for v in score.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        return "not finite"
    return "constant" if low == high else None


def _finish(tree: Tree, score: Tensor, shape: tuple[int, int], check: bool) -> Tensor:
    if check and (why := defect(score)):
        raise UsageError(f"invalid metric {tree}: its score is {why} on this layer, so it ranks nothing")
    return score if score.shape == shape else score.expand(shape).contiguous()


def _inputs(tree: Tree, W: Tensor, G: Tensor, X: Tensor) -> dict[str, Tensor]:
    if W.dim() != 2:
        raise UsageError(f"W must be (out, in), not {tuple(W.shape)}")
    inputs = {"W": W.float().abs().contiguous()}  # of int8, -128 has no absolute value
    for name, given in (("G", G), ("X", X)):
        if name not in tree:
            continue
        if given is None:
            needed = "collect gradients first" if name == "G" else "collect calibration statistics first"
            raise UsageError(f"the metric {tree} needs {name}, which was not given: {needed}")
        shape = tuple(W.shape) if name == "G" else (1, W.shape[1])
        if tuple(given.shape) != shape and not (name == "X" and tuple(given.shape) == shape[1:]):
            raise UsageError(f"{name} must be {shape}, not {tuple(given.shape)}")
        inputs[name] = given.to(inputs["W"]).reshape(shape).contiguous()
    return inputs


class _Scale(NamedTuple):
    """How a value answers to X → cX, G → dG: times c^x·d^g (x None: times an unknown positive scalar), and
    shifted by an unknown scalar where `shifted`."""

    x: float | None
    g: float | None
    shifted: bool = False

    def times(self, factor: float) -> _Scale | None:
        if self.shifted:
            return None
        return self if self.x is None else _Scale(self.x * factor, self.g * factor)


_UNKNOWN_SCALE = _Scale(None, None)


def _scaling(symbol: str, args: list[_Scale | None]) -> _Scale | None:
    """One step of `Tree.homogeneous`: None where nothing is known."""
    fixed = _Scale(0.0, 0.0)
    if not args:
        return _Scale(float(symbol == "X"), float(symbol == "G"))
    if symbol == "div" and args[0]:  # by a scalar, whatever its operand does
        return _Scale(None, None, args[0].shifted)
    if None in args:
        return None
    a, b = args[0], args[-1]
    if symbol in ("skp", "neg"):
        return a
    if symbol in ("mms", "zsn"):
        return fixed
    if symbol in ("sqr", "pow", "sqrt"):
        return a.times(0.5 if symbol == "sqrt" else 2.0)
    if symbol == "abs":
        return a.times(1.0)
    if symbol in ("rrow", "rcol") and not a.shifted:
        return fixed
    if symbol in ("add", "sub") and a.x is not None and a[:2] == b[:2]:
        return _Scale(a.x, a.g, a.shifted or b.shifted)
    if symbol in ("mul", "ediv") and not (a.shifted or b.shifted):
        sign = 1 if symbol == "mul" else -1
        return _UNKNOWN_SCALE if a.x is None or b.x is None else _Scale(a.x + sign * b.x, a.g + sign * b.g)
    return fixed if all(v == fixed for v in args) else None
