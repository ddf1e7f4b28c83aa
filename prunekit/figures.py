"""Figures: DataFrame (or tensors) in, matplotlib Figure out; one style, safe for colour blindness and for print.

Every line also has its own marker and dash, every colour map is perceptually even, and text is embedded.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from inspect import signature
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter
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


def figure(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the workbook's style, whatever the surrounding settings are; the figure remembers how it was drawn."""
    @wraps(draw)
    def styled(*args: Any, **kwargs: Any) -> Figure:
        with mpl.rc_context(STYLE):
            made = draw(*args, **kwargs)
        made.drawn = {"by": draw.__name__, "arguments": signature(draw).bind(*args, **kwargs).arguments}
        return made
    return styled


def _axes(columns: int = 1, rows: int = 1, width: float = COLUMN, height: float = 2.6, **options: Any) -> tuple[Figure, Any]:
    made = Figure(figsize=(width, height))
    return made, made.subplots(rows, columns, squeeze=False, **options)


def _look(place: int) -> dict[str, Any]:
    return {"color": COLOURS[place % 8], "marker": MARKERS[place % 8], "linestyle": DASHES[place % 8]}


@figure
def perplexity_curves(frame: pd.DataFrame, dense: float | None = None) -> Figure:
    """Perplexity (log) against sparsity, one line per method with its interval; columns method, sparsity, ppl, low, high."""
    made, ((ax,),) = _axes(width=4.6, height=3.1)
    for place, (method, rows) in enumerate(frame.groupby("method", sort=False)):
        rows = rows.sort_values("sparsity")
        ax.fill_between(rows["sparsity"], rows["low"], rows["high"], color=COLOURS[place % 8], alpha=0.15, linewidth=0)
        ax.plot(rows["sparsity"], rows["ppl"], label=method, **_look(place))
    if dense:
        ax.axhline(dense, color="#444444", linewidth=0.8)
        ax.annotate(f"dense {dense:.1f}", (1, dense), xycoords=("axes fraction", "data"), xytext=(-2, 2),
                    textcoords="offset points", ha="right", va="bottom", fontsize=8)
    _log_perplexity(ax, [*frame["low"], *frame["high"], *([dense] if dense else [])])
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set_xlabel("sparsity (share of weights that are zero)")
    ax.legend(loc="upper left")
    return made


def _log_perplexity(ax: Any, values: Sequence[float]) -> None:
    """A logarithmic axis with readable numbers: 1, 2, 5 times a power of ten, those in range."""
    ax.set_yscale("log")
    low, high = min(values), max(values)
    ticks = [step * 10**power for power in range(9) for step in (1, 1.5, 2, 3, 5, 7)]
    ticks = [tick for tick in ticks if low / 1.1 <= tick <= high * 1.1]
    while len(ticks) > 8:
        ticks = ticks[::2]
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.set_ylabel("perplexity (log scale)")


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
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(unit)
    return made


@figure
def rank_frequency(counts: Mapping[str, np.ndarray]) -> Figure:
    """Zipf's picture: frequency of tokens against their rank, both logarithmic, one line per role."""
    made, ((ax,),) = _axes(height=2.7)
    for place, (role, found) in enumerate(counts.items()):
        ordered = np.sort(found[found > 0])[::-1] / found.sum()
        ax.plot(np.arange(1, len(ordered) + 1), ordered, label=role, color=COLOURS[place % 8], linestyle=DASHES[place % 8])
    ax.set(xscale="log", yscale="log", xlabel="rank of token", ylabel="relative frequency")
    ax.legend(loc="lower left")
    return made


@figure
def lines(frame: pd.DataFrame, x: str, y: str, by: str, xlabel: str, ylabel: str, *, xlog: bool = False, ylog: bool = False
          ) -> Figure:
    """y against x, one line per value of `by`; where the frame has `low` and `high`, a band."""
    made, ((ax,),) = _axes(height=2.7, width=4.0)
    for place, (name, rows) in enumerate(frame.groupby(by, sort=False)):
        rows = rows.sort_values(x)
        if {"low", "high"} <= set(rows):
            ax.fill_between(rows[x], rows["low"], rows["high"], color=COLOURS[place % 8], alpha=0.15, linewidth=0)
        ax.plot(rows[x], rows[y], label=name, **_look(place))
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if xlog:
        ax.set_xscale("log")
        ticks = sorted(frame[x].unique())
        ax.xaxis.set_major_locator(FixedLocator(ticks))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if ylog:
        ax.set_yscale("log")
    ax.legend()
    return made


def matrices(named: Mapping[str, Tensor], *, rows: int = 48, columns: int = 48) -> Figure:
    """The corner of several matrices (out, in) side by side, each coloured by the rank of its values within the corner.

    Ranks, because a mask sees nothing else; booleans in two shades, dark what stays.
    """
    corner = {name: matrix[:rows, :columns].cpu() for name, matrix in named.items()}
    return corners({name: part.float() if part.dtype.is_floating_point else part for name, part in corner.items()})


@figure
def corners(named: Mapping[str, Tensor]) -> Figure:
    """Small matrices side by side: float32 by rank, booleans in two shades."""
    made, axes = _axes(len(named), width=PAGE, height=PAGE / len(named) + 0.45)
    for ax, (name, corner) in zip(axes[0], named.items(), strict=True):
        if corner.dtype.is_floating_point:
            flat = corner.flatten().argsort().argsort().reshape(corner.shape).numpy()
            ax.imshow(flat, interpolation="nearest")
        else:
            ax.imshow(~corner.numpy(), cmap="gray", interpolation="nearest", vmin=-0.15, vmax=1)
        ax.set_title(name)
        ax.set(xticks=[], yticks=[], xlabel="inputs")
        ax.grid(visible=False)
    axes[0][0].set_ylabel("outputs")
    return made


def tails(named: Mapping[str, np.ndarray], xlabel: str) -> Figure:
    """Share of values above a multiple of their median, both logarithmic: how heavy each tail is."""
    parts = []
    for name, values in named.items():
        ordered = np.sort(values)
        ordered = ordered / np.median(ordered)
        share = 1 - np.arange(len(ordered)) / len(ordered)
        steps = np.geomspace(1, len(ordered), 300).astype(int)
        picked = np.unique(np.concatenate([steps - 1, len(ordered) - steps]))
        parts.append(pd.DataFrame({"name": name, "value": ordered[picked], "share": share[picked]}))
    return tail_curves(pd.concat(parts, ignore_index=True), xlabel)


@figure
def tail_curves(frame: pd.DataFrame, xlabel: str) -> Figure:
    """One line per name: share of values above each value, both logarithmic."""
    made, ((ax,),) = _axes(height=2.7, width=4.0)
    for place, (name, rows) in enumerate(frame.groupby("name", sort=False)):
        ax.plot(rows["value"], rows["share"], label=name, color=COLOURS[place % 8], linestyle=DASHES[place % 8])
    ax.set(xscale="log", yscale="log", xlabel=xlabel, ylabel="share of values above")
    ax.set_xlim(left=0.1)
    ax.legend()
    return made


@figure
def table_map(frame: pd.DataFrame, unit: str, *, digits: int = 2, low: float | None = None, high: float | None = None) -> Figure:
    """A DataFrame as a map of colours with its numbers written in; index down, columns across, blanks for NaN."""
    height, width = frame.shape
    made, ((ax,),) = _axes(width=min(PAGE, 1.8 + 0.62 * width), height=1.1 + 0.3 * height)
    values = frame.to_numpy(dtype=float)
    image = ax.imshow(values, aspect="auto", vmin=low, vmax=high, cmap="cividis")
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            dark = image.norm(value) < 0.55
            ax.text(column, row, f"{value:.{digits}f}", ha="center", va="center", fontsize=7, color="white" if dark else "black")
    ax.set_xticks(range(width), [str(name) for name in frame.columns], rotation=30, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(height), [str(name) for name in frame.index])
    ax.grid(visible=False)
    made.colorbar(image, ax=ax, label=unit)
    return made


# What a search learned ------------------------------------------------------------------------------------------------


@figure
def findings(frame: pd.DataFrame, most: int = 12) -> Figure:
    """Effects with intervals, one panel per kind, the most certain on top; filled where there is a signal.

    Columns kind, name, effect, low, high, verdict, as from `prunekit.findings`.
    """
    units = {"correlation": "Spearman's correlation with the loss", "best tenth": "log odds in the best tenth",
             "operator": "log odds of an improvement", "model": "skill"}
    kinds = [kind for kind in units if kind in set(frame["kind"]) and kind != "model"]
    made, axes = _axes(max(1, len(kinds)), width=PAGE, height=0.9 + 0.2 * min(most, len(frame)))
    for ax, kind in zip(axes[0], kinds, strict=False):
        rows = frame[frame["kind"] == kind].head(most)
        places = np.arange(len(rows))[::-1]
        signal = (rows["verdict"] != "no signal").to_numpy()
        ax.axvline(0, color="#444444", linewidth=0.8, linestyle="--")
        ax.hlines(places, rows["low"], rows["high"], color="#666666", linewidth=1)
        for chosen, face, label in ((signal, COLOURS[1], "signal"), (~signal, "white", "no signal")):
            ax.scatter(rows["effect"][chosen], places[chosen], s=22, facecolor=face, edgecolor=COLOURS[1], zorder=3, label=label)
        ax.set_yticks(places, rows["name"])
        ax.set_ylim(-0.7, max(most, 1) - 0.3 if len(rows) == most else len(rows) - 0.3)
        ax.grid(axis="y", visible=False)
        ax.set(xlabel=units[kind], title=kind)
    if kinds:
        made.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return made


@figure
def simplex(frame: pd.DataFrame, unit: str = "loss") -> Figure:
    """The triangle of monomials W^a G^b X^c (a + b + c = 1), coloured by loss; columns a, b, c, fitness, label ("" for none)."""
    made, ((ax,),) = _axes(width=4.6, height=3.6)
    x, y = frame["c"] + frame["b"] / 2, frame["b"] * np.sqrt(3) / 2
    ax.plot([0, 1, 0.5, 0], [0, 0, np.sqrt(3) / 2, 0], color="#444444", linewidth=0.8, zorder=1)
    low, high = frame["fitness"].min(), frame["fitness"].quantile(0.9)  # the worst tenth shares one colour
    dots = ax.scatter(x, y, c=frame["fitness"], s=42, marker="h", vmin=low, vmax=high, cmap="viridis_r", zorder=2, linewidth=0)
    made.colorbar(dots, ax=ax, label=unit, extend="max", shrink=0.8)
    for text, at, how in (("W", (0, 0), ("right", "top")), ("X", (1, 0), ("left", "top")), ("G", (0.5, np.sqrt(3) / 2), ("center", "bottom"))):
        ax.annotate(text, at, xytext=({"right": -6, "left": 6}.get(how[0], 0), 6 if how[1] == "bottom" else -4),
                    textcoords="offset points", ha=how[0], va=how[1], fontsize=11, weight="bold")
    for place, (_, row) in enumerate(frame[frame["label"].astype(bool)].iterrows()):
        at = row["c"] + row["b"] / 2, row["b"] * np.sqrt(3) / 2
        ax.scatter(*at, s=80, facecolor="none", edgecolor=COLOURS[1], linewidth=1.6, zorder=3)
        above = row["b"] > 0.02
        ax.annotate(row["label"], at, xytext=(-9, 5) if above else (0, -9 - 10 * (place % 2)), textcoords="offset points",
                    fontsize=8, ha="right" if above else "center", va="bottom" if above else "top",
                    bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5})
    ax.set_aspect("equal")
    ax.set_axis_off()
    ax.set(xlim=(-0.25, 1.12), ylim=(-0.2, 1.0))
    return made


@figure
def pareto(frame: pd.DataFrame, unit: str = "loss") -> Figure:
    """Complexity against loss; the front is joined and written out. Columns size, fitness, front (bool), formula."""
    front = frame[frame["front"]].sort_values("size")
    made, ((ax, side),) = _axes(2, width=PAGE, height=max(2.8, 0.6 + 0.21 * len(front)), width_ratios=[1.15, 1])
    others = frame[~frame["front"]]
    ax.plot(others["size"], others["fitness"], "o", color="#BBBBBB", markersize=3, label="measured", zorder=1)
    ax.step(front["size"], front["fitness"], where="post", color=COLOURS[0], zorder=2)
    ax.plot(front["size"], front["fitness"], "o", color=COLOURS[0], markersize=6, zorder=3, label="on the front")
    if len(front):
        _zoom(ax, front["fitness"], frame["fitness"])
    ax.set(xlabel="size of the metric (nodes of its tree)", ylabel=unit)
    ax.legend()
    _listed(side, [f"{size:>2}  {loss:.4f}  {_shortened(text)}" for size, loss, text in
                   zip(front["size"], front["fitness"], front["formula"], strict=True)], "size, loss, formula")
    return made


def _zoom(ax: Any, important: pd.Series, everything: pd.Series) -> None:
    """Show what is important, and of the rest what lies within the same range again."""
    low, high = important.min(), important.max()
    top = max(high, min(everything.max(), high + (high - low)))
    pad = 0.06 * (top - low or abs(low) or 1)
    ax.set_ylim(low - pad, top + pad)


def _shortened(text: str, most: int = 44) -> str:
    return text if len(text) <= most else text[:most - 2] + " …"


def _listed(ax: Any, lines: Sequence[str], title: str) -> None:
    ax.set_axis_off()
    ax.set_title(title)
    for place, line in enumerate(lines):
        ax.text(0, 1 - (place + 0.7) / max(len(lines), 10), line.replace("$", r"\$"), transform=ax.transAxes, fontsize=7, family="monospace", va="center")


@figure
def family_tree(frame: pd.DataFrame, unit: str = "loss") -> Figure:
    """The ancestors of a metric: when they were tried, what they lost, who came from whom; the line of first parents is
    bold, numbered and written out. Columns i, formula, operator, parents, fitness, main, as from `prunekit.lineage`."""
    line = frame[frame["main"]].reset_index(drop=True)
    made, (row,) = _axes(2, width=PAGE, height=max(2.8, 0.6 + 0.21 * len(line)), width_ratios=[1.15, 1])
    ax, side = row
    at = dict(zip(frame["i"], frame["fitness"], strict=True))
    main = set(line["i"])
    for one in frame.itertuples():
        for place, parent in enumerate(map(int, one.parents.split())):
            bold = place == 0 and one.i in main
            ax.plot([parent, one.i], [at[parent], one.fitness], color=COLOURS[0] if bold else "#BBBBBB",
                    linewidth=1.8 if bold else 0.8, zorder=2 if bold else 1)
    rest = frame[~frame["main"]]
    ax.plot(rest["i"], rest["fitness"], "o", color="#BBBBBB", markersize=4, label="other ancestors", zorder=2)
    ax.plot(line["i"], line["fitness"], "o", color=COLOURS[0], markersize=11, label="first parents", zorder=3)
    for place, one in line.iterrows():
        ax.text(one["i"], one["fitness"], str(place + 1), color="white", fontsize=7, ha="center", va="center", zorder=4)
    ax.set(xlabel="number of the candidate", ylabel=unit)
    ax.margins(0.08)
    ax.legend()
    _listed(side, [f"{place + 1:>2} {one['operator'][:9]:<9} {one['fitness']:.4f} {_shortened(one['formula'], 40)}"
                   for place, one in line.iterrows()], "step, operator, loss, formula")
    return made


@figure
def seen_and_unseen(frame: pd.DataFrame) -> Figure:
    """The loss that chose a metric against its loss on other windows: columns metric, search, other, low, high, chosen (bool).

    On the diagonal nothing was lost; what lies above it was lucky.
    """
    made, ((ax,),) = _axes(width=3.8, height=3.3)
    ends = [min(frame["search"].min(), frame["low"].min()), max(frame["search"].max(), frame["high"].max())]
    ax.plot(ends, ends, color="#444444", linewidth=0.8, linestyle="--", label="no change")
    for place, (chosen, label) in enumerate(((False, "fixed before the search"), (True, "chosen by the search"))):
        rows = frame[frame["chosen"] == chosen]
        if len(rows):
            ax.errorbar(rows["search"], rows["other"], yerr=[rows["other"] - rows["low"], rows["high"] - rows["other"]], capsize=2,
                        linestyle="none", color=COLOURS[place], marker=MARKERS[place], ecolor="#999999", label=label, zorder=3)
    ax.set(xlabel="loss on the search windows", ylabel="loss on windows that no search saw")
    ax.legend()
    return made


@figure
def anatomy(frame: pd.DataFrame, tree: str) -> Figure:
    """A metric as tree, scores and mask: the corner of one layer. Columns row, column, score (any, ranked here), kept (bool)."""
    from prunekit.metric.tree import Tree

    made, ((left, middle, right),) = _axes(3, width=PAGE, height=2.7, width_ratios=[1.25, 1, 1])
    Tree.parse(tree).draw(left)
    ranks = frame.assign(score=frame["score"].rank()).pivot(index="row", columns="column", values="score").to_numpy(dtype=float)
    kept = frame.pivot(index="row", columns="column", values="kept").to_numpy(dtype=bool)
    middle.imshow(ranks, interpolation="nearest")
    right.imshow(~kept, cmap="gray", interpolation="nearest", vmin=-0.15, vmax=1)
    for ax, title in ((left, "tree"), (middle, "rank of the scores"), (right, "mask (dark: kept)")):
        ax.set_title(title)
        ax.grid(visible=False)
        if ax is not left:
            ax.set(xticks=[], yticks=[], xlabel="inputs")
    middle.set_ylabel("outputs")
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
            points = points.sort_values("sparsity")
            ax.fill_between(points["sparsity"], points["low"], points["high"], color=COLOURS[place % 8], alpha=0.12, linewidth=0)
            ax.plot(points["sparsity"], points["value"], label=method, **_look(place))
        if np.isfinite(part["chance"].iloc[0]):
            ax.axhline(part["chance"].iloc[0], color="#444444", linewidth=0.8, linestyle=(0, (2, 2)))
        ax.set_title(task)
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for ax in axes.flat[len(tasks):]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel(ylabel)
    made.supxlabel("sparsity (share of weights that are zero); dashed: guessing", fontsize=9)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 5))
    return made


@figure
def recovery(frame: pd.DataFrame, dense: float) -> Figure:
    """Perplexity before (hollow) and after fine-tuning (filled, with its interval), one panel per `setting`, one row per method.

    Columns setting, method, ppl, low, high (pruned) and tuned, tuned_low, tuned_high; the line is the dense model.
    """
    settings = list(dict.fromkeys(frame["setting"]))
    methods = list(dict.fromkeys(frame["method"]))
    made, axes = _axes(len(settings), width=PAGE, height=1.1 + 0.3 * len(methods), sharey=True)
    for ax, setting in zip(axes[0], settings, strict=True):
        rows = frame[frame["setting"] == setting].set_index("method").reindex(methods)
        places = np.arange(len(methods))[::-1]
        ax.hlines(places, rows["tuned"], rows["ppl"], color="#AAAAAA", linewidth=1.5)
        for shift, (name, face, colour) in enumerate((("ppl", "white", COLOURS[1]), ("tuned", COLOURS[0], COLOURS[0]))):
            low, high = ("low", "high") if name == "ppl" else ("tuned_low", "tuned_high")
            error = np.abs(rows[[low, high]].to_numpy().T - rows[name].to_numpy())
            ax.errorbar(rows[name], places, xerr=error, fmt=MARKERS[shift], color=colour, markerfacecolor=face, capsize=2,
                        label=("pruned", "fine-tuned")[shift])
        ax.axvline(dense, color="#444444", linewidth=0.8, linestyle="--", label="dense")
        ax.set_title(setting)
        ax.set_xlabel("perplexity")
        ax.set_yticks(places, methods)
        ax.set_ylim(-0.6, len(methods) - 0.4)
        ax.grid(axis="y", visible=False)
    made.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return made
