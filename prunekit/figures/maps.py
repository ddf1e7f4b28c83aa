"""Numbers as colours."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from prunekit.choices import called
from prunekit.figures import style


@style.figure
def table_map(frame: pd.DataFrame, unit: str, *, digits: int = 2, low: float | None = None,
              high: float | None = None) -> Figure:
    """A DataFrame as a map of colours with its numbers in it; index down, columns across, blanks for NaN."""
    values = frame.to_numpy(dtype=float)
    texts = [["" if np.isnan(value) else f"{value:.{digits}f}" for value in row] for row in values]
    down, across = [list(map(called, axis)) for axis in (frame.index, frame.columns)]
    cell = max(0.38, 0.06 * max(len(text) for row in texts for text in row) + 0.08)
    width = min(style.PAGE, 0.5 + 0.062 * max(map(len, down)) + max(1.0, cell * len(across)))
    made, ((ax,),) = style.new(width=width, height=0.9 + 0.22 * len(down))
    image = ax.imshow(values, aspect="auto", vmin=low, vmax=high, cmap="cividis")
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if image.norm(value) < 0.47 else "black"
        ax.text(column, row, texts[row][column], ha="center", va="center", fontsize=7, color=colour)
    turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if max(map(len, across)) > 4 else {}
    ax.set_xticks(range(len(across)), across, **turned)
    ax.set_yticks(range(len(down)), down)
    ax.grid(visible=False)
    ax.set_title(unit)
    return made


def matrices(named: Mapping[str, Tensor]) -> Figure:
    """The corner of several matrices (out, in) side by side, as `corner` shows them."""
    parts = []
    for name, matrix in named.items():
        corner = matrix[:48, :48].cpu()
        values = pd.DataFrame(corner.float().numpy()).add_prefix("input ")
        parts.append(values.assign(name=name, mask=not corner.dtype.is_floating_point))
    return corners(pd.concat(parts, ignore_index=True))


@style.figure
def corners(frame: pd.DataFrame) -> Figure:
    """Small matrices side by side, their rows below each other in the frame, as from `matrices`."""
    named = list(frame.groupby("name", sort=False))
    made, axes = style.new(len(named), width=style.PAGE, height=style.PAGE / len(named) + 0.45)
    for ax, (name, rows) in zip(axes[0], named, strict=True):
        values = rows.filter(like="input ").dropna(axis=1, how="all").to_numpy()
        corner(ax, name, values.astype(bool) if rows["mask"].all() else values)
    axes[0][0].set_ylabel("outputs")
    return made


def corner(ax: Any, title: str, matrix: np.ndarray) -> None:
    """A matrix (out, in): a mask (bool) dark where it keeps, values by rank, which is what a mask sees."""
    if matrix.dtype == bool:
        ax.imshow(~matrix, cmap="gray", interpolation="nearest", vmin=-0.15, vmax=1)
    else:
        ranks = matrix.ravel().argsort(kind="stable").argsort()
        ax.imshow(ranks.reshape(matrix.shape), interpolation="nearest")
    ax.set(title=called(title), xticks=[], yticks=[], xlabel="inputs")
    ax.grid(visible=False)


@style.figure
def simplex(frame: pd.DataFrame, unit: str = "loss") -> Figure:
    """The triangle of monomials W^a G^b X^c (a + b + c = 1), coloured by loss.

    Columns a, b, c, fitness, label ("" for none).
    """
    made, ((ax,),) = style.new(width=style.WIDE, height=3.3)
    top = np.sqrt(3) / 2
    frame = frame.assign(x=frame["c"] + frame["b"] / 2, y=frame["b"] * top)
    ax.plot([0, 1, 0.5, 0], [0, 0, top, 0], zorder=1, **style.RULE)
    low, high = frame["fitness"].quantile([0, 0.9])  # the worst tenth: one colour
    norm = "log" if style.spread(frame["fitness"]) else "linear"
    dots = ax.scatter(frame["x"], frame["y"], c=frame["fitness"].clip(upper=high), norm=norm, s=75,
                      marker="h", zorder=2, linewidth=0)
    bar = made.colorbar(dots, ax=ax, label=unit, extend="max", shrink=0.8)
    if norm == "log":
        style.log_scale(bar.ax.yaxis, (low, high))
    for text, x, y in (("W", -0.08, 0), ("X", 1.08, 0), ("G", 0.5, top + 0.09)):
        ax.text(x, y, text, ha="center", va="center", fontsize=11, weight="bold")
    labelled = frame[frame["label"].astype(bool)].sort_values("fitness")
    for place, row in enumerate(labelled.itertuples(), 1):
        ax.scatter(row.x, row.y, s=85, color="white", edgecolor=style.COLOURS[1], linewidth=1.4, zorder=3)
        ax.text(row.x, row.y, str(place), ha="center", va="center_baseline", fontsize=7, zorder=4)
        ax.text(-0.2, 0.98 - 0.075 * place, f"{place}  {called(row.label)}", fontsize=8, va="center")
    ax.set_aspect("equal")
    ax.set_axis_off()
    ax.set(xlim=(-0.22, 1.16), ylim=(-0.06, 1.02))
    return made
