"""Figures: DataFrame (or tensors) in, matplotlib Figure out; one style, safe for colour blindness and for print.

Every line also has its own marker and dash, every colour map is perceptually even, and text is embedded.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
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
    """Draw in the workbook's style, whatever the surrounding settings are."""
    @wraps(draw)
    def styled(*args: Any, **kwargs: Any) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)
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


@figure
def matrices(named: Mapping[str, Tensor], *, rows: int = 48, columns: int = 48) -> Figure:
    """The corner of several matrices (out, in) side by side, each coloured by the rank of its values within the corner.

    Ranks, because a mask sees nothing else; booleans in two shades, dark what stays.
    """
    made, axes = _axes(len(named), width=PAGE, height=PAGE / len(named) + 0.45)
    for ax, (name, matrix) in zip(axes[0], named.items(), strict=True):
        corner = matrix[:rows, :columns].cpu()
        if corner.dtype.is_floating_point:
            flat = corner.float().flatten().argsort().argsort().reshape(corner.shape).numpy()
            ax.imshow(flat, interpolation="nearest")
        else:
            ax.imshow(~corner.numpy(), cmap="gray", interpolation="nearest", vmin=-0.15, vmax=1)
        ax.set_title(name)
        ax.set(xticks=[], yticks=[], xlabel="inputs")
        ax.grid(visible=False)
    axes[0][0].set_ylabel("outputs")
    return made


@figure
def tails(named: Mapping[str, np.ndarray], xlabel: str) -> Figure:
    """Share of values above a multiple of their median, both logarithmic: how heavy each tail is."""
    made, ((ax,),) = _axes(height=2.7, width=4.0)
    for place, (name, values) in enumerate(named.items()):
        ordered = np.sort(values)
        ordered = ordered / np.median(ordered)
        share = 1 - np.arange(len(ordered)) / len(ordered)
        picked = np.unique(np.concatenate([np.geomspace(1, len(ordered), 300).astype(int) - 1,
                                           len(ordered) - np.geomspace(1, len(ordered), 300).astype(int)]))
        ax.plot(ordered[picked], share[picked], label=name, color=COLOURS[place % 8], linestyle=DASHES[place % 8])
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
