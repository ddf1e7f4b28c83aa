"""Something against something else: one line per method, search or layer."""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from prunekit.choices import called
from prunekit.figures import style

_SPARSITY = "sparsity (share of weights that are zero)"


@style.figure
def lines(frame: pd.DataFrame, x: str, y: str, by: str, xlabel: str, ylabel: str, *, xlog: bool = False,
          ylog: bool = False) -> Figure:
    """y against x, one line per value of `by`; where the frame has `low` and `high`, a band."""
    made, ((ax,),) = style.new(height=2.9, width=4.0)
    style.by_group(ax, frame, by, x, y)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if xlog:
        ax.set_xscale("log")
        style.ticks(ax.xaxis, sorted(frame[x].unique()))
    else:
        ax.xaxis.set_major_formatter(style.thousands)
    if ylog:
        style.log_scale(ax.yaxis, frame[y])
    style.legend(ax)
    return made


def convergence(frame: pd.DataFrame) -> Figure:
    """How low searches have come, as `analysis.history.convergence` has it."""
    return lines(frame, x="evaluated", y="loss", by="search", xlabel="distinct evaluations",
                 ylabel="best ln(ppl / dense ppl)", ylog=True)


@style.figure
def perplexity_curves(frame: pd.DataFrame, dense: float | None = None) -> Figure:
    """Perplexity (log) against sparsity, one line per method; columns method, sparsity, ppl, low, high."""
    made, ((ax,),) = style.new(width=style.WIDE, height=3.1)
    style.by_group(ax, frame, "method", "sparsity", "ppl")
    if dense:
        ax.axhline(dense, **style.RULE)
        ax.annotate(f"dense {dense:.1f}", (1, dense), xycoords=("axes fraction", "data"), xytext=(-2, 2),
                    textcoords="offset points", ha="right", va="bottom", fontsize=8)
    style.log_scale(ax.yaxis, [*frame["low"], *frame["high"], *([dense] if dense else [])])
    ax.xaxis.set_major_formatter(style.percent)
    ax.set(xlabel=_SPARSITY, ylabel="perplexity (log scale)")
    ax.legend(loc="upper left")
    return made


@style.figure
def accuracy_panels(frame: pd.DataFrame) -> Figure:
    """A panel per task, accuracy against sparsity, one line per method with its interval; guessing is dashed.

    Columns: task, method, sparsity, value, low, high, chance (NaN: no line).
    """
    tasks = dict(list(frame.groupby("task", sort=False)))
    made, axes = style.panes(list(tasks), 4, style.PAGE if len(tasks) > 1 else 4.0, 1.75, 0.8)
    for ax, rows in zip(axes.flat, tasks.values(), strict=False):
        style.by_group(ax, rows, "method", "sparsity", "value")
        if np.isfinite(chance := rows["chance"].iloc[0]):
            ax.axhline(chance, linestyle=(0, (2, 2)), **style.RULE)
        ax.xaxis.set_major_formatter(style.percent)
        if rows["sparsity"].nunique() <= 4:  # room for all
            ax.set_xticks(sorted(rows["sparsity"].unique()))
    for ax in axes[:, 0]:
        ax.set_ylabel("accuracy")
    made.supxlabel(f"{_SPARSITY}; dashed: guessing", fontsize=9)
    style.legend(axes.flat[0])
    return made


@style.figure
def log_curves(frame: pd.DataFrame, xlabel: str, ylabel: str, *, left: float | None = None) -> Figure:
    """y against x, both logarithmic, one line per name."""
    made, ((ax,),) = style.new(height=2.7, width=4.0)
    for name, look in style.looks(frame["name"].unique()).items():
        rows = frame[frame["name"] == name]
        ax.plot(rows["x"], rows["y"], label=called(name), **look | {"marker": ""})
    ax.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    ax.set_xlim(left=left)
    ax.legend()
    return made


def rank_frequency(counts: Mapping[str, np.ndarray]) -> Figure:
    """Zipf's picture: frequency of tokens against their rank, one line per role."""
    parts = []
    for role, count in counts.items():
        ordered = np.sort(count[count > 0])[::-1] / count.sum()
        parts.append(pd.DataFrame({"name": role, "x": np.arange(1, len(ordered) + 1), "y": ordered}))
    return log_curves(pd.concat(parts, ignore_index=True), "rank of token", "relative frequency")


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


def kept_shares(masks: Mapping[str, Tensor], bins: int = 24) -> Figure:
    """Where the masks of one layer (out, in; True: kept) keep their weights, as `shares` shows it.

    Columns and rows are put in the order of the share that all masks together keep, and averaged in bins.
    """
    parts = []
    for axis, side in enumerate(("input columns", "output rows")):
        kept = pd.DataFrame({name: keep.float().mean(axis).cpu().numpy() for name, keep in masks.items()})
        kept = kept.loc[kept.mean(axis=1).sort_values(ascending=False, kind="stable").index]
        place = (np.arange(len(kept)) * bins // len(kept) + 0.5) / bins
        means = kept.groupby(place).mean().rename_axis("place").reset_index()
        parts.append(means.melt("place", var_name="method", value_name="share").assign(side=side))
    return shares(pd.concat(parts, ignore_index=True))


@style.figure
def shares(frame: pd.DataFrame) -> Figure:
    """The share of weights kept along the columns and along the rows of a layer, one line per method.

    Columns side ("input columns", "output rows"), method, place (0 to 1), share.
    """
    sides = frame["side"].unique()
    made, axes = style.panes(sides, 2, style.WIDE, 2.1, 0.5)
    for ax, side in zip(axes.flat, sides, strict=True):
        style.by_group(ax, frame[frame["side"] == side], "method", "place", "share")
        ax.yaxis.set_major_formatter(style.percent)
        ax.xaxis.set_major_formatter(style.percent)
        ax.set(title="", xlabel=f"{side}, most kept first", xticks=(0, 0.5, 1))
    axes[0][0].set(ylabel="share of weights kept", ylim=(0, 1))
    style.legend(axes.flat[0])
    return made
