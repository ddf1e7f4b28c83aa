"""Metrics as nested tuples, ("mul", "W", ("sqrt", "X")), and what is proven of one: sign, shape, constant."""
from __future__ import annotations

from functools import lru_cache

from prunekit.metric.primitives import CONSTANTS, PRIMITIVES, TERMINALS
from prunekit.metric.syntax import fold
from prunekit.metric.tree import Tree

Node = str | tuple  # a terminal, or (operation, operand…)


def nested(tree: Tree) -> Node:
    return fold(tree, lambda s, args: (s, *args) if args else s)


def flat(t: Node) -> tuple[str, ...]:
    return (t,) if isinstance(t, str) else (t[0], *(s for child in t[1:] for s in flat(child)))


@lru_cache(maxsize=1 << 16)
def order_key(t: Node) -> tuple:
    """A total order: size first, then symbols with W before G before X before the operations."""
    symbols = flat(t)
    return len(symbols), tuple((TERMINALS.index(s), "") if s in TERMINALS else (9, s) for s in symbols)


@lru_cache(maxsize=1 << 16)
def sign(t: Node) -> int:
    """1: proven >= 0, -1: proven <= 0, 0: unknown."""
    return 1 if isinstance(t, str) else PRIMITIVES[t[0]].sign(*map(sign, t[1:]))


@lru_cache(maxsize=1 << 16)
def shape(t: Node) -> int:
    """0: (1, 1), 1: (1, in), 2: (out, in)."""
    if isinstance(t, str):
        return 0 if t in CONSTANTS else 1 if t == "X" else 2
    return max(map(shape, t[1:]))


_ENTRYWISE = frozenset({"skp", "tanh", "neg", "rrow", "rcol", "abs", "sqr", "pow", "sqrt", "exp", "log",
                        "add", "sub", "mul", "ediv"})  # constant in, constant out


@lru_cache(maxsize=1 << 16)
def constant(t: Node) -> str:
    """"" not proven constant over the matrix; else the sign of the constant: "0", "+", "-" or "?"."""
    if isinstance(t, str):
        return "+" if t in CONSTANTS else ""
    op, *operands = t
    a, b = constant(operands[0]), constant(operands[-1])
    if (op == "sub" and operands[0] == operands[1]) or (op in ("mul", "ediv") and "0" in (a, b)):
        return "0"
    if op == "div":
        return a
    if "" in (a, b) or op not in _ENTRYWISE:
        return ""
    if op in ("skp", "tanh", "neg", "rrow", "rcol"):
        return {"+": "-", "-": "+"}.get(a, a) if op == "neg" else a
    if op in ("abs", "sqr", "pow", "sqrt"):
        return {"-": "+"}.get(a, a)
    if op == "exp" or (op == "mul" and a == b and a in "+-") or (op == "add" and a == b):
        return a if op == "add" else "+"
    return "-" if (op == "log" and a == "0") or (op == "mul" and {a, b} == {"+", "-"}) else "?"


class StaticallyInvalid(Exception):
    """Proven constant or undefined on every layer."""


def check_defined(t: Node) -> None:
    """StaticallyInvalid if this operation is undefined everywhere (min-max of a constant, a norm of 0)."""
    if isinstance(t, str):
        return
    if (t[0] in ("mms", "zsn") and constant(t[1])) or (t[0] == "div" and constant(t[2]) == "0"):
        raise StaticallyInvalid
