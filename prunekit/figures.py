"""Figures: DataFrame (or tensors) in, matplotlib Figure out; one style, safe for colour blindness and for print.

Every line also has its own marker and dash, every colour map is perceptually even, and text is embedded.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from inspect import signature
from textwrap import wrap
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter
from torch import Tensor

# Okabe and Ito's colours, which stay apart under every common form of colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (5, 4)))
STYLE = {
    "figure.dpi": 110, "savefig.dpi": 300, "figure.constrained_layout.use": True, "pdf.fonttype": 42, "svg.fonttype": "path",
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8, "xtick.labelsize": 8,
    "ytick.labelsize": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5, "axes.axisbelow": True, "lines.linewidth": 1.5, "lines.markersize": 4, "legend.frameon": False,
    "axes.titlelocation": "left", "image.cmap": "viridis", "figure.facecolor": "white",
}
COLUMN, PAGE = 3.4, 7.0  # inches: one column, both columns of a paper
WIDE = 4.6  # as wide as a figure may be whose text is still read when it is printed in one column


def figure(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the workbook's style, whatever the surrounding settings are; the figure remembers how it was drawn.

    A table without rows is drawn as a sentence.
    """
    @wraps(draw)
    def styled(*args: Any, **kwargs: Any) -> Figure:
        given = signature(draw).bind(*args, **kwargs).arguments
        with mpl.rc_context(STYLE):
            made = _nothing() if getattr(next(iter(given.values())), "empty", False) else draw(*args, **kwargs)
        made.drawn = {"by": draw.__name__, "arguments": given}
        return made
    return styled


def _nothing() -> Figure:
    made = Figure(figsize=(COLUMN, 0.5))
    made.text(0.5, 0.5, "nothing to show: the table is empty", ha="center", va="center", color="#444444")
    return made


def _axes(columns: int = 1, rows: int = 1, width: float = COLUMN, height: float = 2.6, **options: Any) -> tuple[Figure, Any]:
    made = Figure(figsize=(width, height))
    return made, made.subplots(rows, columns, squeeze=False, **options)


def _legend(ax: Any) -> None:
    """Above the picture, where it never lies on data; as many columns as there is room for."""
    made = ax.figure
    handles, labels = ax.get_legend_handles_labels()
    fit = int(made.bbox.width / made.dpi * 15 / (max(map(len, labels)) + 5))
    made.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), max(1, fit)))


def _line(ax: Any, rows: pd.DataFrame, x: str, y: str, place: int = 0, label: Any = None) -> None:
    """y against x, with a band where there are columns low and high."""
    rows = rows.sort_values(x)
    if {"low", "high"} <= set(rows):
        ax.fill_between(rows[x], rows["low"], rows["high"], color=COLOURS[place % 8], alpha=0.15, linewidth=0)
    ax.plot(rows[x], rows[y], label=label, color=COLOURS[place % 8], marker=MARKERS[place % 8], linestyle=DASHES[place % 8],
            markevery=1 + len(rows) // 10)


@figure
def perplexity_curves(frame: pd.DataFrame, dense: float | None = None) -> Figure:
    """Perplexity (log) against sparsity, one line per method with its interval; columns method, sparsity, ppl, low, high."""
    made, ((ax,),) = _axes(width=4.6, height=3.1)
    for place, (method, rows) in enumerate(frame.groupby("method", sort=False)):
        _line(ax, rows, "sparsity", "ppl", place, method)
    if dense:
        ax.axhline(dense, color="#444444", linewidth=0.8)
        ax.annotate(f"dense {dense:.1f}", (1, dense), xycoords=("axes fraction", "data"), xytext=(-2, 2),
                    textcoords="offset points", ha="right", va="bottom", fontsize=8)
    _log_scale(ax.yaxis, [*frame["low"], *frame["high"], *([dense] if dense else [])])
    ax.set_ylabel("perplexity (log scale)")
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set_xlabel("sparsity (share of weights that are zero)")
    ax.legend(loc="upper left")
    return made


def _log_scale(axis: Any, values: Iterable[float]) -> None:
    """A logarithmic axis with readable numbers: round ones, as many as are at most eight."""
    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    low, high = min(values), max(values)
    for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1,)):
        ticks = [step * 10.0**power for power in range(-6, 10) for step in steps]
        ticks = [tick for tick in ticks if low / 1.1 <= tick <= high * 1.1]
        if len(ticks) <= 8:
            break
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _spread(losses: pd.Series) -> bool:
    """Do losses differ by more than a factor of five? Then only a logarithmic scale tells the low ones apart."""
    return 0 < 5 * losses.min() < losses.max()


@figure
def intervals(frame: pd.DataFrame, label: str, unit: str, reference: float | None = None) -> Figure:
    """Points with intervals, one row per line of the frame: columns `label`, value, low, high."""
    made, ((ax,),) = _axes(width=4.6, height=0.6 + 0.24 * len(frame))
    places = np.arange(len(frame))[::-1]
    error = np.abs(frame[["low", "high"]].to_numpy().T - frame["value"].to_numpy())
    ax.errorbar(frame["value"], places, xerr=error, fmt="o", color=COLOURS[0], ecolor="#666666", capsize=2)
    if reference is not None:
        ax.axvline(reference, color="#444444", linewidth=0.8, linestyle="--")
    ax.set_yticks(places, frame[label])
    ax.set_ylim(-0.6, len(frame) - 0.4)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(unit)
    return made


def rank_frequency(counts: Mapping[str, np.ndarray]) -> Figure:
    """Zipf's picture: frequency of tokens against their rank, one line per role."""
    parts = []
    for role, found in counts.items():
        ordered = np.sort(found[found > 0])[::-1] / found.sum()
        parts.append(pd.DataFrame({"name": role, "x": np.arange(1, len(ordered) + 1), "y": ordered}))
    return log_curves(pd.concat(parts, ignore_index=True), "rank of token", "relative frequency")


@figure
def log_curves(frame: pd.DataFrame, xlabel: str, ylabel: str, *, left: float | None = None) -> Figure:
    """y against x, both logarithmic, one line per name."""
    made, ((ax,),) = _axes(height=2.7, width=4.0)
    for place, (name, rows) in enumerate(frame.groupby("name", sort=False)):
        ax.plot(rows["x"], rows["y"], label=name, color=COLOURS[place % 8], linestyle=DASHES[place % 8])
    ax.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    ax.set_xlim(left=left)
    ax.legend()
    return made


@figure
def lines(frame: pd.DataFrame, x: str, y: str, by: str, xlabel: str, ylabel: str, *, xlog: bool = False, ylog: bool = False
          ) -> Figure:
    """y against x, one line per value of `by`; where the frame has `low` and `high`, a band."""
    made, ((ax,),) = _axes(height=2.9, width=4.0)
    for place, (name, rows) in enumerate(frame.groupby(by, sort=False)):
        _line(ax, rows, x, y, place, name)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if xlog:
        ax.set_xscale("log")
        ticks = sorted(frame[x].unique())
        ax.xaxis.set_major_locator(FixedLocator(ticks))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if ylog:
        _log_scale(ax.yaxis, frame[y])
    _legend(ax)
    return made


@figure
def panels(frame: pd.DataFrame, x: str, y: str, by: str, xlabel: str, ylabel: str) -> Figure:
    """y against x with its band (columns low, high), one small panel per value of `by`, all on the same axes."""
    groups = list(frame.groupby(by, sort=False))
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    made, axes = _axes(columns, rows, width=WIDE, height=1.5 * rows + 0.7, sharex=True, sharey=True)
    for ax, (name, part) in zip(axes.flat, groups, strict=False):
        _line(ax, part, x, y)
        ax.set_title(name)
        ax.xaxis.set_major_locator(MaxNLocator(integer=(frame[x] % 1 == 0).all()))
    for ax in axes.flat[len(groups):]:
        ax.set_visible(False)
    made.supxlabel(xlabel, fontsize=9)
    made.supylabel(ylabel, fontsize=9)
    return made


def matrices(named: Mapping[str, Tensor], *, rows: int = 48, columns: int = 48) -> Figure:
    """The corner of several matrices (out, in) side by side, each coloured by the rank of its values within the corner.

    Ranks, because a mask sees nothing else; booleans in two shades, dark what stays.
    """
    parts = []
    for name, matrix in named.items():
        corner = matrix[:rows, :columns].cpu()
        parts.append(pd.DataFrame(corner.float().numpy()).add_prefix("input ").assign(name=name, mask=not corner.dtype.is_floating_point))
    return corners(pd.concat(parts, ignore_index=True))


@figure
def corners(frame: pd.DataFrame) -> Figure:
    """Small matrices side by side, their rows below each other in the frame: values by rank, masks in two shades."""
    named = list(frame.groupby("name", sort=False))
    made, axes = _axes(len(named), width=PAGE, height=PAGE / len(named) + 0.45)
    for ax, (name, rows) in zip(axes[0], named, strict=True):
        values = rows.filter(like="input ").dropna(axis=1, how="all").to_numpy()
        _corner(ax, name, values.astype(bool) if rows["mask"].all() else values)
    axes[0][0].set_ylabel("outputs")
    return made


def _corner(ax: Any, title: str, matrix: np.ndarray) -> None:
    if matrix.dtype == bool:
        ax.imshow(~matrix, cmap="gray", interpolation="nearest", vmin=-0.15, vmax=1)
    else:
        ax.imshow(matrix.ravel().argsort(kind="stable").argsort().reshape(matrix.shape), interpolation="nearest")
    ax.set(title=title, xticks=[], yticks=[], xlabel="inputs")
    ax.grid(visible=False)


def tails(named: Mapping[str, np.ndarray], xlabel: str) -> Figure:
    """Share of values above a multiple of their median: how heavy each tail is."""
    parts = []
    for name, values in named.items():
        ordered = np.sort(values)
        ordered = ordered / np.median(ordered)
        share = 1 - np.arange(len(ordered)) / len(ordered)
        steps = np.geomspace(1, len(ordered), 300).astype(int)
        picked = np.unique(np.concatenate([steps - 1, len(ordered) - steps]))
        parts.append(pd.DataFrame({"name": name, "x": ordered[picked], "y": share[picked]}))
    return log_curves(pd.concat(parts, ignore_index=True), xlabel, "share of values above", left=0.1)


@figure
def table_map(frame: pd.DataFrame, unit: str, *, digits: int = 2, low: float | None = None, high: float | None = None) -> Figure:
    """A DataFrame as a map of colours with its numbers written in; index down, columns across, blanks for NaN."""
    values = frame.to_numpy(dtype=float)
    texts = [["" if np.isnan(value) else f"{value:.{digits}f}" for value in row] for row in values]
    cell = max(0.38, 0.06 * max(len(text) for row in texts for text in row) + 0.08)
    names = max(len(str(name)) for name in frame.index)
    width = min(PAGE, 0.5 + 0.062 * names + max(1.0, cell * frame.shape[1]))
    made, ((ax,),) = _axes(width=width, height=0.9 + 0.22 * frame.shape[0])
    image = ax.imshow(values, aspect="auto", vmin=low, vmax=high, cmap="cividis")
    for (row, column), value in np.ndenumerate(values):
        dark = image.norm(value) < 0.47
        ax.text(column, row, texts[row][column], ha="center", va="center", fontsize=7, color="white" if dark else "black")
    across = [str(name) for name in frame.columns]
    turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if max(map(len, across)) > 4 else {}
    ax.set_xticks(range(frame.shape[1]), across, **turned)
    ax.set_yticks(range(frame.shape[0]), [str(name) for name in frame.index])
    ax.grid(visible=False)
    ax.set_title(unit)
    return made


# What a search learned ------------------------------------------------------------------------------------------------


@figure
def findings(frame: pd.DataFrame, most: int = 10) -> Figure:
    """Traits with their effect and interval, one panel per kind, the most certain on top; filled where there is a signal.

    Columns kind ("correlation", "best tenth"; others have figures of their own), name, effect, low, high, verdict, as from
    `prunekit.findings`.
    """
    units = {"correlation": "rank correlation with loss\n← lower     higher →",
             "best tenth": "log odds in the best tenth\n← rarer     more frequent →"}
    parts = {kind: frame[frame["kind"] == kind].head(most) for kind in units if (frame["kind"] == kind).any()}
    if not parts:
        return _nothing()
    longest = max(map(len, parts.values()))
    made, axes = _axes(len(parts), width=WIDE, height=1.2 + 0.19 * longest)
    shown = {}
    for ax, (kind, rows) in zip(axes[0], parts.items(), strict=True):
        places = np.arange(longest)[::-1][:len(rows)]
        signal = (rows["verdict"] != "no signal").to_numpy()
        ax.axvline(0, color="#444444", linewidth=0.8, linestyle="--")
        ax.hlines(places, rows["low"], rows["high"], color="#666666", linewidth=1)
        for chosen, face, label in ((signal, COLOURS[1], "signal"), (~signal, "white", "no signal")):
            if chosen.any():
                shown[label] = ax.scatter(rows["effect"][chosen], places[chosen], s=22, facecolor=face, edgecolor=COLOURS[1],
                                          zorder=3)
        ax.set_yticks(places, rows["name"])
        ax.set_ylim(-0.7, longest - 0.3)
        ax.grid(axis="y", visible=False)
        ax.locator_params(axis="x", nbins=4)
        ax.set(xlabel=units[kind], title=kind)
    made.legend(shown.values(), shown, loc="outside upper center", ncols=2)
    return made


@figure
def simplex(frame: pd.DataFrame, unit: str = "loss") -> Figure:
    """The triangle of monomials W^a G^b X^c (a + b + c = 1), coloured by loss; columns a, b, c, fitness, label ("" for none)."""
    made, ((ax,),) = _axes(width=WIDE, height=3.3)
    frame = frame.assign(x=frame["c"] + frame["b"] / 2, y=frame["b"] * np.sqrt(3) / 2)
    ax.plot([0, 1, 0.5, 0], [0, 0, np.sqrt(3) / 2, 0], color="#444444", linewidth=0.8, zorder=1)
    low, high = frame["fitness"].min(), frame["fitness"].quantile(0.9)  # the worst tenth shares one colour
    log = _spread(frame["fitness"])
    dots = ax.scatter(frame["x"], frame["y"], c=frame["fitness"].clip(upper=high), norm="log" if log else "linear", s=75,
                      marker="h", zorder=2, linewidth=0)
    bar = made.colorbar(dots, ax=ax, label=unit, extend="max", shrink=0.8)
    if log:
        _log_scale(bar.ax.yaxis, (low, high))
    for text, x, y in (("W", -0.08, 0), ("X", 1.08, 0), ("G", 0.5, np.sqrt(3) / 2 + 0.09)):
        ax.text(x, y, text, ha="center", va="center", fontsize=11, weight="bold")
    labelled = frame[frame["label"].astype(bool)].sort_values("fitness")
    for place, one in enumerate(labelled.itertuples(), 1):
        ax.scatter(one.x, one.y, s=85, color="white", edgecolor=COLOURS[1], linewidth=1.4, zorder=3)
        ax.text(one.x, one.y, str(place), ha="center", va="center_baseline", fontsize=7, zorder=4)
        ax.text(-0.2, 0.98 - 0.075 * place, f"{place}  {one.label}", fontsize=8, va="center")
    ax.set_aspect("equal")
    ax.set_axis_off()
    ax.set(xlim=(-0.22, 1.16), ylim=(-0.06, 1.02))
    return made


@figure
def pareto(frame: pd.DataFrame, unit: str = "loss") -> Figure:
    """Complexity against loss; the front is joined, numbered and written out. Columns size, fitness, front (bool), formula."""
    front = frame[frame["front"]].sort_values("size")
    made, ax = _above([(f"{place:>2} {size:>4} {loss:>8.4f}  ", formula) for place, (size, loss, formula) in
                       enumerate(zip(front["size"], front["fitness"], front["formula"], strict=True), 1)],
                      "   size     loss  formula", frame["fitness"])
    others = frame[~frame["front"]]
    ax.plot(others["size"], others["fitness"], "o", color="#AAAAAA", markersize=3, label="measured", zorder=1)
    ax.step(front["size"], front["fitness"], where="post", color=COLOURS[0], zorder=2)
    _numbered(ax, front["size"], front["fitness"], "on the front")
    ax.set(xlabel="size of the metric (nodes of its tree)", ylabel=unit)
    _legend(ax)
    return made


@figure
def family_tree(frame: pd.DataFrame, unit: str = "loss") -> Figure:
    """The ancestors of a metric: when they were tried, what they lost, who came from whom; the line of first parents is
    bold, numbered and written out. Columns i, formula, operator, parents, fitness, main, as from `prunekit.lineage`."""
    line, rest = frame[frame["main"]], frame[~frame["main"]]
    made, ax = _above([(f"{place:>2} {one.operator:<10} {one.fitness:>8.4f}  ", one.formula) for place, one in
                       enumerate(line.itertuples(), 1)], "   operator       loss  formula", frame["fitness"])
    at = dict(zip(frame["i"], frame["fitness"], strict=True))
    main = set(line["i"])
    for one in frame.itertuples():
        for place, parent in enumerate(map(int, one.parents.split())):
            bold = place == 0 and one.i in main
            ax.plot([parent, one.i], [at[parent], one.fitness], color=COLOURS[0] if bold else "#AAAAAA",
                    linewidth=1.8 if bold else 0.8, zorder=2 if bold else 1)
    if len(rest):
        ax.plot(rest["i"], rest["fitness"], "o", color="#AAAAAA", markersize=4, label="other ancestors", zorder=2)
    _numbered(ax, line["i"], line["fitness"], "first parents")
    ax.set(xlabel="number of the candidate", ylabel=unit)
    ax.margins(0.08)
    _legend(ax)
    return made


def _above(rows: Sequence[tuple[str, str]], head: str, losses: pd.Series) -> tuple[Figure, Any]:
    """Axes for losses with a list beneath them: rows of a start and a formula, which goes on in the next line rather than
    being cut."""
    lines = [head]
    for start, formula in rows:
        first, *more = wrap(formula, 72 - len(start)) or [""]
        lines += [start + first, *(" " * len(start) + text for text in more)]
    height = 0.15 * len(lines)
    made = Figure(figsize=(WIDE, 2.7 + height))
    above, below = made.subfigures(2, 1, height_ratios=[2.7, height])
    ax = above.subplots()
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=(1, 2, 5, 10)))
    if _spread(losses):
        _log_scale(ax.yaxis, losses)
    for place, line in enumerate(lines):
        below.text(0.01, 1 - (place + 0.5) / len(lines), line.replace("$", r"\$"), fontsize=7, family="monospace", va="center",
                   color="#000000" if place else "#666666")
    return made, ax


def _numbered(ax: Any, x: pd.Series, y: pd.Series, label: str) -> None:
    ax.plot(x, y, "o", color=COLOURS[0], markersize=10, label=label, zorder=3)
    for place, at in enumerate(zip(x, y, strict=True), 1):
        ax.text(*at, str(place), color="white", fontsize=7, ha="center", va="center_baseline", zorder=4)


@figure
def seen_and_unseen(frame: pd.DataFrame) -> Figure:
    """The loss that chose a metric against its loss on other windows: columns metric, search, other, low, high, chosen (bool).

    The dashed line is where other windows are as hard; the dotted one, how hard they are for metrics that nobody chose (a
    proportion, where all losses are positive). What the chosen ones lie above it, was luck.
    """
    made, ((ax,),) = _axes(width=COLUMN, height=3.4)
    ends = np.array([frame["search"].min(), frame["search"].max()])
    ax.plot(ends, ends, color="#444444", linewidth=0.8, linestyle="--", label="as hard")
    unchosen, positive = frame[~frame["chosen"]], (frame[["search", "other"]] > 0).all(axis=None)
    if len(unchosen) and positive:
        growth = np.exp(np.log(unchosen["other"] / unchosen["search"]).mean())
        ax.plot(ends, growth * ends, color=COLOURS[0], linewidth=1, linestyle=":", label="as for those fixed before")
    for place, (chosen, label) in enumerate(((False, "fixed before the search"), (True, "chosen by the search"))):
        rows = frame[frame["chosen"] == chosen]
        if len(rows):
            ax.errorbar(rows["search"], rows["other"], yerr=[rows["other"] - rows["low"], rows["high"] - rows["other"]], capsize=2,
                        linestyle="none", color=COLOURS[place], marker=MARKERS[place], ecolor="#999999", label=label, zorder=3)
    ax.set(xlabel="loss on the search windows", ylabel="loss on windows that no search saw")
    if positive and frame["low"].min() > 0:  # proportions are what counts, and they are distances on logarithmic axes
        _log_scale(ax.xaxis, ends)
        _log_scale(ax.yaxis, [*ends, *frame["other"]])
    _legend(ax)
    return made


@figure
def forest(frame: pd.DataFrame) -> Figure:
    """Metrics as trees, side by side: columns metric, tree."""
    from prunekit.metric.tree import Tree

    trees = {row.metric: Tree.parse(row.tree) for row in frame.itertuples()}
    columns = min(3, len(trees))
    depths = [max(tree.depth for tree in [*trees.values()][at:at + columns]) for at in range(0, len(trees), columns)]
    heights = [0.6 + 0.27 * depth for depth in depths]
    made, axes = _axes(columns, len(depths), width=WIDE, height=sum(heights), height_ratios=heights)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, depth, (name, tree) in zip(axes.flat, np.repeat(depths, columns), trees.items(), strict=False):
        tree.draw(ax, fontsize=7.5)
        ax.set_ylim(-depth - 0.6, 0.6)
        ax.set_title(name)
    return made


@figure
def anatomy(frame: pd.DataFrame, tree: str) -> Figure:
    """A metric as tree, scores and mask: the corner of one layer. Columns row, column, score (any, ranked here), kept (bool)."""
    from prunekit.metric.tree import Tree

    parsed = Tree.parse(tree)
    height = 0.6 + 0.4 * parsed.depth
    made = Figure(figsize=(WIDE, height + 2.6))
    axes = made.subplot_mosaic("TT;RM", height_ratios=[height, 2.4])
    parsed.draw(axes["T"], fontsize=9)
    wide = frame.pivot(index="row", columns="column")
    _corner(axes["R"], "rank of the scores (bright: high)", wide["score"].to_numpy(dtype=float))
    _corner(axes["M"], "mask (dark: kept)", wide["kept"].to_numpy(dtype=bool))
    axes["R"].set_ylabel("outputs")
    return made


@figure
def accuracy_panels(frame: pd.DataFrame, ylabel: str = "accuracy") -> Figure:
    """A panel per task, accuracy against sparsity, one line per method with its interval; guessing is the dashed line.

    Columns: task, method, sparsity, value, low, high, chance (NaN: no line).
    """
    tasks = list(dict.fromkeys(frame["task"]))
    columns = min(4, len(tasks))
    rows = -(-len(tasks) // columns)
    made, axes = _axes(columns, rows, width=PAGE if columns > 1 else 4.0, height=1.75 * rows + 0.8, sharex=True, sharey=True)
    for ax, task in zip(axes.flat, tasks, strict=False):
        part = frame[frame["task"] == task]
        for place, (method, points) in enumerate(part.groupby("method", sort=False)):
            _line(ax, points, "sparsity", "value", place, method)
        if np.isfinite(part["chance"].iloc[0]):
            ax.axhline(part["chance"].iloc[0], color="#444444", linewidth=0.8, linestyle=(0, (2, 2)))
        ax.set_title(task)
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        if part["sparsity"].nunique() <= 4:  # room for all
            ax.set_xticks(sorted(part["sparsity"].unique()))
    for ax in axes.flat[len(tasks):]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel(ylabel)
    made.supxlabel("sparsity (share of weights that are zero); dashed: guessing", fontsize=9)
    _legend(axes.flat[0])
    return made


@figure
def recovery(frame: pd.DataFrame, dense: float) -> Figure:
    """Perplexity before (hollow) and after fine-tuning (filled), one panel per `setting`, one row per method; above each
    row the recovered share with its interval. The line is the dense model.

    Columns setting, method, ppl (pruned), tuned, recovered, recovered_low, recovered_high. (Intervals of the perplexities
    are no part of it: windows differ far more from each other than the models do on the same windows.)
    """
    settings = list(dict.fromkeys(frame["setting"]))
    methods = list(dict.fromkeys(frame["method"]))
    made, axes = _axes(len(settings), width=PAGE, height=1.1 + 0.38 * len(methods), sharey=True)
    for ax, setting in zip(axes[0], settings, strict=True):
        rows = frame[frame["setting"] == setting].set_index("method").reindex(methods)
        places = np.arange(len(methods))[::-1]
        ax.hlines(places, rows["tuned"], rows["ppl"], color="#AAAAAA", linewidth=1.5)
        ax.plot(rows["ppl"], places, MARKERS[0], color=COLOURS[1], markerfacecolor="white", label="pruned")
        ax.plot(rows["tuned"], places, MARKERS[1], color=COLOURS[0], label="fine-tuned")
        for place, row in zip(places, rows.itertuples(), strict=True):
            share = f"{row.recovered:.0%} ({row.recovered_low:.0%} to {row.recovered_high:.0%})"
            ax.annotate(share, ((row.tuned + row.ppl) / 2, place), (0, 5), textcoords="offset points", ha="center", fontsize=7)
        ax.axvline(dense, color="#444444", linewidth=0.8, linestyle="--", label="dense")
        ax.set_title(setting)
        ax.set_xlabel("perplexity")
        ax.set_yticks(places, methods)
        ax.set_ylim(-0.6, len(methods) - 0.3)
        ax.margins(x=0.12)
        ax.grid(axis="y", visible=False)
    made.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return made
