"""Points with intervals."""
from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from prunekit.choices import percent
from prunekit.figures import style


@style.figure
def intervals(frame: pd.DataFrame, label: str, unit: str, reference: float | None = None,
              value: str = "value") -> Figure:
    """Points with intervals, one row per line of the frame: columns `label`, `value`, low, high."""
    made, ((ax,),) = style.new(width=style.WIDE, height=0.6 + 0.24 * len(frame))
    places = style.rows_of(ax, frame[label], len(frame), 0.6, 0.6)
    error = np.abs(frame[["low", "high"]].to_numpy().T - frame[value].to_numpy())
    ax.errorbar(frame[value], places, xerr=error, fmt="o", color=style.COLOURS[0], ecolor="#666666",
                capsize=2)
    if reference is not None:
        ax.axvline(reference, linestyle="--", **style.RULE)
    ax.set_xlabel(unit)
    return made


@style.figure
def ratios(frame: pd.DataFrame, to: str = "Wanda") -> Figure:
    """Perplexity divided by that of `to` on the same windows: a panel per setting, a row per method.

    Hollow: the interval holds 1, so the two cannot be told apart. Each panel has an axis of its own,
    logarithmic where its ends lie far apart. Columns method, ratio, low, high (or, by Holm, holm_low,
    holm_high), and target ("0.5") or sparsity and pattern.
    """
    frame = frame.assign(**frame.filter(like="holm_").rename(columns=lambda name: name.removeprefix("holm_")))
    setting = frame["target"].map(percent) if "target" in frame else frame["pattern"].where(
        frame["pattern"] != "unstructured", frame["sparsity"].map(style.percent))
    settings, methods = setting.unique(), frame["method"].unique()
    made, axes = style.panes(settings, 2, style.WIDE, 0.5 + 0.17 * len(methods), 0.3, sharex=False)
    for ax, name in zip(axes.flat, settings, strict=False):
        rows = frame[setting == name].set_index("method").reindex(methods)
        places = style.rows_of(ax, methods, len(methods), 0.6, 0.6)
        for place, row, look in zip(places, rows.itertuples(), style.looks(methods).values(), strict=True):
            face = look["color"] if row.low > 1 or row.high < 1 else "white"  # also of no interval
            ax.plot([row.low, row.high], [place, place], color=look["color"])
            ax.plot(row.ratio, place, **look | {"markerfacecolor": face, "markersize": 5})
        ax.axvline(1, zorder=1, **style.RULE)
        style.far_apart(ax.xaxis, [1, *rows["low"].dropna(), *rows["high"].dropna()], 2)
        ax.margins(x=0.1)
    made.supxlabel(f"perplexity divided by {to}'s (hollow: the interval holds 1"
                   f"{'; axes differ' * (len(settings) > 1)})", fontsize=9)
    return made


@style.figure
def findings(frame: pd.DataFrame) -> Figure:
    """Traits with their effect and interval, one panel per kind, the most certain on top; filled: a signal.

    Columns as from `prunekit.findings`: kind ("correlation", "best tenth"; others have figures of their own),
    name, effect, low, high, verdict.
    """
    units = {"correlation": "rank correlation with loss\n← lower     higher →",
             "best tenth": "log odds in the best tenth\n← rarer     more frequent →"}
    parts = {kind: frame[frame["kind"] == kind].head(10) for kind in units if (frame["kind"] == kind).any()}
    if not parts:
        return style.nothing()
    longest = max(map(len, parts.values()))
    made, axes = style.new(len(parts), width=style.WIDE, height=1.2 + 0.19 * longest)
    shown = {}
    for ax, (kind, rows) in zip(axes[0], parts.items(), strict=True):
        places = style.rows_of(ax, rows["name"], longest, 0.7, 0.7)
        signal = (rows["verdict"] != "no signal").to_numpy()
        ax.axvline(0, linestyle="--", **style.RULE)
        ax.hlines(places, rows["low"], rows["high"], color="#666666", linewidth=1)
        for chosen, face, label in ((signal, style.COLOURS[1], "signal"), (~signal, "white", "no signal")):
            if chosen.any():
                shown[label] = ax.scatter(rows["effect"][chosen], places[chosen], s=22, facecolor=face,
                                          edgecolor=style.COLOURS[1], zorder=3)
        ax.locator_params(axis="x", nbins=4)
        ax.set(xlabel=units[kind], title=kind)
    made.legend(shown.values(), shown, loc="outside upper center", ncols=2)
    return made


@style.figure
def recovery(frame: pd.DataFrame, dense: float) -> Figure:
    """Perplexity before (hollow) and after fine-tuning (filled), a panel per `setting`, one row per method.

    Above each row the recovered share with its interval; the dashed line is the dense model. (Perplexities
    have no intervals here: windows differ far more from each other than models do on the same windows.)
    Columns setting, method, ppl (pruned), tuned, recovered, recovered_low, recovered_high.
    """
    settings, methods = frame["setting"].unique(), frame["method"].unique()
    made, axes = style.new(len(settings), width=style.PAGE, height=1.1 + 0.38 * len(methods), sharey=True)
    for ax, setting in zip(axes[0], settings, strict=True):
        rows = frame[frame["setting"] == setting].set_index("method").reindex(methods)
        places = style.rows_of(ax, methods, len(methods), 0.6, 0.7)
        ax.hlines(places, rows["tuned"], rows["ppl"], color="#AAAAAA", linewidth=1.5)
        ax.plot(rows["ppl"], places, "o", color=style.COLOURS[1], markerfacecolor="white", label="pruned")
        ax.plot(rows["tuned"], places, "s", color=style.COLOURS[0], label="fine-tuned")
        for place, row in zip(places, rows.itertuples(), strict=True):
            low, share, high = map(style.percent, (row.recovered_low, row.recovered, row.recovered_high))
            ax.annotate(f"{share} ({low} to {high})", ((row.tuned + row.ppl) / 2, place), (0, 5),
                        textcoords="offset points", ha="center", fontsize=7)
        ax.axvline(dense, linestyle="--", label="dense", **style.RULE)
        ax.set(title=setting, xlabel="perplexity")
        style.far_apart(ax.xaxis, [dense, *rows["tuned"].dropna(), *rows["ppl"].dropna()], 10)
        ax.margins(x=0.12)
    made.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return made
