"""What notebooks show of recorded studies: arguments of `run.table` and `run.figure`, captions and all.

    run.table(**exhibits.table("paired")); run.figure(**exhibits.ratios("study"))
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunekit import figures
from prunekit.analysis import history
from prunekit.ledger.study import FIRST, recorded, recorded_by, studies, subject
from prunekit.metric.tree import Tree

if TYPE_CHECKING:
    import pandas as pd

_TABLES = {
    FIRST: ("perplexity of what one search found there, divided by the rival's on the same windows; "
            "interval, p and verdict by Holm's correction (`python -m recipes.first_search`)"),
    "paired": ("perplexity of the winner divided by the rival's on the same test windows, and the verdict by "
               "Holm's correction"),
    "redrawn": "perplexity of the winner by the rival's, for new draws of all windows",
    "update": "perplexity under the update by SparseGPT's, of a metric evolved with it, and of the winner"}
_READ = ("study", "rival", "metric", "target", "text", "draws", "winner_ppl", "ppl", "ratio", "low", "high",
         "p_holm", "detectable", "verdict")  # as far as they are there; intervals by Holm, if recorded so


def table(name: str) -> dict[str, Any]:
    """A table of all studies that have it (or that of `FIRST`), as `recorded-NAME`."""
    rows = recorded(name, "")
    whose = f"Recorded studies ({'; '.join(map(recorded_by, studies()))})" if "study" in rows else (
        "Recorded on {model} (test windows: {test_windows} tokens)".format(**rows.iloc[0]))
    read = [f"holm_{column}" if f"holm_{column}" in rows else column for column in _READ if column in rows]
    return {"frame": rows, "name": f"recorded-{name}", "columns": read,
            "caption": f"{whose}: {_TABLES[name]}."}


def ratios(name: str) -> dict[str, Any]:
    """The figure of what a study (or `FIRST`) found, against every other line; by Holm if recorded so."""
    rows = recorded(FIRST) if name == FIRST else recorded("paired", name)
    levels = rows.filter(like="holm_").rename(columns=lambda column: column.removeprefix("holm_"))
    drawn = figures.ratios(rows.rename(columns={"rival": "method"}).assign(**levels), "that line")
    whose = f"Recorded study, {subject(name)}: perplexity of its winner" if name != FIRST else (
        f"Recorded on {rows['model'].iloc[0]}: perplexity of what one search found there, "
        f"`{Tree.parse(rows['tree'].iloc[0]).infix()}`,")
    by = " by Holm's correction" * (not levels.empty)
    return {"figure": drawn, "name": f"recorded-{name if name == FIRST else 'paired'}",
            "caption": f"{whose} divided by that of each other line, with intervals{by} (lower is better)."}


def convergence() -> dict[str, Any]:
    """The figure of how low the first study's searches have come, and when."""
    known, made = _searches(studies()[0])
    found = history.convergence(known)
    return {"figure": figures.convergence(found[found["high"] < 2 * found["low"].min()]),
            "name": "recorded-convergence",
            "caption": ("Recorded study, lowest loss so far against distinct evaluations, within twice the "
                        f"minimum: median and range of {made}.")}


def leads() -> dict[str, Any]:
    """The table on which `study.lead` rests, of the first study."""
    known, made = _searches(studies()[0])
    return {"frame": history.leads(known, "modern"), "name": "recorded-leads",
            "caption": ("Recorded study, minimum loss of modern minus that of each other search, both after "
                        f"as many distinct evaluations: {made}.")}


def _searches(name: str) -> tuple[pd.DataFrame, str]:
    known = history.searches(recorded("history", name))
    return known, f"{known['seed'].nunique()} seeds on {subject(name)}; {recorded_by(name)}"
