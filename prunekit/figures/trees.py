"""Metrics: as trees, as formulas beneath their losses, as masks."""
from __future__ import annotations

from textwrap import wrap
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from prunekit.figures import style
from prunekit.figures.maps import corner
from prunekit.metric.drawing import layout
from prunekit.metric.primitives import arity
from prunekit.metric.tree import Tree

_GREY = "#AAAAAA"


@style.figure
def pareto(frame: pd.DataFrame, unit: str = "loss") -> Figure:
    """Complexity against loss; the front is joined, numbered and written out.

    Columns size, fitness, front (bool), formula.
    """
    front, others = frame[frame["front"]].sort_values("size"), frame[~frame["front"]]
    starts = [f"{row.size:>4} {row.fitness:>8.4f}  " for row in front.itertuples(index=False)]
    made, ax = _above("   size     loss  formula", starts, front["formula"], frame["fitness"])
    ax.plot(others["size"], others["fitness"], "o", color=_GREY, markersize=3, label="measured", zorder=1)
    ax.step(front["size"], front["fitness"], where="post", color=style.COLOURS[0], zorder=2)
    _numbered(ax, front["size"], front["fitness"], "on the front")
    ax.set(xlabel="size of the metric (nodes of its tree)", ylabel=unit)
    style.legend(ax)
    return made


@style.figure
def family_tree(frame: pd.DataFrame, unit: str = "loss") -> Figure:
    """The ancestors of a metric: when they were tried, what they lost, who came from whom.

    The line of first parents is bold, numbered and written out. Columns as from `prunekit.lineage`: i,
    formula, operator, parents, fitness, main.
    """
    main, others = frame[frame["main"]], frame[~frame["main"]]
    starts = [f"{row.operator:<10} {row.fitness:>8.4f}  " for row in main.itertuples()]
    made, ax = _above("   operator       loss  formula", starts, main["formula"], frame["fitness"])
    loss = dict(zip(frame["i"], frame["fitness"], strict=True))
    for row in frame.itertuples():
        for place, parent in enumerate(map(int, row.parents.split())):
            bold = place == 0 and row.main
            colour, width, order = (style.COLOURS[0], 1.8, 2) if bold else (_GREY, 0.8, 1)
            ax.plot([parent, row.i], [loss[parent], row.fitness], color=colour, linewidth=width, zorder=order)
    if len(others):
        ax.plot(others["i"], others["fitness"], "o", color=_GREY, label="other ancestors", zorder=2)
    _numbered(ax, main["i"], main["fitness"], "first parents")
    ax.set(xlabel="number of the candidate", ylabel=unit)
    ax.margins(0.08)
    style.legend(ax)
    return made


def _above(head: str, starts: list[str], formulas: pd.Series, losses: pd.Series) -> tuple[Figure, Any]:
    """Axes for losses with a numbered list beneath: formulas go on in the next line rather than being cut."""
    lines = [head]
    for place, (start, formula) in enumerate(zip(starts, formulas, strict=True), 1):
        start = f"{place:>2} {start}"
        first, *more = wrap(formula, 72 - len(start)) or [""]
        lines += [start + first, *(" " * len(start) + text for text in more)]
    height = 0.15 * len(lines)
    made = Figure(figsize=(style.WIDE, 2.7 + height))
    above, below = made.subfigures(2, 1, height_ratios=[2.7, height]).flat
    ax = above.subplots()
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=(1, 2, 5, 10)))
    if style.spread(losses):
        style.log_scale(ax.yaxis, losses)
    for place, text in enumerate(lines):
        below.text(0.01, 1 - (place + 0.5) / len(lines), text.replace("$", r"\$"), fontsize=7, va="center",
                   family="monospace", color="#000000" if place else "#666666")
    return made, ax


def _numbered(ax: Any, x: pd.Series, y: pd.Series, label: str) -> None:
    ax.plot(x, y, "o", color=style.COLOURS[0], markersize=10, label=label, zorder=3)
    for place, at in enumerate(zip(x, y, strict=True), 1):
        ax.text(*at, str(place), color="white", fontsize=7, ha="center", va="center_baseline", zorder=4)


@style.figure
def anatomy(frame: pd.DataFrame, tree: str) -> Figure:
    """A metric as tree, scores and mask: the corner of one layer.

    Columns row, column, score (any, ranked here), kept (bool).
    """
    parsed = Tree.parse(tree)
    height = 0.6 + 0.4 * parsed.depth
    made = Figure(figsize=(style.WIDE, height + 2.6))
    axes = made.subplot_mosaic("TT;RM", height_ratios=[height, 2.4])
    parsed.draw(axes["T"], fontsize=9)
    wide = frame.pivot(index="row", columns="column")
    corner(axes["R"], "rank of the scores (bright: high)", wide["score"].to_numpy(dtype=float))
    corner(axes["M"], "mask (dark: kept)", wide["kept"].to_numpy(dtype=bool))
    axes["R"].set_ylabel("outputs")
    return made


@style.figure
def trees(frame: pd.DataFrame) -> Figure:
    """Metrics as trees side by side, some nodes of each marked.

    Columns name, tree, first, last: of the marked nodes in prefix order, `last` not among them.
    """
    parsed = [Tree.parse(tree) for tree in frame["tree"]]
    deepest = max(tree.depth for tree in parsed)
    leaves = [sum(arity(symbol) == 0 for symbol in tree) for tree in parsed]
    made, axes = style.new(len(frame), width=style.PAGE, height=0.6 + 0.42 * deepest, width_ratios=leaves)
    for ax, tree, row in zip(axes[0], parsed, frame.itertuples(), strict=True):
        tree.draw(ax, fontsize=8)
        ax.set(title=row.name, ylim=(-deepest - 0.6, 0.6))
        for _, x, depth, _ in layout(tree)[row.first:row.last]:
            ax.plot(x, -depth, "s", color=style.COLOURS[4], alpha=0.45, markersize=26, zorder=0)
    return made
