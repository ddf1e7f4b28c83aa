"""What long searches found: profiles run once, their tables shipped, shown beside every short one.

    pk.studies()                        names of the recorded studies: profiles, those of a real model first
    pk.recorded("paired", "study")      a table of one of them
    pk.recorded("history", "study")     every candidate of its searches
    pk.recorded("paired", "")           of all of them, with a column `study`
    pk.recorded_by("study")             one clause that says which run that was
    pk.recorded("monomials")            the grid's losses on several models, by `recipes.monomials`

`prunekit record PROFILE` puts a profile's tables here; `make study` runs profile `study` and records it anew.
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.choices import EMBEDDED, called, percent
from prunekit.errors import UsageError, did_you_mean
from prunekit.evaluate.sentences import Claim, claim, effects
from prunekit.files import replacing
from prunekit.workbook.protocol import label, spoken

if TYPE_CHECKING:
    import pandas as pd

FOLDER = Path(__file__).with_name("recorded")
_TOPIC = "04_gp_search"
_TABLES = ("seeds", "finalists", "result", "paired", "census", "redrawn", "update", "dtypes")
_NEEDED = _TABLES[:4]
_KEPT = ("id", "commit", "dirty", "parameters", "versions", "machine", "device", "threads", "started",
         "seconds")  # of a manifest
_DROPPED = ["raw", "terminals", "seconds"]  # of a history: follows from the tree, or concerns nobody


def studies() -> list[str]:
    """The names of the recorded studies, those of a real model first."""
    names = sorted(file.parent.name for file in FOLDER.glob("[!.]*/manifests.json"))
    return sorted(names, key=lambda name: _made(name)["parameters"]["model"] in EMBEDDED)


def recorded(table: str, name: str = "study") -> pd.DataFrame:
    """A table of a recorded study, by its name there; "history": the `pk.history` of all its searches,
    without columns that follow from the tree.

    name: of the study; "": of all that have the table, one after the other, with a column `study`. Rows of a
    study that was tested on several texts say on which, in a column `text`. A table that a recipe measured,
    model by model, is of no study. Raises UsageError for what was not recorded.
    """
    import pandas as pd

    if not name:
        parts = {each: recorded(table, each) for each in studies() if table in _files(each)}
        if parts:
            return pd.concat(parts, names=["study"]).reset_index("study").reset_index(drop=True)
    files = _files(name) | _measured()
    if table not in files:
        where = f" of {name!r:.60}" * (name != "study")
        raise UsageError(f"nothing is recorded as {table!r:.60}{where}{did_you_mean(table, files)}")
    frame = pd.concat([pd.read_csv(file, dtype={"parents": str, "target": str}) for file in files[table]])
    return frame.fillna({"parents": ""}) if "parents" in frame else frame


def row_names(rows: pd.DataFrame, *first: str) -> list[str]:
    """The columns that name a row of a study's table: these, the target, and of several texts which one."""
    return [*first, "target", *(["text"] if "text" in rows else [])]


def _files(name: str) -> dict[str, list[Path]]:
    """The tables of a study."""
    return {file.name.removesuffix(".gz").removesuffix(".csv"): [file]
            for file in sorted(FOLDER.joinpath(name).glob("*.csv*"))}


def _measured() -> dict[str, list[Path]]:
    """The tables that recipes made: each a folder, with a file for each model."""
    return {folder.name: sorted(folder.glob("*.csv*")) for folder in FOLDER.glob("[!.]*")
            if not (folder / "manifests.json").exists()}


def _made(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / name / "manifests.json").read_text(encoding="utf-8"))[_TOPIC]


def recorded_by(name: str = "study") -> str:
    """As "recorded on 2026-01-31 with prunekit run study on AMD EPYC, commit 0123abc": which run the recorded
    tables are from."""
    made = _made(name)
    machine = made["machine"].partition(", ")[2] or made["machine"]
    command = made.get("command", f"prunekit run {name}")
    return (f"recorded on {made['started'][:10]} with {command} on {machine}, commit "
            f"{(made['commit'] or 'unknown')[:7]}")


def subject(name: str) -> str:
    """As "embedded/llama, searched at 70 %": the model of a recorded study, and what it was searched at."""
    known = _made(name)["parameters"]
    return f"{spoken(known['model'])}, searched at {_goals(known)}"


def _goals(known: dict[str, Any]) -> str:
    return " and ".join(map(percent, known.get("targets") or known["tasks"]))


def leading() -> list[str]:
    """What speaks first: recorded studies of real models or, while there is none, of embedded ones."""
    return [name for name in studies() if _made(name)["parameters"]["model"] not in EMBEDDED] or studies()


def models() -> list[str]:
    """The models that the studies which speak first were made on."""
    return list(dict.fromkeys(label(_made(name)["parameters"]["model"]) for name in leading()))


BESIDE = {"Wanda": "perplexity with Wanda", "found": "with the metric found", "ratio": "ratio (interval)"}


def answer(name: str) -> Claim:
    """Both parts of `found` as one, each ratio in it."""
    said, read = found(name, "{measured}, the ratio of the two in brackets")
    return replace(said, **{part: f"{getattr(said, part)} ({read}.)" for part in ("sentence", "template")})


def found(name: str, against: str = "{verdicts}") -> tuple[Claim, str]:
    """What the searches of a study found, and how it does against Wanda on test windows (against: fields of
    `claim`); and on which, recorded when and how. `beside` has the numbers."""
    from prunekit.metric.tree import Tree

    (rows, table), made = against_wanda(name), _made(name)["parameters"]
    tree, seeds = recorded("finalists", name).loc[0, "tree"], made["repeats"]
    search = f"{f'{seeds} searches' if seeds > 1 else 'one search'} of {made['budget']} evaluations"
    said = _claim(f"On {{model}}, {search}{' each' * (seeds > 1)}, at {_goals(made)}, found the metric "
                  f"`{Tree.parse(tree).infix()}`. On text that no search had seen its perplexity {against}.",
                  rows, f"recorded-{table}", name=row_names(rows), about={"model": spoken(made["model"])},
                  words=["is lower than Wanda's at", "is higher than Wanda's at",
                         "cannot be told from Wanda's at"])
    count = " to ".join(dict.fromkeys(f"{n:.0f}" for n in (rows["n"].min(), rows["n"].max())))
    read = f"{count} test windows{' of each text' * ('text' in rows)} of {made['seqlen']:,} tokens"
    by_holm = f"by Holm's correction over all {len(_rows(table, name))} comparisons"
    if table == "redrawn":
        read = (f"{rows['draws'].iloc[0]:.0f} draws of the statistics, the first that of the search, each "
                f"tested on {read}; intervals, for new draws and new windows, {by_holm}")
    else:
        by = f"intervals {by_holm}" if "holm_low" in rows else "95 % intervals of each comparison alone"
        read = f"one draw of the statistics; {read}; {by}"
    return said, f"{read}; {recorded_by(name)}"


def beside(name: str) -> pd.DataFrame:
    """The numbers of `found`, as text: columns target and (of several) text, the perplexities of Wanda and of
    what was found, and the second by the first with its interval; `BESIDE` says how pages head the last."""
    rows, table = against_wanda(name)
    keys = row_names(rows)
    if table == "paired":
        ppl = recorded("result", name).pivot(index=keys, columns="method", values="ppl").reset_index()
        rows = rows.merge(ppl.rename(columns={"wanda": "second", "winner": "first"}), on=keys, how="left")
    return rows[keys].map(lambda key: called(percent(key))).assign(
        **{head: [f"{value:#.4g}".rstrip(".") for value in rows[column]]
           for head, column in (("Wanda", "second"), ("found", "first"))}, ratio=effects(rows))


def against_wanda(name: str) -> tuple[pd.DataFrame, str]:
    """Rows of the winner against Wanda, and the table they are of: over several draws of the statistics where
    they were recorded with both perplexities, else of one."""
    known = "redrawn" in _files(name) and "first" in _rows("redrawn", name)
    table = "redrawn" if known else "paired"
    rows = _rows(table, name)
    return rows[rows["rival"] == "wanda"], table


def others(name: str) -> Claim:
    """The same against every other line; of several texts on the first, that of calibration."""
    rows, text = on_first_text(_rows("paired", name))
    return _claim(f"On {{subject}}, with one draw of the statistics, the perplexity of the metric found "
                  f"there{text} {{verdicts}}.",
                  rows[rows["rival"] != "wanda"], "recorded-paired", name=["rival", "target"],
                  about={"subject": subject(name)})


def on_first_text(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Of a table of several texts the rows of the first, and the words for it."""
    if "text" not in rows:
        return rows, ""
    first = rows["text"].iloc[0]
    return rows[rows["text"] == first], f" on {first}"


def _rows(table: str, name: str) -> pd.DataFrame:
    """The rows of table `recorded-TABLE`, as 04 saves it, that are of this study."""
    rows = recorded(table, "")
    return rows[rows["study"] == name].dropna(axis=1, how="all")


def _claim(*told: Any, **how: Any) -> Claim:
    found = claim(*told, **how)
    assert found, told  # the rows are shipped
    return found


def lead(name: str) -> Claim:
    """One sentence: preset `modern` against each other search of a study, at equal budgets and over seeds;
    from `analysis.history.leads`."""
    from prunekit.analysis.history import leads, searches

    known = searches(recorded("history", name))
    seeds = known["seed"].nunique()
    return _claim(f"Over {seeds} seeds the minimum loss of `modern` on the search windows of {{subject}}, "
                  "minus that of another search after as many evaluations, is: {values}.",
                  leads(known, "modern"), "recorded-leads", effect="change", name=["search", "evaluated"],
                  form="+.4f", about={"subject": subject(name)})


def sentences(name: str) -> list[Claim]:
    """All that the tables of a study license to be said of its winner, as docs/study.md does."""
    there, said = _files(name), [answer(name), others(name)]
    said += [lead(name)] if "history" in there else []
    for table, (first, than, apart, template) in _SAID.items():
        if table in there:
            rows = recorded(table, name)
            said.append(_claim(template, rows, table, name=row_names(rows, first),
                               about={"about": subject(name), "draws": int(rows.get("draws", [0])[0])},
                               effect="difference" if "difference" in rows else "ratio",
                               words=(f"is lower {than}", f"is higher {than}", f"cannot be told {apart}")))
    return said


_SAID = {  # by table: what names its rows, what follows "is lower" and "cannot be told", and the sentence
    "by_seed": ("search", "than Wanda's with", "from Wanda's with",
                ("On {about}, with one draw of the statistics, the perplexity of what each other search "
                 "found {verdicts}.")),
    "zero_shot": ("rival", "than with", "from that with",
                  ("On {about}, with one draw of the statistics, mean acc over the zero-shot tasks with the "
                   "metric found {verdicts}.")),
    "redrawn": ("rival", "than that of", "from that of",
                ("On {about}, with {draws} draws of calibration and gradient windows, the first that of the "
                 "search, on the same test windows, the perplexity of the metric found there {verdicts}.")),
    "update": ("metric", "with the", "with the",
               ("On {about}, with one draw of the statistics, under the weight update `obs-iter`, "
                "perplexity, against SparseGPT's, {verdicts}."))}


def record(profile: str = "study") -> int:
    """Put a profile's tables, all its candidates and what made them into the package; returns the bytes.

    Raises UsageError if a notebook of the profile has not been run, or a table is missing that every study
    has (those about new draws, updates and data types it may lack).
    """
    import pandas as pd

    from prunekit.analysis.history import history
    from prunekit.workbook import manifest, project

    manifests = {topic: manifest.read(profile, topic) for topic in (*project.GRAPH[_TOPIC], _TOPIC)}
    for topic, made in manifests.items():
        if made is None:
            raise UsageError(f"{topic} of profile {profile} has not been run: `prunekit run {profile} "
                             f"{topic}` does it.")
    source, artifacts = project.run_folder(profile, _TOPIC), manifests[_TOPIC]["artifacts"]
    tables = {name: artifacts.get(f"tables/{name}", artifacts.get(name)) for name in _TABLES}
    if missing := [name for name in _NEEDED if tables[name] is None]:
        raise UsageError(f"{_TOPIC} of profile {profile} has no table {missing[0]}: run it anew, as profile "
                         "study is run.")
    journals = [source / f"{name}.jsonl" for name in artifacts
                if name.startswith("journal-") and name != "journal-update"]
    found = {name: pd.read_csv(source / next(iter(artifact["files"])))
             for name, artifact in tables.items() if artifact}
    FOLDER.mkdir(exist_ok=True)
    with replacing(FOLDER / profile) as folder:
        write(folder, found | {"history": history(journals)}, manifests)
    return sum(file.stat().st_size for file in (FOLDER / profile).iterdir())


def write(folder: Path, tables: Mapping[str, pd.DataFrame], manifests: Mapping[str, Mapping[str, Any]]
          ) -> None:
    """Tables and what made them, as a recorded study has them."""
    written = {"index": False, "float_format": "%.6g"}
    for name, table in tables.items():
        if name == "history":
            table.drop(columns=_DROPPED).to_csv(folder / "history.csv.gz", **written,
                                                compression={"method": "gzip", "mtime": 0})
        else:
            table.to_csv(folder / f"{name}.csv", **written)
    kept = {topic: {key: made[key] for key in (*_KEPT, "command", "dense") if key in made}
            for topic, made in manifests.items()}
    (folder / "manifests.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
