"""The ledger: every published number with its protocol, and ours beside it where the whole protocol agrees.

It only collects. What a profile has measured are the rows of its result tables, whatever their names; what it
says of the known problems are the sentences that its notebooks gave a problem's number. A row is judged only
by a result of the same SETTING and PROTOCOL; asking for anything else raises.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from prunekit.choices import Target
from prunekit.errors import UsageError
from prunekit.ledger.published import published
from prunekit.workbook import manifest, params, project
from prunekit.workbook.protocol import PROTOCOL, SETTING, label

if TYPE_CHECKING:
    import pandas as pd

STATUSES = ("reproduced", "contradicted", "not run here", "protocol incomplete")
TOLERANCE = {"perplexity": 0.02, "accuracy": 0.5}  # relative; in percentage points
RULE = (f"A number is reproduced when ours is within {100 * TOLERANCE['perplexity']:g} % of a perplexity or "
        f"within {TOLERANCE['accuracy']:g} points of an accuracy, or when our 95 % interval over windows or "
        "documents holds it; it is contradicted when neither is so. Nothing is judged unless model, method, "
        "sparsity, pattern and every field of the protocol agree, and a number whose protocol is not stated "
        "in full is never judged.")
# Family -> profile that holds its published settings, and the names of its models on the hub.
_FAMILIES = {"LLaMA": ("llama-7b", "huggyllama/llama-{}"), "OPT": ("opt-125m", "facebook/opt-{}"),
             "LLaMA-2": ("llama-2-7b", "meta-llama/Llama-2-{}-hf"),
             "LLaMA-3": ("llama-2-7b", "meta-llama/Meta-Llama-3-{}")}
_CLOSED = ("OPT-175B",)  # not on the hub: whoever has the weights names their directory


# ---------------------------------------------------------------- judging

def unstated(row: Mapping[str, Any]) -> list[str]:
    """The fields of the protocol that a published row leaves open."""
    return [field for field in PROTOCOL if row[field] == "unknown"]


def differences(row: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """The fields of setting and protocol in which a result of ours differs from a published row."""
    def plain(value: Any) -> Any:  # tasks in any order are the same tasks
        return sorted(value.split(",")) if isinstance(value, str) else value

    return [field for field in (*SETTING, *PROTOCOL) if plain(row[field]) != plain(ours[field])]


def judge(row: Mapping[str, Any], ours: Mapping[str, Any]) -> tuple[str, str]:
    """(status, reason) of a published row in the light of one result of ours, by RULE.

    Raises UsageError, naming the fields, when the row's protocol is incomplete or the two differ in anything.
    """
    if fields := unstated(row):
        raise UsageError(f"number {row['id']} does not state its {', '.join(fields)}: nothing can be "
                         "compared with it.")
    if fields := differences(row, ours):
        listed = "; ".join(f"{field}: {row[field]} published, {ours[field]} here" for field in fields)
        raise UsageError(f"number {row['id']} and ours have different protocols ({listed}): measure it as "
                         "published first.")
    if row["metric"] == "perplexity":
        distance, tolerance = ours["value"] / row["value"] - 1, TOLERANCE["perplexity"]
        reason = f"ours {distance:+.1%}"
    else:
        distance, tolerance = ours["value"] - row["value"], TOLERANCE["accuracy"]
        reason = f"ours {distance:+.2f} points"
    if abs(distance) <= tolerance:
        return "reproduced", reason
    held = ours["low"] <= row["value"] <= ours["high"]
    return ("reproduced", f"{reason}, inside our interval") if held else ("contradicted", reason)


def table(profile: str) -> pd.DataFrame:
    """The ledger under a profile: the columns of `published` and status, reason, ours, low, high, made_by,
    command.

    reason: why that status; for a number that is not run here, in what the nearest result of ours differs.
    command: what would run it, where it is not run here.
    """
    results, settings, frame = list(measured(profile)), cache(_settings), published()
    return frame.join(frame.apply(lambda row: _entry(row, results, settings), axis=1, result_type="expand"))


def _entry(row: pd.Series, results: list[dict[str, Any]], settings: Callable) -> dict[str, Any]:
    entry = {"status": STATUSES[3], "reason": "", "ours": None,
             "low": None, "high": None, "made_by": "", "command": ""}
    if fields := unstated(row):
        return entry | {"reason": f"not stated: {_words(fields)}"}
    same = [ours for ours in results if not set(differences(row, ours)) & {*SETTING, "metric"}]
    nearest = min(same, key=lambda ours: len(differences(row, ours)), default=None)
    fields = differences(row, nearest) if nearest else []
    if nearest and not fields:
        status, reason = judge(row, nearest)
        return entry | {"status": status, "reason": reason, "ours": nearest["value"],
                        **{key: nearest[key] for key in ("low", "high", "made_by")}}
    reason = f"ours is of another protocol: {_words(fields)}" if fields else ""
    return entry | {"status": STATUSES[2], "reason": reason, "command": command(row, settings)}


def _words(fields: list[str]) -> str:
    return ", ".join(fields).replace("_", " ")


# ---------------------------------------------------------------- what was measured

def measured(profile: str) -> Iterator[dict[str, Any]]:
    """The numbers in all result tables of a profile's runs: the columns of `published`, low, high and
    made_by."""
    import pandas as pd

    for topic, made in _manifests(profile).items():
        for artifact in made["artifacts"].values():
            if artifact.get("result"):
                file = project.run_folder(profile, topic) / next(iter(artifact["files"]))
                frame = pd.read_csv(file, dtype=dict.fromkeys(PROTOCOL, str)).rename(columns={"ppl": "value"})
                if {*PROTOCOL, "value", "low", "high"} <= set(frame):
                    for row in _means(frame) if "task" in frame else frame.to_dict("records"):
                        yield row | {"model": model_name(row["model"]), "method": _method(row),
                                     "pattern": row["pattern"] if row["sparsity"] else "-",
                                     "made_by": f"{topic}, run {made['id']}"}


def _manifests(profile: str) -> dict[str, dict[str, Any]]:
    read = {topic: manifest.read(profile, topic) for topic in project.GRAPH}
    return {topic: made for topic, made in read.items() if made}


@cache
def model_name(model: str) -> str:
    """As tables name it: the last part of a hub id or directory, without what publishers add; LLaMA-2-7B,
    OPT-125M."""
    name = Path(model).name.lower().removeprefix("meta-").removesuffix("-hf")
    return next((known for known in published()["model"] if known.lower() == name), name)


def _method(row: Mapping[str, Any]) -> str:
    """A metric with an update or a budget is another method; SparseGPT's update is its own."""
    method, update = row["method"], row.get("update")
    if method != "sparsegpt" and isinstance(update, str) and update != "none":  # a gap is no text
        method = f"{method}+{update}"
    budget = row.get("budget")
    other = f"{method}, own budget" if isinstance(budget, str) else method
    return {"OWL": f"owl-{method}", "uniform": method}.get(budget, other)


def _means(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """In percent, over the tasks that a published mean is over; anything else has nothing to be put
    beside."""
    from prunekit.evaluate.zero_shot import mean_over

    claimed = {frozenset(tasks.split(",")) for tasks in published()["corpus_or_tasks"] if "," in tasks}
    keys = [key for key in (*SETTING, *PROTOCOL) if key != "corpus_or_tasks"]
    for _, rows in frame.groupby(keys, sort=False):
        if frozenset(rows["task"]) in claimed:
            mean = mean_over(rows)
            yield rows.iloc[0].to_dict() | {
                "metric": f"{mean['metric']} mean", "corpus_or_tasks": ",".join(rows["task"]),
                **{key: 100 * mean[key] for key in ("value", "low", "high")}}


# ---------------------------------------------------------------- what would run it

def command(row: Mapping[str, Any], settings: Callable) -> str:
    """The command that measures a published number; `settings(profile, topic)` is what need not be set any
    more."""
    if row["method"] == "owl-sparsegpt":
        return f"pk.prune(model, windows, 'sparsegpt', pk.owl_budget(model, windows, {row['sparsity']:g}))"
    family, _, size = row["model"].rpartition("-")
    base, name = _FAMILIES.get(family, _FAMILIES["LLaMA"])
    open_weights = family in _FAMILIES and row["model"] not in _CLOSED
    wanted = {"model": name.format(size.lower()) if open_weights else f"DIRECTORY/{row['model'].lower()}"}
    if row["model"].lower() in project.profiles():
        base = row["model"].lower()
    if row["metric"] == "perplexity":
        topic, text = "03_baselines", {"test_corpus": row["corpus_or_tasks"], "seqlen": int(row["context"])}
    else:
        topic, text = "06_zero_shot", {"zero_shot_tasks": row["corpus_or_tasks"].split(",")}
    wanted |= text
    if row["calibration"] != "-":
        wanted |= {"corpus": row["calibration"], "nsamples": int(row["calibration_windows"])}
    if row["bos"] == "text":  # of the released code, as is the sampling
        wanted |= {"roles": "published"}
    had = settings(base, topic)
    if topic == "03_baselines" and row["method"] != "dense":
        for key, value in (("methods", row["method"].removeprefix("owl-")),
                           ("targets", str(Target(row["sparsity"], row["pattern"])))):
            wanted[key] = list(dict.fromkeys([*had.get(key, []), value]))
    changed = [f"--set {_written(key, value)}" for key, value in wanted.items() if had.get(key) != value]
    return " ".join([f"prunekit run {base} {topic}", *changed])


def _written(key: str, value: Any) -> str:
    return f'"{key}=[{", ".join(map(str, value))}]"' if isinstance(value, list) else f"{key}={value}"


def _settings(profile: str, topic: str) -> dict[str, Any]:
    """What a profile sets for a notebook and for 01; nothing where this project has no such profile."""
    given = params.profile_settings(profile) if profile in project.profiles() else {}
    return {key: setting.value for name in ("01_data", topic) for key, setting in given.get(name, {}).items()}


# ---------------------------------------------------------------- the page

def page(profile: str) -> dict[str, Any]:
    """What the page shows: rule, ledger by status, known problems with what this profile says of them,
    traps."""
    from prunekit.evaluate.intervals import decimals

    ledger, said = table(profile), sentences(profile)
    groups = {status: ledger[ledger["status"] == status] for status in STATUSES}
    texts = yaml.safe_load(Path(__file__).with_name("claims.yaml").read_text(encoding="utf-8"))
    left_open = (groups["protocol incomplete"][list(PROTOCOL)] == "unknown").sum()
    return {
        "rule": RULE, "ledger": ledger, "counts": {status: len(rows) for status, rows in groups.items()},
        "beside": [(row, decimals((row.low, row.high), row.value, 2))
                   for row in ledger[ledger["ours"].notna()].itertuples()],
        "commands": [(text, list(rows.itertuples()))
                     for text, rows in groups["not run here"].groupby("command", sort=False)],
        "incomplete": list(groups["protocol incomplete"].itertuples()),
        "open_fields": {field.replace("_", " "): count for field, count in left_open.items() if count},
        "problems": [{**problem, "said": said.pop(problem["number"], [])} for problem in texts["problems"]],
        "unknown": [(topic, number) for number, spoken in said.items() for topic, _ in spoken],
        "traps": texts["traps"],
    }


def sentences(profile: str) -> dict[int, list[tuple[str, str]]]:
    """Number of a known problem -> (topic, takeaway that speaks of it); leakage is measured by no notebook
    alone."""
    said: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for topic, made in _manifests(profile).items():
        for answer in made.get("answers", ()):
            said[answer["problem"]].append((topic, answer["sentence"]))
    return said | {2: [*said[2], ("", _leaked())]}


def leaks() -> pd.DataFrame:
    """What the sweep `leakage` says, one row per sparsity: lead, clean and read as ratios of perplexity less
    one, share.

    From the runs of the sweep where all of its cells are done, else as shipped; `made_by` says which.
    """
    import numpy as np
    import pandas as pd

    from prunekit.evaluate.leakage import leakage

    done = project.root() / "runs" / "sweeps" / "leakage" / "cells.csv"
    cells = pd.read_csv(done) if done.exists() else pd.DataFrame({"outcome": [""], "runs": [""]})
    there = cells["runs"].map(lambda folder: (project.root() / str(folder) / "nll.csv").is_file())
    if cells.empty or not (there & (cells["outcome"] == "done")).all():
        return pd.read_csv(Path(__file__).with_name("leakage.csv"))
    nll = {(cell.gradient_corpus, cell.corpus, cell.test_corpus, cell.seed):
           pd.read_csv(project.root() / cell.runs / "nll.csv") for cell in cells.itertuples()}
    rows = []
    for name in next(iter(nll.values())).filter(regex=r"^wanda\|.*\|unstructured$"):
        leader = name.replace("wanda", "pruner-zero")
        found = leakage({key: (frame[leader].to_numpy(), frame[name].to_numpy())
                         for key, frame in nll.items()})
        row = {"sparsity": float(name.split("|")[1]), "seeds": found.seeds, "windows": found.windows}
        for what in ("lead", "clean", "read", "share"):
            values = getattr(found, what) if what == "share" else np.expm1(getattr(found, what))
            row |= dict(zip((what, f"{what}_low", f"{what}_high"), values, strict=True))
        rows.append(row)
    corpora = " and ".join(sorted(set(map(label, cells["test_corpus"]))))
    return pd.DataFrame(rows).assign(corpora=corpora, made_by="runs/sweeps/leakage")


def _leaked() -> str:
    frame = leaks()
    said = []
    for row in frame.itertuples():
        share = f"{row.share:.0%} ({row.share_low:.0%} to {row.share_high:.0%}) of the first lead"
        gone = "no lead to explain" if row.share != row.share else f"{share} is gone where they read alike"
        said.append(f"At {row.sparsity:.0%} Wanda's perplexity relative to Pruner-Zero's is {row.lead:+.1%} "
                    f"where only Pruner-Zero has read the test corpus, {row.clean:+.1%} where neither has, "
                    f"{row.read:+.1%} where both have: {gone}.")
    return f"{' '.join(said)} ({frame['corpora'][0]}, {frame['seeds'][0]} seeds; from {frame['made_by'][0]}.)"
