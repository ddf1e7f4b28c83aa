"""The ledger: every published number with its protocol, and ours beside it where the whole protocol agrees.

A row is judged only by a result of the same setting (SETTING) under the same protocol (PROTOCOL); asking for anything
else raises. What a profile has measured is read from the result tables of its runs, so the ledger fills by itself.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from prunekit.errors import UsageError
from prunekit.ledger.published import PROTOCOL, SETTING, published
from prunekit.workbook import manifest, params, project
from prunekit.workbook.protocol import label

if TYPE_CHECKING:
    import pandas as pd

STATUSES = ("reproduced", "contradicted", "not run here", "protocol incomplete")
TOLERANCE = {"perplexity": 0.02, "accuracy": 0.5}  # relative; in percentage points
RULE = (f"A number is reproduced when ours is within {100 * TOLERANCE['perplexity']:g} % of a perplexity or within "
        f"{TOLERANCE['accuracy']:g} points of an accuracy, or when our 95 % interval over windows or documents holds "
        "it; it is contradicted when neither is so. Nothing is judged unless model, method, sparsity, pattern and every field of the "
        "protocol agree, and a number whose protocol is not stated in full is never judged.")
# Family -> profile that holds its published settings, and the names of its models on the hub.
_FAMILIES = {"LLaMA": ("llama-7b", "huggyllama/llama-{}"), "LLaMA-2": ("llama-2-7b", "meta-llama/Llama-2-{}-hf"),
             "LLaMA-3": ("llama-2-7b", "meta-llama/Meta-Llama-3-{}"), "OPT": ("opt-125m", "facebook/opt-{}")}
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
        raise UsageError(f"number {row['id']} does not state its {', '.join(fields)}: nothing can be compared with it.")
    if fields := differences(row, ours):
        found = "; ".join(f"{field}: {row[field]} published, {ours[field]} here" for field in fields)
        raise UsageError(f"number {row['id']} and ours have different protocols ({found}): measure it as published first.")
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
    """The ledger under a profile: the columns of `published` and status, reason, ours, low, high, made_by, command.

    reason: why that status; for a number that is not run here, in what the nearest result of ours differs. command: what
    would run it, where it is not run here.
    """
    results, settings, frame = list(measured(profile)), cache(_settings), published()
    return frame.join(frame.apply(lambda row: _entry(row, results, settings), axis=1, result_type="expand"))


def _entry(row: pd.Series, results: list[dict[str, Any]], settings: Callable) -> dict[str, Any]:
    entry = {"status": STATUSES[3], "reason": "", "ours": None, "low": None, "high": None, "made_by": "", "command": ""}
    if fields := unstated(row):
        return entry | {"reason": f"not stated: {', '.join(field.replace('_', ' ') for field in fields)}"}
    same = [ours for ours in results if not set(differences(row, ours)) & {*SETTING, "metric"}]
    agreeing = [ours for ours in same if not differences(row, ours)]
    if agreeing:
        ours = agreeing[0]
        status, reason = judge(row, ours)
        return entry | {"status": status, "reason": reason, "ours": ours["value"], "low": ours["low"], "high": ours["high"],
                        "made_by": ours["made_by"]}
    nearest = min((differences(row, ours) for ours in same), key=len, default=[])
    reason = f"ours is of another protocol: {', '.join(field.replace('_', ' ') for field in nearest)}" if nearest else ""
    return entry | {"status": STATUSES[2], "reason": reason, "command": command(row, settings)}


# ---------------------------------------------------------------- what was measured

def measured(profile: str) -> Iterator[dict[str, Any]]:
    """What the finished runs of a profile have measured, with the columns of `published`, low, high and made_by."""
    data = manifest.read(profile, "01_data")
    for topic, read in (("03_baselines", _perplexities), ("06_zero_shot", _accuracies)):
        made = manifest.read(profile, topic)
        # 01 holds the protocol of the windows; run again since, it no longer is what this notebook has read.
        read_windows = made and made["loaded"].get("01_data/windows")
        if data and read_windows and read_windows == data["artifacts"]["windows"]["sha256"]:
            used = {**data["parameters"], **made["parameters"]}
            for result in read(profile, topic, made, used):
                calibrated = result["method"] not in ("dense", "magnitude")
                yield {"model": model_name(used["model"]), "tokenizer": "model", "made_by": f"{topic}, run {made['id']}",
                       "calibration": (used["windows"] or used["corpus"]) if calibrated else "-",
                       "calibration_windows": str(used["nsamples"]) if calibrated else "-",
                       "gradient_corpus": (used["gradient_corpus"] or used["corpus"])
                       if "pruner-zero" in result["method"] else "-", **result}


def model_name(model: str) -> str:
    """As tables name it: the last part of a hub id or directory, without what publishers add; LLaMA-2-7B, OPT-125M."""
    name = Path(model).name.lower().removeprefix("meta-").removesuffix("-hf")
    return next((known for known in _models() if known.lower() == name), name)


@cache
def _models() -> list[str]:
    return sorted(set(published()["model"]))


def _perplexities(profile: str, topic: str, made: Mapping[str, Any], used: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    corpus = used["test_corpus"] or used["corpus"]
    split = "validation" if corpus == "c4" else "test"
    protocol = {"metric": "perplexity", "corpus_or_tasks": used["windows"] or corpus, "context": str(used["seqlen"]),
                "split": f"{split}, first {used['test_windows']} windows" if used["test_windows"] else split,
                "few_shot": "-", "documents": "-", "harness": "-"}
    yield {**protocol, "method": "dense", "sparsity": 0.0, "pattern": "-", **_dense(profile, topic)}
    for name in ("perplexity", "updates", "budgets"):
        for row in _rows(profile, topic, name):
            update = str(row.get("update") or "").replace("none", "").replace("nan", "")
            method = f"{row['method']}+{update}" if update and row["method"] != "sparsegpt" else row["method"]
            yield {**protocol, "method": f"owl-{method}" if row.get("budget") == "OWL" else method, "value": row["ppl"],
                   **{key: row[key] for key in ("sparsity", "pattern", "low", "high")}}


def _dense(profile: str, topic: str) -> dict[str, float]:
    import pandas as pd

    from prunekit.evaluate.intervals import exp_mean

    nll = pd.read_csv(project.run_folder(profile, topic) / "nll.csv", usecols=["dense"])["dense"].to_numpy()
    return dict(zip(("value", "low", "high"), exp_mean(nll), strict=True))


def _accuracies(profile: str, topic: str, made: Mapping[str, Any], used: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Means over the tasks that a published mean is over; anything else has nothing to be put beside."""
    import pandas as pd

    claimed = {frozenset(tasks.split(",")) for tasks in published()["corpus_or_tasks"] if "," in tasks}
    frame = pd.DataFrame(_rows(profile, topic, "accuracy"))
    if frame.empty or frozenset(frame["task"]) not in claimed:
        return
    from prunekit.evaluate.zero_shot import mean_over

    for (method, sparsity, metric), rows in frame.groupby(["method", "sparsity", "metric"], sort=False):
        if set(rows["task"]) == set(frame["task"]):
            mean, limit = mean_over(rows, metric), rows["limit"].iloc[0]
            yield {"metric": f"{metric} mean", "corpus_or_tasks": ",".join(rows["task"]), "context": "-", "split": "harness",
                   "few_shot": str(rows["num_fewshot"].iloc[0]), "documents": f"{limit:g} per task" if limit else "all",
                   "harness": rows["harness"].iloc[0], "method": method, "sparsity": sparsity,
                   "pattern": rows["pattern"].iloc[0] if sparsity else "-",
                   **{key: 100 * mean[key] for key in ("value", "low", "high")}}


def _rows(profile: str, topic: str, name: str) -> list[dict[str, Any]]:
    """The rows of a table that a finished run has saved; none where it has not."""
    import pandas as pd

    made = manifest.read(profile, topic)
    if not made or f"tables/{name}" not in made["artifacts"]:
        return []
    return pd.read_csv(project.run_folder(profile, topic) / "tables" / f"{name}.csv").to_dict("records")


# ---------------------------------------------------------------- what would run it

def command(row: Mapping[str, Any], settings: Callable) -> str:
    """The command that measures a published number; `settings(profile, topic)` is what need not be set any more."""
    family, _, size = row["model"].rpartition("-")
    if row["model"] in _CLOSED or family not in _FAMILIES:
        model, base = f"DIRECTORY/{row['model'].lower()}", _FAMILIES.get(family, _FAMILIES["LLaMA"])[0]
    else:
        base, name = _FAMILIES[family]
        model, base = name.format(size.lower()), row["model"].lower() if row["model"].lower() in project.profiles() else base
    if row["metric"] != "perplexity":
        wanted, topic = {"model": model, "zero_shot_tasks": row["corpus_or_tasks"].split(",")}, "06_zero_shot"
    else:
        wanted = {"model": model, "test_corpus": row["corpus_or_tasks"], "seqlen": int(row["context"])}
        topic = "03_baselines"
    if row["method"] == "owl-sparsegpt":
        return f"pk.prune(model, windows, 'sparsegpt', pk.owl_budget(model, windows, {row['sparsity']:g}))"
    if row["calibration"] != "-":
        wanted |= {"corpus": row["calibration"], "nsamples": int(row["calibration_windows"])}
    had = settings(base, topic)
    changed = {key: value for key, value in wanted.items() if had.get(key) != value}
    added = {} if row["method"] == "dense" else {"methods": row["method"].removeprefix("owl-"), **(
        {"sparsities": row["sparsity"]} if row["pattern"] == "unstructured" else {"patterns": row["pattern"]})}
    for key, value in added.items() if topic == "03_baselines" else ():
        if value not in had.get(key, []):
            changed[key] = [*had.get(key, []), value]
    return " ".join([f"prunekit run {base} {topic}", *(f"--set {_written(key, value)}" for key, value in changed.items())])


def _written(key: str, value: Any) -> str:
    return f'"{key}=[{", ".join(map(str, value))}]"' if isinstance(value, list) else f"{key}={value}"


def _settings(profile: str, topic: str) -> dict[str, Any]:
    """What a profile sets for a notebook and for 01; nothing where this project has no such profile."""
    if profile not in project.profiles():
        return {}
    found = params.profile_settings(profile)
    return {key: setting.value for name in ("01_data", topic) for key, setting in found.get(name, {}).items()}


# ---------------------------------------------------------------- the page

def page(profile: str) -> dict[str, Any]:
    """What the template of the page shows: rule, ledger by status, known problems with what this profile measured, traps."""
    from prunekit.evaluate.intervals import decimals

    ledger = table(profile)
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
        "problems": [{**problem, "measured": _MEASURED.get(problem["number"], lambda profile: "")(profile)}
                     for problem in texts["problems"]],
        "traps": texts["traps"],
    }


def _mixing(profile: str) -> str:
    if not (rows := _rows(profile, "06_zero_shot", "mixture")):
        return ""
    gains = [100 * row["gained by mixing"] for row in rows]
    return f"Taking the larger of acc and acc_norm for each task adds {min(gains):.1f} to {max(gains):.1f} points to a mean."


def leaks() -> pd.DataFrame:
    """What the sweep `leakage` says, one row per sparsity: lead, clean and read as ratios of perplexity less one, and share.

    From the runs of the sweep where all of its cells are done, else as shipped; `made_by` says which.
    """
    import numpy as np
    import pandas as pd

    from prunekit.evaluate.leakage import leakage

    table = project.root() / "runs" / "sweeps" / "leakage" / "cells.csv"
    cells = pd.read_csv(table) if table.exists() else pd.DataFrame({"outcome": [""]})
    if not (cells["outcome"] == "done").all():
        return pd.read_csv(Path(__file__).with_name("leakage.csv"))
    nll = {(row.gradient_corpus, row.corpus, row.test_corpus, row.seed): pd.read_csv(project.root() / row.runs / "nll.csv")
           for row in cells.itertuples()}
    rows = []
    for name in [name for name in next(iter(nll.values())) if name.startswith("wanda|") and name.endswith("|unstructured")]:
        found = leakage({cell: (frame[name.replace("wanda", "pruner-zero")].to_numpy(), frame[name].to_numpy())
                         for cell, frame in nll.items()})
        row = {"sparsity": float(name.split("|")[1]), "seeds": found.seeds, "windows": found.windows}
        for what in ("lead", "clean", "read", "share"):
            values = getattr(found, what)
            keys = (what, f"{what}_low", f"{what}_high")
            row |= dict(zip(keys, values if what == "share" else np.expm1(values), strict=True))
        rows.append(row | {"corpora": " and ".join(sorted(set(map(label, cells["test_corpus"])))), "made_by": "runs/sweeps/leakage"})
    return pd.DataFrame(rows)


def _leaked(profile: str) -> str:
    frame = leaks()
    first, said = frame.iloc[0], []
    for row in frame.itertuples():
        explained = (f"leakage explains {row.share:.0%} ({row.share_low:.0%} to {row.share_high:.0%}) of the first lead: that much is "
                     "gone, on average over the other two" if row.share == row.share else "no lead that leakage could explain")
        said.append(f"At {row.sparsity:.0%} Wanda's perplexity is above Pruner-Zero's by {row.lead:.1%} where only Pruner-Zero "
                    f"has read the test corpus, {row.clean:.1%} where neither has, {row.read:.1%} where both have; {explained}.")
    return f"{' '.join(said)} ({first['corpora']}, {first['seeds']} seeds; from {first['made_by']}.)"


def _sparser(profile: str) -> str:
    from prunekit.evaluate.intervals import decimals

    rows = [row for row in _rows(profile, "03_baselines", "against-wanda")
            if row["method"] == "pruner-zero" and row["pattern"] == "unstructured"]
    shown = ", ".join(f"{row['ratio']:.{decimals([row['ratio']], 1)}f} at {row['sparsity']:.0%} "
                      f"({row['verdict']})" for row in rows)
    return f"Pruner-Zero's perplexity over Wanda's: {shown}." if rows else ""


def _simpler(profile: str) -> str:
    rows = [row for row in _rows(profile, "05_tree_analysis", "catalogue") if row["metric"] == "pruner-zero"]
    return f"Rewritten with the same masks it is {rows[0]['canonical form']}: proved, whatever the model." if rows else ""


def _updated(profile: str) -> str:
    found: dict[str, list[float]] = {}
    for row in _rows(profile, "03_baselines", "updates"):
        if row["method"] != "sparsegpt":
            found.setdefault(str(row["update"]).replace("nan", "none"), []).append(row["ppl"])
    shown = ", ".join(f"{max(values) / min(values):.2f} ({'no update' if update == 'none' else update})"
                      for update, values in found.items())
    return f"The worst metric's perplexity over the best one's: {shown}." if found else ""


def _truncated(profile: str) -> str:
    if len(rows := _rows(profile, "06_zero_shot", "limit")) < 2:
        return ""
    first, last = (f"± {50 * (row['high'] - row['low']):.1f} points from {row['documents']}" for row in (rows[0], rows[-1]))
    return f"The dense mean over tasks is known to {first} documents of each, to {last}."


def _filled(profile: str) -> str:
    zeros = {row["variant"]: row["zeros"] for row in _rows(profile, "07_lora", "masked-against-plain")}
    names = ("pruned, not fine-tuned", "plain LoRA, plain merge", "masked LoRA, masked merge")
    return "Zeros before: {:.1%}; after plain LoRA and its merge: {:.1%}; after masked LoRA: {:.1%}.".format(
        *(zeros[name] for name in names)) if zeros.keys() >= set(names) else ""


def _undecided(profile: str) -> str:
    rows = [*_rows(profile, "03_baselines", "against-wanda"), *_rows(profile, "06_zero_shot", "paired")]
    same = sum(row["verdict"] == "indistinguishable" for row in rows)
    return f"Of {len(rows)} differences in perplexity and accuracy, {same} are indistinguishable." if rows else ""


_MEASURED: dict[int, Callable[[str], str]] = {
    1: _mixing, 2: _leaked, 3: _sparser, 4: _simpler, 5: _updated, 6: _truncated, 7: _filled, 9: _undecided}
