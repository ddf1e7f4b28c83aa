"""Figures again from their data: what each was drawn by, the CSV beside it, and `prunekit figures`.

Every function of `prunekit.figures` leaves on its Figure its own name and arguments. `run.figure` writes the one table
among them as figures/NAME.csv, the rest into the manifest; `rebuild` draws from these alone.
"""
from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.files import replacing_file
from prunekit.workbook import manifest, project, shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MOST = 40_000  # values; more are not written, and the figure is kept as it is


@dataclass(frozen=True)
class Rebuilt:
    """`outcome`: same (byte for byte), changed (drawn anew), or kept (it has no table)."""

    topic: str
    name: str
    outcome: str


def recipe(figure: Figure) -> tuple[dict[str, Any], pd.DataFrame] | None:
    """What draws this figure again: (for the manifest, for the CSV); None if it was drawn by something else."""
    by, given = (figure.drawn["by"], figure.drawn["arguments"]) if hasattr(figure, "drawn") else ("", {})
    tables = [name for name, value in given.items() if hasattr(value, "columns")]
    if len(tables) != 1 or given[tables[0]].size > MOST:
        return None
    frame = given[tables[0]]
    # The few digits of a float32 would be read as another number.
    frame = frame.astype({column: "float64" for column in frame if frame[column].dtype == "float32"})
    index = 0 if list(frame.index) == list(range(len(frame))) else frame.index.nlevels
    kinds = [frame[column].dtype.kind if frame[column].dtype.kind in "ifb" else "O" for column in frame]
    return {"by": by, "data": tables[0], "index": index, "kinds": kinds,
            "arguments": {name: value for name, value in given.items() if name != tables[0]}
            }, frame.reset_index(names=[f"index{i}" for i in range(index)]) if index else frame


def draw(made: Mapping[str, Any], file: Path) -> Figure:
    """The figure of a recipe and its CSV."""
    import pandas as pd

    from prunekit import figures

    table, index = pd.read_csv(file, dtype=str, keep_default_na=False), made["index"]
    read = {"f": lambda text: float(text) if text else float("nan"), "i": int, "b": lambda text: text == "True"}
    for column, kind in zip(table.columns[index:], made["kinds"], strict=True):
        if kind in read:
            table[column] = table[column].map(read[kind])
    table = table.set_index(list(table.columns[:index])) if index else table
    return getattr(figures, made["by"])(**{made["data"]: table}, **made["arguments"])


def rebuild(profile: str, topics: Iterable[str] = ()) -> Iterator[Rebuilt]:
    """Draw the figures of a profile's finished runs again, from their CSVs alone; yields what became of each."""
    for topic in list(topics) or project.topics():
        project.notebook(topic)
        content = manifest.read(profile, topic)
        if content is None:
            continue
        folder = project.run_folder(profile, topic)
        for key, artifact in content["artifacts"].items():
            if artifact["kind"] == "figure":
                yield Rebuilt(topic, key.partition("/")[2], _again(folder, artifact))
        manifest.write_atomic(folder / "manifest.json", json.dumps(content, indent=1))


def _again(folder: Path, artifact: dict[str, Any]) -> str:
    files = {Path(file).suffix: folder / file for file in artifact["files"]}
    if not artifact.get("drawn") or not files[".csv"].is_file():
        return "kept"
    contents = shown.figure_files(draw(artifact["drawn"], files[".csv"]))
    outcome = "same"
    for suffix, content in contents.items():
        if not files[suffix].is_file() or files[suffix].read_bytes() != content:
            outcome = "changed"
            with replacing_file(files[suffix]) as file:
                file.write_bytes(content)
    artifact["files"] = {file: (folder / file).stat().st_size for file in artifact["files"]}
    artifact["sha256"] = manifest.file_hash(files[".svg"])
    return outcome
