"""Figures again from their data: what each was drawn by, the CSV beside it, and `prunekit figures`.

Every function of `prunekit.figures` leaves on its Figure its own name and arguments. `run.figure` writes the one table
(or the named arrays) among them as figures/NAME.csv, the rest into the manifest; `rebuild` draws from these alone.
"""
from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.workbook import manifest, project, shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MOST = 40_000  # values; more (whole weight matrices) are not written, and the figure is kept as it is


@dataclass(frozen=True)
class Rebuilt:
    """`outcome`: same (byte for byte), changed (drawn anew), or kept (it has no table)."""

    topic: str
    name: str
    outcome: str


def recipe(figure: Figure) -> tuple[dict[str, Any], pd.DataFrame] | None:
    """What draws this figure again: (for the manifest, for the CSV); None if it was drawn by something else."""
    drawn = getattr(figure, "drawn", None)
    if drawn is None:
        return None
    data = {name: value for name, value in drawn["arguments"].items() if _tabular(value)}
    plain = {name: value for name, value in drawn["arguments"].items() if name not in data}
    if len(data) != 1:
        return None
    name, value = next(iter(data.items()))
    frame = _frame(value)
    if frame is None:
        return None
    # The few digits of a float32 would be read as another number.
    frame = frame.astype({column: "float64" for column in frame if frame[column].dtype == "float32"})
    index = 0 if _plain_index(frame) else frame.index.nlevels
    kinds = [frame[column].dtype.kind if frame[column].dtype.kind in "ifb" else "O" for column in frame]
    return {"by": drawn["by"], "data": name, "arrays": not hasattr(value, "columns"), "index": index, "kinds": kinds,
            "arguments": plain}, frame.reset_index(names=None if not index else [f"index{i}" for i in range(index)]) if index else frame


def _tabular(value: Any) -> bool:
    return hasattr(value, "columns") or isinstance(value, Mapping)


def _plain_index(frame: pd.DataFrame) -> bool:
    return list(frame.index) == list(range(len(frame)))


def _frame(value: Any) -> pd.DataFrame | None:
    """A table as it is; named arrays one value a row, with its place. None if there are too many values."""
    import numpy as np
    import pandas as pd

    if hasattr(value, "columns"):
        return value if value.size <= MOST else None
    arrays = {name: np.asarray(array) for name, array in value.items()}
    if sum(array.size for array in arrays.values()) > MOST or any(array.ndim > 2 for array in arrays.values()):
        return None
    return pd.concat([pd.DataFrame({"name": name, "row": np.arange(len(array)).repeat(array[0].size if array.ndim > 1 else 1),
                                    "type": str(array.dtype), "value": [repr(v) for v in array.ravel().tolist()]})
                      for name, array in arrays.items()], ignore_index=True)


def draw(made: Mapping[str, Any], file: Path) -> Figure:
    """The figure of a recipe and its CSV."""
    import pandas as pd

    from prunekit import figures

    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    data = _arrays(table) if made["arrays"] else _typed(table, made["kinds"], made["index"])
    return getattr(figures, made["by"])(**{made["data"]: data}, **made["arguments"])


def _typed(table: pd.DataFrame, kinds: Iterable[str], index: int) -> pd.DataFrame:
    read = {"f": lambda text: float(text) if text else float("nan"), "i": int, "b": lambda text: text == "True"}
    for column, kind in zip(table.columns[index:], kinds, strict=True):
        if kind in read:
            table[column] = table[column].map(read[kind])
    return table.set_index(list(table.columns[:index])) if index else table


def _arrays(table: pd.DataFrame) -> dict[str, Any]:
    import numpy as np
    import torch

    found = {}
    for name, part in table.groupby("name", sort=False):
        kind = part["type"].iloc[0]
        values = [text == "True" for text in part["value"]] if kind == "bool" else [float(text) for text in part["value"]]
        rows = part["row"].nunique()
        array = np.array(values, dtype=kind)
        found[name] = torch.from_numpy(array.reshape(rows, -1)) if rows < len(part) else array
    return found


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
            files[suffix].write_bytes(content)
    artifact["files"] = {file: (folder / file).stat().st_size for file in artifact["files"]}
    artifact["sha256"] = manifest.file_hash(files[".svg"])
    return outcome
