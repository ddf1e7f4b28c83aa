"""The style of all figures, and the parts that several share."""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from inspect import signature
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from prunekit.choices import called

# Okabe and Ito's colours, which stay apart under every common form of colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#767676")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (5, 4)))
# A name looks the same in every figure: its number in COLOURS, its marker and dash, and whether the marker is
# hollow, where lines lie on each other (GBLM on Wanda). A search looks like the metric that came out of it.
NAMES: dict[str, tuple[int, str, Any, bool]] = {
    "magnitude": (7, "s", "-", False), "wanda": (0, "o", "-", False), "ria": (5, "^", "--", True),
    "gblm": (3, "D", ":", True), "pruner-zero": (1, "v", "-", False), "sparsegpt": (2, "P", "-.", True),
    "admm": (4, "X", "--", False), "search winner": (6, "*", (0, (5, 1)), False),
    "wanda++": (5, "h", "-.", False), "grad-weight": (3, "<", "--", False),
}
NAMES |= {"winner": NAMES["search winner"], "modern": NAMES["search winner"], "paper": NAMES["pruner-zero"],
          "random": (7, "X", ":", False), "grid": (5, "D", "-.", True),
          "parametric": (4, "^", "--", True)}
STYLE = {
    "figure.dpi": 110, "savefig.dpi": 300, "figure.constrained_layout.use": True, "font.size": 9,
    "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#DDDDDD", "grid.linewidth": 0.5, "axes.axisbelow": True,
    "lines.linewidth": 1.5, "lines.markersize": 4, "legend.frameon": False, "axes.titlelocation": "left",
    "image.cmap": "viridis", "figure.facecolor": "white",
}
COLUMN, PAGE = 3.4, 7.0  # inches: one column, both columns of a paper
WIDE = 4.6  # as wide as a figure may be whose text is still read when it is printed in one column
RULE = {"color": "#444444", "linewidth": 0.8}  # of lines that are no data: references and borders


def figure(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the workbook's style, whatever the settings are, an empty table as a sentence.

    The figure remembers how it was drawn.
    """
    @wraps(draw)
    def styled(*args: Any, **kwargs: Any) -> Figure:
        given = signature(draw).bind(*args, **kwargs).arguments
        with mpl.rc_context(STYLE):
            empty = getattr(next(iter(given.values())), "empty", False)
            made: Any = nothing() if empty else draw(*args, **kwargs)
        made.drawn = {"by": draw.__name__, "arguments": given}
        return made
    return styled


def nothing() -> Figure:
    made = Figure(figsize=(COLUMN, 0.5))
    made.text(0.5, 0.5, "nothing to show: the table is empty", ha="center", va="center", color="#444444")
    return made


def new(columns: int = 1, rows: int = 1, *, height: float, width: float = COLUMN, **how: Any
        ) -> tuple[Figure, Any]:
    """A figure and its axes, by row and column."""
    made = Figure(figsize=(width, height))
    return made, made.subplots(rows, columns, squeeze=False, **how)


def panes(names: Sequence[str], most: int, width: float, each: float, more: float,
          sharex: bool = True) -> tuple[Figure, Any]:
    """A figure with one of equal axes for each name, at most so many in a row, `each` inches high."""
    columns = min(most, len(names))
    rows = -(-len(names) // columns)
    made, axes = new(columns, rows, width=width, height=each * rows + more, sharex=sharex, sharey=True)
    for ax, name in zip(axes.flat, names, strict=False):
        ax.set_title(name)
    for ax in axes.flat[len(names):]:
        ax.set_visible(False)
    return made, axes


def legend(ax: Any) -> None:
    """Above the picture, where it never lies on data; as many columns as there is room for."""
    made = ax.figure
    handles, labels = ax.get_legend_handles_labels()
    fit = int(made.bbox.width / made.dpi * 15 / (max(map(len, labels)) + 5))
    made.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), max(1, fit)))


def looks(names: Iterable[Any]) -> dict[Any, dict[str, Any]]:
    """How a figure draws the lines of these names: those of `NAMES` as everywhere, others in what is left.

    What follows a comma is a variant ("wanda, plain"): its colour and marker, another dash and filling.
    """
    own = {name: NAMES.get(str(name).partition(", ")[0]) for name in names}
    free = cycle(sorted(set(range(8)) - {look[0] for look in own.values() if look}) or range(8))
    made: dict[Any, dict[str, Any]] = {}
    variants: Counter[Any] = Counter()
    for name, look in own.items():
        place = 0 if look else next(free)
        colour, marker, dash, hollow = look or (place, MARKERS[place], DASHES[place], False)
        if look and variants[look]:
            dash, hollow = DASHES[-variants[look]], not hollow
        variants[look] += 1
        made[name] = {"color": COLOURS[colour], "linestyle": dash, "marker": marker,
                      "markersize": 6 if hollow or marker == "*" else 4,
                      "markerfacecolor": "none" if hollow else COLOURS[colour]}
    return made


def by_group(ax: Any, frame: pd.DataFrame, by: str, x: str, y: str) -> None:
    """y against x, one line for each value of `by`, with a band where there are columns low and high."""
    for name, look in looks(frame[by].unique()).items():
        rows = frame[frame[by] == name].sort_values(x)
        if {"low", "high"} <= set(rows):
            ax.fill_between(rows[x], rows["low"], rows["high"], color=look["color"], alpha=0.1, linewidth=0)
        ax.plot(rows[x], rows[y], label=called(name), markevery=1 + len(rows) // 10, **look)


def percent(value: float, _: Any = None) -> str:
    """A share as a label of a figure or its axis: number, space, sign."""
    return f"{100 * value:.0f} %"


def thousands(value: float, _: Any = None) -> str:
    """A number as a label: 20,000."""
    return f"{value:,.10g}"


def rows_of(ax: Any, names: Sequence[Any], longest: int, below: float, above: float) -> np.ndarray:
    """The vertical axis as a list of names, the first on top where the longest list has it; their places."""
    places = np.arange(longest)[::-1][:len(names)]
    ax.set_yticks(places, list(map(called, names)))
    ax.set_ylim(-below, longest - 1 + above)
    ax.grid(axis="y", visible=False)
    return places


def ticks(axis: Any, places: Iterable[float]) -> None:
    """Numbers at these places of a logarithmic axis, and nowhere else."""
    axis.set_major_locator(FixedLocator(list(places)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(thousands)


def log_scale(axis: Any, values: Iterable[float]) -> None:
    """A logarithmic axis with readable numbers: round ones, as many as are at most eight."""
    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    values = [value for value in values if np.isfinite(value)]
    low, high = min(values, default=1) / 1.1, max(values, default=1) * 1.1
    for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1,)):
        places = [step * 10.0**power for power in range(-6, 30) for step in steps]
        places = [place for place in places if low <= place <= high]
        if len(places) <= 8:
            break
    ticks(axis, places)


def far_apart(axis: Any, values: list[float], factor: float) -> None:
    """Logarithmic where the largest value is more than `factor` times the smallest, else with few numbers."""
    if max(values) > factor * min(values):
        log_scale(axis, values)
    else:
        axis.axes.locator_params(axis=axis.axis_name, nbins=4)


def spread(losses: pd.Series) -> bool:
    """Do losses differ by more than a factor of five? Then only a logarithm tells the low ones apart."""
    return 0 < 5 * losses.min() < losses.max()
