"""The page of the metrics: each method of the catalogue and the search's winner, what it provably equals, how
it did."""
from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import pandas as pd

from prunekit.metric import syntax
from prunekit.metric.catalogue import METHODS, Method
from prunekit.metric.rank import rank_key
from prunekit.metric.tree import Tree
from prunekit.report import html
from prunekit.workbook import display

# The tables with perplexities on the test windows, and the saved tree of the search.
_MEASURED = (("03_baselines", "tables/perplexity"), ("04_gp_search", "tables/result"))
_WINNER = ("04_gp_search", "winner")


def body(profile: str, entries: list[Mapping[str, Any]]) -> str:
    """Winner first, then the catalogue in its order: formula, tree, rank class, perplexities with 95 %
    intervals."""
    made = {entry["topic"]: entry for entry in entries}
    methods = [*_winner(made), *METHODS.values()]
    measured = _measured(made)
    cards = []
    for method in methods:
        same = [other for other in methods if _key(other) == _key(method)]
        rows = measured[measured["tree"].isin([str(other.tree or "") for other in same]) & (measured["group"] == method.group)
                        & (measured["update"] == (method.update or ""))]
        cards.append({"method": method, "same": [other.name for other in same if other != method],
                      "formula": html.mathml(method.tree.latex() if method.tree else r"w^2 / U_{ii}^2"),
                      "drawing": drawing(method.tree) if method.tree else "", "runs": list(dict.fromkeys(rows.get("topic", []))),
                      "table": display.readable(rows[["setting", "ppl", "low", "high", "n"]]) if len(rows) else []})
    return html.template("metrics.html.j2", cards=cards, classes=_classes(methods))


def _winner(made: Mapping[str, Any]) -> list[Method]:
    path = _artifact(made, *_WINNER)
    return [Method("search-winner", Tree.from_json(path), source="found by the search of notebook 04")] if path else []


def _artifact(made: Mapping[str, Any], topic: str, name: str) -> Any:
    artifact = made[topic]["made"].get("artifacts", {}).get(name) if topic in made else None
    return made[topic]["folder"] / next(iter(artifact["files"])) if artifact else None


def _measured(made: Mapping[str, Any]) -> pd.DataFrame:
    """Rows with tree, group, update, setting, ppl, low, high, n and the topic of their run, of every table
    that there is."""
    frames = [pd.read_csv(path, dtype=dict.fromkeys(("pattern", "tree", "update"), str)).assign(topic=topic) for topic, name in _MEASURED
              if (path := _artifact(made, topic, name))]
    if not frames:
        return pd.DataFrame(columns=["tree", "group", "update"])
    frame = pd.concat(frames).fillna({"tree": "", "update": ""})
    frame["setting"] = frame["pattern"].where(frame["pattern"] != "unstructured", (frame["sparsity"] * 100).map("{:.0f} %".format))
    return frame.drop_duplicates(["tree", "group", "update", "setting"])


def _key(method: Method) -> tuple[Any, ...]:
    """Equal for methods that are proven to give the same masks and the same weights."""
    return method.update, method.tree and rank_key(method.tree, method.group)


def _classes(methods: list[Method]) -> list[tuple[str, list[str]]]:
    """The rank classes within rows: canonical form and all the names that it goes by, most names first."""
    classes: dict[Any, list[str]] = {}
    for method in methods:
        if method.tree:
            classes.setdefault(rank_key(method.tree), []).append(method.name)
    return sorted(((html.mathml(Tree(key[1]).latex()), names) for key, names in classes.items()), key=lambda c: -len(c[1]))


def drawing(tree: Tree) -> str:
    """The tree as a small SVG in the page's own colours."""
    nodes = syntax.layout(tree)
    at = [(x * 74 + 40, depth * 46 + 18) for _, x, depth, _ in nodes]
    width, height = max(x for x, _ in at) + 40, max(y for _, y in at) + 18
    lines = "".join(f'<path d="M{at[parent][0]:g} {at[parent][1] + 12:g}L{x:g} {y - 12:g}"/>'
                    for (*_, parent), (x, y) in zip(nodes, at, strict=True) if parent is not None)
    boxes = "".join(f'<g class="{symbol if symbol in "WGX" else "op"}"><rect x="{x - 29:g}" y="{y - 13:g}" width="58" height="26" rx="6"/>'
                    f'<text x="{x:g}" y="{y + 4.5:g}">{escape(symbol)}</text></g>' for (symbol, *_), (x, y) in zip(nodes, at, strict=True))
    return (f'<svg class="tree" role="img" aria-label="Tree of {escape(str(tree))}" viewBox="0 0 {width:g} {height:g}" '
            f'width="{width:g}" height="{height:g}">{lines}{boxes}</svg>')
