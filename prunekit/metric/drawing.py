"""A tree as a picture: with lines of text, and on matplotlib axes."""
from __future__ import annotations

from typing import Any

from prunekit.metric.primitives import arity
from prunekit.metric.syntax import fold

# Okabe and Ito's palette, safe for the common forms of colour blindness
_COLOURS = {"W": "#56B4E9", "G": "#009E73", "X": "#E69F00"}


def ascii(tree: tuple[str, ...]) -> str:
    def step(symbol: str, args: list[list[str]]) -> list[str]:
        lines = [symbol]
        for i, block in enumerate(args):
            last = i == len(args) - 1
            lines.append(("└── " if last else "├── ") + block[0])
            lines += [("    " if last else "│   ") + line for line in block[1:]]
        return lines

    return "\n".join(fold(tree, step))


def layout(tree: tuple[str, ...]) -> list[tuple[str, float, int, int | None]]:
    """(symbol, x, depth, parent index) per node in prefix order: leaves side by side, parents centred."""
    nodes: list[list[Any]] = []
    open_: list[tuple[int, int]] = []  # (node, operands still to come)
    for index, symbol in enumerate(tree):
        nodes.append([symbol, 0.0, len(open_), open_[-1][0] if open_ else None])
        if open_:
            open_[-1] = (open_[-1][0], open_[-1][1] - 1)
        open_.append((index, arity(symbol)))
        while open_ and open_[-1][1] == 0:
            open_.pop()
    leaves = 0
    for node in nodes:
        if not arity(node[0]):
            node[1], leaves = float(leaves), leaves + 1
    for index in reversed(range(len(nodes))):
        below = [n[1] for n in nodes if n[3] == index]
        if below:
            nodes[index][1] = sum(below) / len(below)
    return [tuple(n) for n in nodes]


def draw(tree: tuple[str, ...], ax: Any, fontsize: float = 11) -> Any:
    """Rounded boxes joined by lines, root on top; W, G and X in colour."""
    nodes = layout(tree)
    for _, x, depth, parent in nodes:
        if parent is not None:
            ends = [x, nodes[parent][1]], [-depth, -nodes[parent][2]]
            ax.plot(*ends, color="#666666", linewidth=1.2, zorder=1)
    for symbol, x, depth, _ in nodes:
        colour = _COLOURS.get(symbol, "#F4F4F4")
        box = {"boxstyle": "round,pad=0.35", "facecolor": colour, "edgecolor": "#333333"}
        style = {"ha": "center", "va": "center", "fontsize": fontsize, "family": "monospace"}
        ax.text(x, -depth, symbol, bbox=box, zorder=2, **style)
    ax.set_xlim(min(n[1] for n in nodes) - 0.7, max(n[1] for n in nodes) + 0.7)
    ax.set_ylim(-max(n[2] for n in nodes) - 0.6, 0.6)
    ax.set_axis_off()
    return ax
