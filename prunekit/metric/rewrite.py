"""Applies a table of rules bottom-up to a fixpoint, each in the context of its place."""
from __future__ import annotations

from collections.abc import Callable

from prunekit.errors import UsageError
from prunekit.metric.facts import Node, StaticallyInvalid, check_defined, constant, flat, nested, order_key
from prunekit.metric.rules import ORDER, Context, Rule, operand_contexts
from prunekit.metric.tree import Tree

Step = tuple[str, str, Node, Node]  # rule, level, before, after
Structural = Callable[[Node, Context], tuple[str, Node] | None]


class Rewriter:
    """Applies rules bottom-up to a fixpoint, each in the context of its place; `steps` tells what it did."""

    def __init__(self, rules: tuple[Rule, ...], structural: Structural | None = None,
                 guarded: bool = True) -> None:
        self.rules, self.structural, self.guarded = rules, structural, guarded
        self.steps: list[Step] = []
        self._known: dict[tuple[Node, Context], Node] = {}

    def __call__(self, t: Node, context: Context) -> Node:
        start, seen = (t, context), [t]
        while start not in self._known:
            new = self._once(t, context)
            if new in seen:  # a fixpoint (or, were there one, a circle of equivalent forms: take the least)
                new = min(seen[seen.index(new):], key=order_key)
                self._known[new, context] = self._known[start] = new
            seen.append(new)
            t = new
        return self._known[start]

    def _once(self, t: Node, context: Context) -> Node:
        """Operands first, then one rewrite here."""
        if isinstance(t, str):
            return t
        contexts = operand_contexts(t, context)
        t = (t[0], *(self(operand, seen) for operand, seen in zip(t[1:], contexts, strict=True)))
        if self.guarded:
            check_defined(t)
        if t[0] in ("add", "mul"):
            t = (t[0], *sorted(t[1:], key=order_key))
        for entry in self.rules:
            new = entry.apply(t, context, self.guarded)
            if new is not None:
                self.steps.append((entry.name, entry.level, t, new))
                return new
        if self.structural and (step := self.structural(t, context)):
            self.steps.append((step[0], "ORDER" if context.mode == ORDER else "REAL", t, step[1]))
            return step[1]
        return t


def run(tree: Tree, rewriter: Rewriter, context: Context) -> Tree | None:
    """The rewritten tree; None if it is proven invalid on every layer."""
    try:
        form = rewriter(nested(tree), context)
        return None if rewriter.guarded and constant(form) else Tree(flat(form))
    except StaticallyInvalid:
        return None
    except UsageError:  # a sum or product of so many terms that its chain is deeper than a tree may be
        return tree
