"""What notebooks show of recorded studies: arguments of `run.table` and `run.figure`, captions and all.

    run.table(**exhibits.table("paired")); run.figure(**exhibits.ratios("study"))
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunekit import figures
from prunekit.analysis import history
from prunekit.ledger.study import on_first_text, recorded, recorded_by, studies, subject

if TYPE_CHECKING:
    import pandas as pd

_TABLES = {
    "paired": ("perplexity of the winner divided by the rival's on the same test windows, and the verdict by "
               "Holm's correction"),
    "redrawn": "perplexity of the winner by the rival's, for new draws of all windows",
    "update": "perplexity under the update by SparseGPT's, of a metric evolved with it, and of the winner"}
_READ = ("study", "rival", "metric", "target", "text", "draws", "winner_ppl", "ppl", "ratio", "low", "high",
         "p_holm", "detectable", "verdict")  # as far as they are there; intervals by Holm, if recorded so


def table(name: str) -> dict[str, Any]:
    """A table of all studies that have it, as `recorded-NAME`."""
    rows = recorded(name, "")
    by_holm = "holm_low" in rows and rows["holm_low"].notna().all()
    read = [f"holm_{column}" if by_holm and f"holm_{column}" in rows else column
            for column in _READ if column in rows]
    return {"frame": rows, "name": f"recorded-{name}", "columns": read,
            "caption": f"Recorded studies ({'; '.join(map(recorded_by, studies()))}): {_TABLES[name]}."}


def ratios(name: str) -> dict[str, Any]:
    """The figure of what a study found, against every other line; by Holm if recorded so, of several texts on
    the first."""
    rows, text = on_first_text(recorded("paired", name))
    levels = rows.filter(like="holm_").rename(columns=lambda column: column.removeprefix("holm_"))
    drawn = figures.ratios(rows.rename(columns={"rival": "method"}).assign(**levels), "that line")
    by = " by Holm's correction" * (not levels.empty)
    return {"figure": drawn, "name": "recorded-paired",
            "caption": f"Recorded study, {subject(name)}: perplexity of its winner{text} divided by that of "
                       f"each other line, with intervals{by} (lower is better)."}


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
