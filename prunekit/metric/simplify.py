"""Opposing operation simplification (OOS), and what a metric comes to, explained step by step.

Levels of a rule: BIT gives identical floats, REAL equal values in exact arithmetic, ORDER a strictly
increasing image (same mask, other scores). Claims hold for trees that are valid as written (finite score,
finite norms other than 0), where nothing under- or overflows; saturation of tanh, the clamp of exp and
rounding are matters of floats, so validity must always be checked on the raw tree: simplifying may drop the
part that makes it invalid.

What a rule may change depends on what the parent can see of a value, its `Context`; three static facts guard
rules: sign, shape ((1, 1), (1, in) or (out, in): norms and stds see it) and constancy.
"""
from __future__ import annotations

from prunekit.errors import UsageError, did_you_mean
from prunekit.metric.catalogue import METHODS
from prunekit.metric.facts import flat
from prunekit.metric.rank import canonical, rank_key, reduced
from prunekit.metric.rewrite import Rewriter, run
from prunekit.metric.rules import NAIVE, ORDER, RULES, Context
from prunekit.metric.tree import Tree

LEVELS = ("naive", "oos", "rank")


def simplify(tree: Tree, level: str = "oos") -> Tree:
    """An equivalent, never larger tree; idempotent.

    "oos": the table RULES. "naive": opposing pairs without guards, as summaries of the paper have it (wrong:
    for the ablation). "rank": the canonical form of its mask (`rank.canonical`, group row). A tree that is
    proven invalid on every layer comes back unchanged. Ill-conditioned rules (a − b + b → a) change rounding:
    simplify, then re-evaluate. Raises UsageError for an unknown level.
    """
    if level not in LEVELS:
        raise UsageError(f"unknown simplification level '{level}'{did_you_mean(level, LEVELS)}")
    if level == "rank":
        return canonical(tree)
    rewriter = Rewriter(NAIVE, guarded=False) if level == "naive" else Rewriter(RULES)
    return run(tree, rewriter, Context(ORDER)) or tree


def explain(tree: Tree, group: str = "row") -> str:
    """What a metric is and what it comes to, as text: drawing, LaTeX, each level rule by rule, its class."""
    lines = [f"metric      {tree}", f"infix       {tree.infix()}", f"LaTeX       {tree.latex()}",
             f"size        {tree.size} nodes, depth {tree.depth}",
             f"reads       {', '.join(sorted(tree.terminals))}",
             f"homogeneous {'yes' if tree.homogeneous else 'not proven: masks may follow the scale of G, X'}",
             "", tree.ascii(), ""]
    oos = Rewriter(RULES)
    exact = run(tree, oos, Context(ORDER))
    if exact is None:
        return "\n".join([*lines, "proven invalid on every layer: constant or undefined"])
    lines += [f"opposing operations: {exact}", *_steps(oos), ""]
    form, rewriter = reduced(tree, group)
    if form is None:
        return "\n".join([*lines, "proven invalid on every layer: constant or undefined"])
    methods = (m for m in METHODS.values() if m.tree and m.group != "variant")
    same = [m.name for m in methods if rank_key(m.tree, group) == (group, tuple(form))]
    if {"exp", "tanh", "log"} & set(tree) - set(form):
        lines += ["(in floats log, tanh and exp, clamped at 88, make ties: evaluate the form below)", ""]
    return "\n".join([*lines, f"same masks (group {group}): {form}", *_steps(rewriter), "",
                      f"catalogue methods with this metric: {', '.join(same) or 'none'}"])


def _steps(rewriter: Rewriter) -> list[str]:
    return [f"  {level:5} {Tree(flat(old))}  =>  {Tree(flat(new))}   [{name}]"
            for name, level, old, new in rewriter.steps]
