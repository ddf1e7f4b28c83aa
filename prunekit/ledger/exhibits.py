"""What notebooks show of recorded studies: arguments of `run.table` and `run.figure`, captions and all.

    run.table(**exhibits.table("paired")); run.figure(**exhibits.ratios("study"))
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunekit import figures
from prunekit.analysis import history
from prunekit.choices import percent
from prunekit.evaluate.sentences import bounds
from prunekit.ledger.study import against_wanda, on_first_text, recorded, recorded_by, studies, subject

if TYPE_CHECKING:
    import pandas as pd

_TABLES = {
    "paired": "perplexity of the winner by the rival's on the same test windows, one draw of the statistics",
    "redrawn": "perplexity of the winner by the rival's, over draws of the statistics (the first: the "
               "search's own), on one set of windows",
    "update": "perplexity under the update by SparseGPT's, of a metric evolved with it, and of the winner"}
_READ = ("study", "rival", "metric", "target", "text", "draws", "ratio", "low", "high", "holm_low",
         "holm_high", "p_holm", "detectable", "verdict")  # as far as they are there


def table(name: str) -> dict[str, Any]:
    """A table of all studies that have it, as `recorded-NAME`."""
    rows = recorded(name, "")
    by_holm = "holm_low" in bounds(rows)
    read = [column for column in _READ if column in rows and not (by_holm and column in ("low", "high"))]
    how = "p" + " and verdict" * ("verdict" in rows) + " by Holm's correction over all rows of a study"
    how += "" if by_holm else "; a 95 % interval is of its row alone"
    made = "; ".join(recorded_by(each) for each in rows["study"].unique())
    return {"frame": rows, "name": f"recorded-{name}", "columns": read,
            "caption": f"Recorded studies ({made}): {_TABLES[name]}; {how}."}


def ratios(name: str) -> dict[str, Any]:
    """The figure of what a study found, against every other line; by Holm if recorded so, of several texts on
    the first, and over draws of the statistics where Wanda's were drawn anew."""
    import pandas as pd

    rows, text = on_first_text(recorded("paired", name))
    drawn, table = against_wanda(name)
    anew = ""
    if table == "redrawn":
        rows = pd.concat([rows, on_first_text(drawn)[0]]).drop_duplicates(["rival", "target"], keep="last")
        at = " and ".join(map(percent, drawn["target"].unique()))
        anew = f" ({drawn['draws'].iloc[0]:.0f} against Wanda at {at})"
    by = "intervals by Holm's correction" if "holm_low" in rows else "95 % intervals"
    return {"figure": figures.ratios(rows.rename(columns={"rival": "method"}), "that line"),
            "name": "recorded-paired",
            "caption": f"Recorded study, {subject(name)}, one draw of the statistics{anew}: perplexity of "
                       f"its winner{text} divided by that of each other line, with {by} (lower is better)."}


def convergence() -> dict[str, Any]:
    """The figure of how low the first study's searches have come, and when."""
    known, made = _searches(studies()[0])
    found = history.convergence(known)
    return {"figure": figures.convergence(found[found["high"] < 2 * found["low"].min()]),
            "name": "recorded-convergence",
            "caption": ("Recorded study, lowest loss so far against distinct evaluations, within twice the "
                        f"minimum: median and range over {made}.")}


def leads() -> dict[str, Any]:
    """The table on which `study.lead` rests, of the first study."""
    known, made = _searches(studies()[0])
    return {"frame": history.leads(known, "modern"), "name": "recorded-leads",
            "caption": ("Recorded study, minimum loss of modern minus that of each other search, both after "
                        f"as many distinct evaluations, over {made}.")}


def _searches(name: str) -> tuple[pd.DataFrame, str]:
    known = history.searches(recorded("history", name))
    seeds = known.groupby("search")["seed"].nunique()
    count = ", ".join(f"{kind} {n}" for kind, n in seeds.items())
    return known, f"seeds on {subject(name)} ({count}); {recorded_by(name)}"
