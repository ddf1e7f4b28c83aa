"""What the long search found: profile `study`, recorded once, shipped, shown beside every short one.

    pk.recorded("paired")      a table of the recorded run
    pk.recorded("history")     every candidate of its searches
    pk.recorded_by()           one clause that says which run that was

`make study` runs the profile and records it anew.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit.errors import UsageError, did_you_mean
from prunekit.files import replacing

if TYPE_CHECKING:
    import pandas as pd

FOLDER = Path(__file__).with_name("recorded")
_TOPIC = "04_gp_search"
_TABLES = ("census", "seeds", "finalists", "result", "paired", "redrawn", "update", "dtypes")
_KEPT = ("id", "commit", "dirty", "parameters", "versions", "machine", "device", "threads", "started",
         "seconds")  # of a manifest
_DROPPED = ["raw", "terminals", "seconds"]  # of a history: follows from the tree, or concerns nobody


def recorded(name: str) -> pd.DataFrame:
    """A table of the recorded run, by its name there; "history": the `pk.history` of all its searches,
    without columns that follow from the tree. Raises UsageError for a name that was not recorded."""
    import pandas as pd

    names = {file.name.removesuffix(".gz").removesuffix(".csv"): file for file in FOLDER.glob("*.csv*")}
    if name not in names:
        raise UsageError(f"nothing is recorded as {name!r:.60}{did_you_mean(name, names)}")
    frame = pd.read_csv(names[name], dtype={"parents": str, "target": str})
    return frame.fillna({"parents": ""}) if "parents" in frame else frame


def recorded_by() -> str:
    """As "recorded on 2026-01-31, commit 0123abc": which run the recorded tables are from."""
    made = json.loads((FOLDER / "manifests.json").read_text(encoding="utf-8"))[_TOPIC]
    return f"recorded on {made['started'][:10]}, commit {(made['commit'] or 'unknown')[:7]}"


def record(profile: str = "study") -> int:
    """Put a profile's tables, all its candidates and what made them into the package; returns the bytes.

    Raises UsageError if a notebook of the profile has not been run.
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
    if missing := [name for name, artifact in tables.items() if artifact is None]:
        raise UsageError(f"{_TOPIC} of profile {profile} has no table {missing[0]}: profile study "
                         "asks for all of them.")
    journals = [source / f"{name}.jsonl" for name in artifacts
                if name.startswith("journal-") and name != "journal-update"]
    written = {"index": False, "float_format": "%.6g"}
    with replacing(FOLDER) as folder:
        for name, artifact in tables.items():
            pd.read_csv(source / next(iter(artifact["files"]))).to_csv(folder / f"{name}.csv", **written)
        history(journals).drop(columns=_DROPPED).to_csv(
            folder / "history.csv.gz", compression={"method": "gzip", "mtime": 0}, **written)
        kept = {topic: {key: made[key] for key in _KEPT} for topic, made in manifests.items()}
        (folder / "manifests.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return sum(file.stat().st_size for file in FOLDER.iterdir())
