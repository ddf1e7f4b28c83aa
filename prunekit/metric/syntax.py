"""How a tree is read and written: text, infix, JSON, LaTeX. All on prefix tuples of symbols.

Reading is strict and bounded (length, nesting, nodes), by a hand-written parser over the registry's names: a
hostile file or string ends in one UsageError.
"""
from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prunekit.errors import UsageError
from prunekit.files import read_json, replacing_file
from prunekit.metric.primitives import PRIMITIVES, arity

MAX_CHARACTERS = 20_000
MAX_BYTES = 1_000_000  # of a JSON file
MAX_NESTING = 80  # brackets, |x| and minus signs: far below Python's own limit of recursion
MAX_SIZE = 255  # nodes

_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d+)?)|([A-Za-z_]\w*)|(\./|[-+*/(),|]))")
_INFIX = {"+": ("add", 1), "-": ("sub", 1), "*": ("mul", 2), "/": ("div", 2), "./": ("ediv", 2)}


def fold(tree: tuple[str, ...], step: Callable[[str, list], Any]) -> Any:
    """Bottom-up: `step(symbol, results of its operands)`; the value at the root."""
    stack: list[Any] = []
    for symbol in reversed(tree):
        stack.append(step(symbol, [stack.pop() for _ in range(arity(symbol))]))
    return stack[0]


# Text and infix ---------------------------------------------------------------------------------------------


def parse(source: str) -> tuple[str, ...]:
    """Prefix tuple of a text such as `mul(abs(mul(W, W)), mms(G))` or `|W*W| * mms(G)`.

    Infix: `+ - *`, `/` (div, by the norm), `./` (ediv), a leading minus (neg, binds tightest), `|x|` (abs).
    Raises UsageError, with the nearest known symbol, on anything else.
    """
    if not isinstance(source, str):
        raise UsageError(f"a metric is text such as 'mul(W, sqrt(X))', not {type(source).__name__}")
    if len(source) > MAX_CHARACTERS:
        raise UsageError(f"a metric's text has {MAX_CHARACTERS} characters or fewer, not {len(source)}")
    parser = _Parser(source)
    tree = parser.sum()
    if parser.token:
        raise parser.error("an operator or the end")
    return tuple(tree)


class _Parser:
    def __init__(self, source: str) -> None:
        self.source, self.position, self.nesting = source, 0, 0
        self.advance()

    def advance(self) -> str:
        """Step to the next token; returns the one left behind."""
        left = getattr(self, "token", "")
        match = _TOKEN.match(self.source, self.position)
        if match is None and self.source[self.position:].strip():
            rest = self.source[self.position:].strip()
            raise UsageError(f"cannot read {rest[:20]!r} in the metric {self.source[:60]!r}")
        self.token = match.group(0).strip() if match else ""
        self.position = match.end() if match else len(self.source)
        return left

    def error(self, wanted: str) -> UsageError:
        here = repr(self.token) if self.token else "the end"
        return UsageError(f"expected {wanted} but found {here} in the metric {self.source[:60]!r}")

    def count(self, symbol: str, operands: int) -> UsageError:
        noun = "operand" if operands == 1 else "operands"
        return UsageError(f"'{symbol}' takes {operands} {noun} in the metric {self.source[:60]!r}")

    def expect(self, token: str) -> None:
        if self.token != token:
            raise self.error(repr(token))
        self.advance()

    def sum(self, binding: int = 1) -> list[str]:
        """Operators of this binding, left to right, over operands that bind tighter."""
        operand = self.factor if binding == 2 else lambda: self.sum(2)
        left = operand()
        while _INFIX.get(self.token, ("", 0))[1] == binding:
            left = [_INFIX[self.advance()][0], *left, *operand()]
            if len(left) > MAX_SIZE:
                raise UsageError(f"a metric has at most {MAX_SIZE} nodes")
        return left

    def factor(self) -> list[str]:
        self.nesting += 1
        if self.nesting > MAX_NESTING:
            raise UsageError(f"the metric {self.source[:40]!r}… is nested deeper than {MAX_NESTING} levels")
        try:
            return self.atom()
        finally:
            self.nesting -= 1

    def atom(self) -> list[str]:
        if self.token in ("-", "(", "|"):
            opened = self.advance()
            if opened == "-":
                return ["neg", *self.factor()]
            inner = self.sum()
            self.expect(")" if opened == "(" else "|")
            return inner if opened == "(" else ["abs", *inner]
        if not self.token or not (self.token[0].isalnum() or self.token[0] == "_"):
            raise self.error("an operand")
        symbol = self.advance()
        return [symbol, *self.arguments(symbol, arity(symbol))]

    def arguments(self, symbol: str, count: int) -> list[str]:
        if not count:
            if self.token == "(":
                raise self.count(symbol, count)
            return []
        self.expect("(")
        operands = self.sum()
        for _ in range(count - 1):
            if self.token != ",":
                raise self.count(symbol, count)
            self.advance()
            operands += self.sum()
        if self.token == ",":
            raise self.count(symbol, count)
        self.expect(")")
        return operands


def _written(template: str, own: int, args: list[tuple[str, int]], left: str, right: str) -> tuple[str, int]:
    """One node from its template: operands that bind weaker than it stand in parentheses."""
    fields: dict[str, str] = {}
    for i, (written, binding) in enumerate(args):
        wrapped = f"{left}{written}{right}"
        fields[f"p{i}"] = written if binding >= own + (i > 0) else wrapped
        fields[f"q{i}"] = written if binding == 9 else wrapped
    return template.format(*(written for written, _ in args), **fields), own


def infix(tree: tuple[str, ...]) -> str:
    def step(symbol: str, args: list[tuple[str, int]]) -> tuple[str, int]:
        if not args:
            return symbol, 9
        return _written(PRIMITIVES[symbol].infix, PRIMITIVES[symbol].binding, args, "(", ")")

    return fold(tree, step)[0]


def latex(tree: tuple[str, ...]) -> str:
    def step(symbol: str, args: list[tuple[str, int, int]]) -> tuple[str, int, int]:
        if not args:
            return symbol, 9, 1
        if symbol == "skp":
            return args[0]
        primitive = PRIMITIVES[symbol]
        template = primitive.latex
        if symbol != "abs" and args[0][2] == 1:  # no bars around what is never negative
            template = template.replace(r"\left|{0}\right|", "{0}")
        written, binding = _written(template, primitive.binding, [a[:2] for a in args], r"\left(", r"\right)")
        return written, 8 if symbol in ("sqr", "pow") else binding, primitive.sign(*(a[2] for a in args))

    return fold(tree, step)[0]


# JSON -------------------------------------------------------------------------------------------------------


def to_json(tree: tuple[str, ...], path: Any = None, meta: Mapping[str, Any] | None = None) -> dict[str, Any]:
    root = fold(tree, lambda s, args: {"data": s, **dict(zip(("left", "right"), args, strict=False))})
    if meta:
        root["meta"] = dict(meta)
    if path is not None:
        with replacing_file(path) as file:
            file.write_text(json.dumps(root, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return root


def from_json(source: Any) -> tuple[str, ...]:
    """Prefix tuple of {"data": name, "left": …, "right": …} (a unary operation's operand is `left`).

    `source` is a path or the dict itself. The root may carry "meta", which is ignored. Raises UsageError on a
    file that cannot be read, is larger than MAX_BYTES or is no JSON, and on anything that is not such a tree.
    """
    where = "the tree" if isinstance(source, Mapping) else f"tree file '{source}'"
    root = source if isinstance(source, Mapping) else _read(source)
    symbols: list[str] = []
    stack: list[Any] = [root]
    while stack:
        node = stack.pop()
        if not isinstance(node, Mapping) or not isinstance(node.get("data"), str):
            raise UsageError(f"{where}: a node must be an object with a name under 'data', {_sample(node)}")
        symbol = node["data"]
        children = [key for key in ("left", "right") if key in node]
        extra = set(node) - {"data", "left", "right"} - ({"meta"} if node is root else set())
        if extra:
            raise UsageError(f"{where}: unknown key {min(map(str, extra))[:40]!r} (known: data, left, right)")
        if children != ["left", "right"][:arity(symbol)]:
            needed = ("no operand", "1 operand (left)", "2 operands (left, then right)")[arity(symbol)]
            raise UsageError(f"{where}: '{symbol}' takes {needed}, here {' and '.join(children) or 'none'}")
        symbols.append(symbol)
        if len(symbols) > MAX_SIZE:
            raise UsageError(f"{where} has more than {MAX_SIZE} nodes, or refers to itself")
        stack.extend(node[key] for key in reversed(children))
    return tuple(symbols)


def _sample(node: Any) -> str:
    if isinstance(node, Mapping) and "data" not in node:
        return "this one has nothing there"
    data = node["data"] if isinstance(node, Mapping) else node
    shown = f"{data!r:.40}" if isinstance(data, (str, int, float, type(None))) else f"a {type(data).__name__}"
    return f"this one has {shown} there" if data is not node else f"not {shown}"


def _read(source: Any) -> Any:
    if not isinstance(source, (str, os.PathLike)):
        raise UsageError(f"a tree is read from a path or a dict, not from a {type(source).__name__}")
    try:
        path = Path(source)
        if not path.is_file():
            raise UsageError(f"there is no tree file '{source}'")
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"tree file '{source}' has {path.stat().st_size} bytes, more than {MAX_BYTES}: "
                             "this is no metric")
        return read_json(path.read_text(encoding="utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except UsageError as error:
        raise UsageError(str(error)) from None
    except (OSError, TypeError, ValueError) as error:
        raise UsageError(f"tree file '{source!s:.200}' is not readable JSON: {error!s:.200}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    node = dict(pairs)
    if len(node) != len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise UsageError(f"the key {twice[:40]!r} occurs twice in one object of a tree file")
    return node


def _refuse(constant: str) -> Any:
    raise UsageError(f"{constant} has no place in a tree file")
