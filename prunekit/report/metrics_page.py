"""The page of the metrics: each method of the catalogue and the search's winner, its equals, how it did."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from prunekit.choices import Target, percent
from prunekit.errors import UsageError
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
        rows = measured[measured["key"] == keys[method.name]]
        table = display.readable(rows[["setting", "ppl", "low", "high", "n"]]) if len(rows) else []
        cards.append({"method": method, "same": [other.name for other in same if other != method],
                      "formula": html.mathml(method.tree.latex() if method.tree else r"w^2 / U_{ii}^2"),
                      "drawing": method.tree and _drawn(method.tree),
                      "table": table, "runs": list(dict.fromkeys(rows.get("topic", [])))})
    classes: dict[Any, list[str]] = {}  # of what needs no solver: key, and all the names that it goes by
    for method in methods:
        if not method.update:
            classes.setdefault(keys[method.name], []).append(method.name)
    rows = [(html.mathml(Tree(rank[1]).latex()), names) for (_, rank), names in classes.items()]
    rows.sort(key=lambda row: -len(row[1]))
    return html.template("metrics.html.j2", cards=cards, classes=rows)


def _artifact(made: Mapping[str, Any], topic: str, name: str) -> Path | None:
    artifact = made[topic]["made"].get("artifacts", {}).get(name) if topic in made else None
    return made[topic]["folder"] / next(iter(artifact["files"])) if artifact else None


def _measured(made: Mapping[str, Any]) -> pd.DataFrame:
    """Rows with key, setting, ppl, low, high, n and topic, of every table that there is; a metric under
    another name or spelling is the same one."""
    files = {topic: _artifact(made, topic, name) for topic, name in _MEASURED}
    frames = [pd.read_csv(file, dtype=_TEXT).assign(topic=topic) for topic, file in files.items() if file]
    if not frames:
        return pd.DataFrame(columns=["key"])
    frame = pd.concat(frames).fillna({"update": ""})
    frame["key"] = [_key(Method("", _tree(row.tree), row.group, row.update or None))
                    for row in frame.itertuples()]
    frame["setting"] = [percent(Target(round(row.sparsity, 4), row.pattern)) for row in frame.itertuples()]
    return frame.drop_duplicates(["key", "setting"])


def _tree(text: str) -> Tree | None:
    """None for SparseGPT's own score, which is no tree."""
    try:
        return Tree.parse(text)
    except UsageError:
        return None


def _key(method: Method) -> tuple[Any, ...]:
    """Equal for methods that are proven to give the same masks and the same weights."""
    group = "solver" if method.update == "obs-iter" else method.group
    return method.update, method.tree and rank_key(method.tree, group)


def _drawn(tree: Tree) -> dict[str, Any]:
    """The tree's nodes as (symbol, x, y, (x, y) of the node above), in pixels, for the template's drawing."""
    nodes = layout(tree)
    at = [(x * 74 + 40, depth * 46 + 18) for _, x, depth, _ in nodes]
    return {"nodes": [(symbol, *place, above if above is None else at[above])
                      for (symbol, *_, above), place in zip(nodes, at, strict=True)],
            "width": max(x for x, _ in at) + 40, "height": max(y for _, y in at) + 18}
