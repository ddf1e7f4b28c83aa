"""The page of the metrics: each method of the catalogue and the search's winner, what it provably equals, how it did."""
from __future__ import annotations

from collections.abc import Mapping
from html import escape
from itertools import groupby
from typing import Any

import pandas as pd

from prunekit.metric import text
from prunekit.metric.catalogue import METHODS, Method
from prunekit.metric.rank import rank_key
from prunekit.metric.tree import Tree
from prunekit.workbook import markup, shown

_GROUPS = {"row": "each row loses its lowest scores", "layer": "one threshold for the whole layer",
           "variant": "rows, by their share of the cumulated score"}
_UPDATES = {None: "none", "obs": "OBS, after the mask is chosen", "obs-iter": "OBS, block by block while the mask is chosen"}
# The tables with perplexities on the test windows, and the saved tree of the search.
_MEASURED = (("03_baselines", "tables/perplexity"), ("04_gp_search", "tables/result"))
_WINNER = ("04_gp_search", "winner")


def body(profile: str, entries: list[Mapping[str, Any]]) -> str:
    """Winner first, then the catalogue in its order: formula, tree, rank class, perplexities with 95 % intervals."""
    made = {entry["topic"]: entry for entry in entries}
    methods = [*_winner(made), *METHODS.values()]
    classes = {method.name: rank_key(method.tree) for method in methods if method.tree}
    measured = _measured(made)
    cards = [_card(method, [name for name, key in classes.items()
                            if method.tree and name != method.name and key == classes[method.name]], measured)
             for method in methods]
    return ("<h1>Metrics</h1><p class='lead'>Every method of the catalogue as one line over <b>W</b> (absolute weight), "
            "<b>G</b> (accumulated gradient norm) and <b>X</b> (squared input norm). Two metrics of one rank class are "
            "<em>proven</em> to remove the same weights when compared within rows, whatever the layer; what is not in one "
            f"class may still agree on most weights.</p>{_overview(methods, classes)}{''.join(cards)}")


def _winner(made: Mapping[str, Any]) -> list[Method]:
    entry = made.get(_WINNER[0])
    artifact = entry["made"].get("artifacts", {}).get(_WINNER[1]) if entry else None
    if not artifact:
        return []
    tree = Tree.from_json(entry["folder"] / next(iter(artifact["files"])))
    return [Method("search-winner", tree, source="found by the search of notebook 04")]


def _measured(made: Mapping[str, Any]) -> pd.DataFrame:
    """Rows with tree, group, update, setting, ppl, low, high, n and the topic of their run; none twice."""
    frames = []
    for topic, name in _MEASURED:
        artifact = made[topic]["made"].get("artifacts", {}).get(name) if topic in made else None
        if artifact:
            frames.append(pd.read_csv(made[topic]["folder"] / next(iter(artifact["files"]))).assign(topic=topic))
    if not frames:
        return pd.DataFrame(columns=["tree", "group", "update"])
    frame = pd.concat(frames).fillna({"tree": "", "update": ""})
    frame["setting"] = frame["pattern"].where(frame["pattern"] != "unstructured", (frame["sparsity"] * 100).map("{:.0f} %".format))
    return frame.drop_duplicates(["tree", "group", "update", "setting"])


def _overview(methods: list[Method], classes: Mapping[str, Any]) -> str:
    """The rank classes: a row for each, with all the names that it goes by."""
    rows = []
    for key, members in groupby(sorted(classes, key=lambda name: str(classes[name])), key=classes.get):
        canonical = Tree(key[1])
        names = ", ".join(f'<a href="#{name}">{name}</a>' for name in members)
        rows.append((names, f"<tr><td>{markup.mathml(canonical.latex())}</td><td>{names}</td></tr>"))
    rows.sort(key=lambda row: -row[0].count("<a"))
    return (f"<h2 id='classes'>Rank classes</h2><p>{len(classes)} names, {len(rows)} metrics that are not proven equal.</p>"
            "<table><thead><tr><th>canonical form</th><th>goes by the names</th></tr></thead>"
            f"<tbody>{''.join(row for _, row in rows)}</tbody></table>")


def _card(method: Method, same: list[str], measured: pd.DataFrame) -> str:
    tree = method.tree
    formula = markup.mathml(tree.latex(), display=True) if tree else markup.mathml(r"w^2 / U_{ii}^2", display=True)
    equal = "nothing else on this page" if not same else ", ".join(f'<a href="#{name}">{name}</a>' for name in same)
    facts = [("as text", f"<code>{escape(str(tree))}</code>" if tree else "chosen inside the solver"),
             ("reads", ", ".join(sorted(method.needs))),
             ("compared", _GROUPS[method.group]), ("weight update", _UPDATES[method.update]),
             ("same masks as", equal if tree else "none: not a metric of W, G and X"),
             ("source", escape(method.source)), ("note", escape(method.note))]
    table = "".join(f"<tr><th scope='row'>{name}</th><td>{value}</td></tr>" for name, value in facts if value)
    return (f"<section class='metric'><h2 id='{method.name}'>{method.name}</h2><div class='formula'>{formula}</div>"
            f"<div class='sides'><table><tbody>{table}</tbody></table>{drawing(tree) if tree else ''}</div>"
            f"{_perplexities(method, measured)}</section>")


def _perplexities(method: Method, measured: pd.DataFrame) -> str:
    text_, update = str(method.tree or ""), method.update or ""
    rows = measured[(measured["tree"] == text_) & (measured["group"] == method.group) & (measured["update"] == update)]
    if rows.empty:
        return "<p class='pk-banner'>Not run here by itself: add it to <code>methods</code> in notebook 03.</p>"
    made = "".join(f' <a href="run-{topic}.html">run of {topic[:2]}</a>' for topic in dict.fromkeys(rows["topic"]))
    cells = shown.readable(rows[["setting", "ppl", "low", "high", "n"]])
    head = "".join(f"<th scope='col'>{heading}</th>" for heading, *_ in cells)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
                    for row in zip(*(column for _, column, _ in cells), strict=True))
    return (f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
            f"<p class='pk-banner'>Perplexity on n test windows:{made}</p>")


def drawing(tree: Tree) -> str:
    """The tree as a small SVG in the page's own colours."""
    nodes = text.layout(tree)
    at = [(x * 74 + 40, depth * 46 + 18) for _, x, depth, _ in nodes]
    width, height = max(x for x, _ in at) + 40, max(y for _, y in at) + 18
    lines = "".join(f'<path d="M{at[parent][0]:g} {at[parent][1] + 12:g}L{x:g} {y - 12:g}"/>'
                    for (*_, parent), (x, y) in zip(nodes, at, strict=True) if parent is not None)
    boxes = "".join(f'<g class="{symbol if symbol in "WGX" else "op"}"><rect x="{x - 29:g}" y="{y - 13:g}" width="58" height="26" rx="6"/>'
                    f'<text x="{x:g}" y="{y + 4.5:g}">{escape(symbol)}</text></g>' for (symbol, *_), (x, y) in zip(nodes, at, strict=True))
    return (f'<svg class="tree" role="img" aria-label="Tree of {escape(str(tree))}" viewBox="0 0 {width:g} {height:g}" '
            f'width="{width:g}" height="{height:g}">{lines}{boxes}</svg>')
