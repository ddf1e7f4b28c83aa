"""The page of the metrics: each method of the catalogue and the search's winner, its equals, how it did."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from prunekit.metric.catalogue import METHODS, Method
from prunekit.metric.drawing import layout
from prunekit.metric.rank import rank_key
from prunekit.metric.tree import Tree
from prunekit.report import html
from prunekit.workbook import display

# The tables with perplexities on the test windows, and the saved tree of the search.
_MEASURED = (("03_baselines", "tables/perplexity"), ("04_gp_search", "tables/result"))
_WINNER = ("04_gp_search", "winner")
_TEXT = {"pattern": str, "tree": str, "update": str}  # columns that may look like numbers, or like nothing


def body(entries: list[Mapping[str, Any]]) -> str:
    """Winner first, then the catalogue in its order: formula, tree, rank class, perplexities, intervals."""
    made = {entry["topic"]: entry for entry in entries}
    methods = list(METHODS.values())
    if winner := _artifact(made, *_WINNER):
        source = "found by the search of notebook 04"
        methods.insert(0, Method("search-winner", Tree.from_json(winner), source=source))
    measured, keys = _measured(made), {method.name: _key(method) for method in methods}
    cards = []
    for method in methods:
        same = [other for other in methods if keys[other.name] == keys[method.name]]
        rows = measured[measured["tree"].isin([str(other.tree or "") for other in same])
                        & (measured["group"] == method.group) & (measured["update"] == (method.update or ""))]
        table = display.readable(rows[["setting", "ppl", "low", "high", "n"]]) if len(rows) else []
        cards.append({"method": method, "same": [other.name for other in same if other != method],
                      "formula": html.mathml(method.tree.latex() if method.tree else r"w^2 / U_{ii}^2"),
                      "drawing": method.tree and _drawn(method.tree),
                      "table": table, "runs": list(dict.fromkeys(rows.get("topic", [])))})
    classes: dict[Any, list[str]] = {}  # within rows: canonical form, and all the names that it goes by
    for method in filter(lambda method: method.tree, methods):
        classes.setdefault(rank_key(method.tree), []).append(method.name)
    rows = [(html.mathml(Tree(key[1]).latex()), names) for key, names in classes.items()]
    rows.sort(key=lambda row: -len(row[1]))
    return html.template("metrics.html.j2", cards=cards, classes=rows)


def _artifact(made: Mapping[str, Any], topic: str, name: str) -> Path | None:
    artifact = made[topic]["made"].get("artifacts", {}).get(name) if topic in made else None
    return made[topic]["folder"] / next(iter(artifact["files"])) if artifact else None


def read(made: Mapping[str, Any], topic: str, name: str) -> pd.DataFrame:
    """A table that a notebook saved; without rows where it was not run."""
    file = _artifact(made, topic, name)
    return pd.read_csv(file, dtype=_TEXT) if file else pd.DataFrame()


def _measured(made: Mapping[str, Any]) -> pd.DataFrame:
    """Rows with tree, group, update, setting, ppl, low, high, n and topic, of every table that there is."""
    frame = pd.concat([read(made, *place).assign(topic=place[0]) for place in _MEASURED])
    if frame.empty:
        return pd.DataFrame(columns=["tree", "group", "update"])
    frame = frame.fillna({"tree": "", "update": ""})
    shares = (frame["sparsity"] * 100).map("{:.0f} %".format)
    frame["setting"] = frame["pattern"].where(frame["pattern"] != "unstructured", shares)
    return frame.drop_duplicates(["tree", "group", "update", "setting"])


def _key(method: Method) -> tuple[Any, ...]:
    """Equal for methods that are proven to give the same masks and the same weights."""
    return method.update, method.tree and rank_key(method.tree, method.group)


def _drawn(tree: Tree) -> dict[str, Any]:
    """The tree's nodes as (symbol, x, y, (x, y) of the node above), in pixels, for the template's drawing."""
    nodes = layout(tree)
    at = [(x * 74 + 40, depth * 46 + 18) for _, x, depth, _ in nodes]
    return {"nodes": [(symbol, *place, above if above is None else at[above])
                      for (symbol, *_, above), place in zip(nodes, at, strict=True)],
            "width": max(x for x, _ in at) + 40, "height": max(y for _, y in at) + 18}
