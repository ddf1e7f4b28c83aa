"""Run a profile anew beside its saved runs, and compare every number of the tables."""
from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunekit.batch import schedule
from prunekit.batch.notebook import Record
from prunekit.errors import UsageError
from prunekit.files import environment
from prunekit.workbook import manifest, params, project, run

TOLERANCE = 1e-3  # relative, between machines or versions; on the same ones every digit must be the same
_SAME = ("machine", "device", "threads", "versions")


@dataclass(frozen=True)
class Mismatch:
    """A place where two tables differ; `row` counts from 1, 0: the tables have other rows or columns."""

    table: str
    row: int
    column: str
    then: str
    now: str

    @property
    def place(self) -> str:
        return ", ".join([self.table, *([f"row {self.row}"] if self.row else []), self.column])


@dataclass(frozen=True)
class Verdict:
    """One notebook: how it ran, the tolerance, how many numbers were compared, and those that differ."""

    topic: str
    record: Record
    tolerance: float = 0.0
    numbers: int = 0
    mismatches: list[Mismatch] = field(default_factory=list)

    @property
    def same(self) -> bool:
        return self.record.outcome == "done" and not self.mismatches


def verify(profile: str, topics: Sequence[str] = (), tolerance: float | None = None, *,
           progress: bool = True) -> Iterator[Verdict]:
    """Run the finished notebooks of a profile again, with the parameters in their manifests and on as many
    threads (where all had the same), one after the other, and compare their tables.

    The new runs lie in runs/verify/<profile> (`diff verify/<profile>/TOPIC <profile>/TOPIC` works); where all
    is the same they are removed at the end. `tolerance` (relative) None: 0 where machine, device, threads and
    versions are those of the saved run, else 1e-3. With a tolerance of 0 texts are compared as well; times
    and memory never are.
    """
    if profile not in project.profiles():
        params.profile_settings(profile)  # says that there is none
    wanted = project.named(topics) if topics else [
        topic for topic in project.topics() if manifest.read(profile, topic)]
    if not wanted:
        raise UsageError(f"{profile} has no finished run to verify: `prunekit run {profile}` makes them.")
    saved = {topic: manifest.read(profile, topic) for topic in project.closure(wanted)}
    for topic, made in saved.items():
        if made is None:
            raise UsageError(f"{topic} has no finished run to verify: "
                             f"`prunekit run {profile} {topic}` makes it.")
        file = f"{project.relative(project.run_folder(profile, topic))}/manifest.json"
        settings = {key: params.Setting(value, file) for key, value in made["parameters"].items()}
        params.validate(topic, settings)
    return _verify(profile, f"verify/{profile}", saved, tolerance, progress)


def _verify(profile: str, again: str, saved: dict[str, dict[str, Any]], tolerance: float | None,
            progress: bool) -> Iterator[Verdict]:
    folder = project.root() / "runs" / again
    threads = {str(made["threads"]) for made in saved.values() if "threads" in made}  # on which sums depend
    parameters = {topic: made["parameters"] | {"profile": again} for topic, made in saved.items()}
    with (schedule.only_one(folder.parent, "prunekit verify"),
          environment(**{"OMP_NUM_THREADS": threads.pop()} if len(threads) == 1 else {})):
        shutil.rmtree(folder, ignore_errors=True)
        all_same = True
        units = schedule.units(again, saved, parameters)
        for unit, record in schedule.bring_up_to_date(units, progress=progress):
            verdict = Verdict(unit.topic, record)
            if record.outcome == "done":
                then, now = saved[unit.topic], manifest.read(again, unit.topic)
                alike = all(then.get(key) == now[key] for key in _SAME)
                allowed = (0.0 if alike else TOLERANCE) if tolerance is None else tolerance
                tables = compare_tables(project.run_folder(profile, unit.topic), unit.folder, allowed)
                verdict = Verdict(unit.topic, record, allowed, *tables)
            all_same &= verdict.same
            yield verdict
        if all_same:
            shutil.rmtree(folder, ignore_errors=True)


def compare_tables(then: Path, now: Path, tolerance: float = 0.0) -> tuple[int, list[Mismatch]]:
    """How many numbers the saved tables of two run folders hold, and where they differ."""
    count, mismatches = 0, []
    for name in sorted({file.name for folder in (then, now) for file in (folder / "tables").glob("*.csv")}):
        files = [folder / "tables" / name for folder in (then, now)]
        if all(file.is_file() for file in files):
            numbers, differing = _compare(*files, tolerance)
            count, mismatches = count + numbers, mismatches + differing
        else:
            words = ["there" if file.is_file() else "missing" for file in files]
            mismatches.append(Mismatch(name.removesuffix(".csv"), 0, "the table", *words))
    return count, mismatches


def _compare(then: Path, now: Path, tolerance: float) -> tuple[int, list[Mismatch]]:
    import pandas as pd

    a, b = (pd.read_csv(file, dtype=str, keep_default_na=False).drop(columns=[*run.TIMINGS], errors="ignore")
            for file in (then, now))
    if a.shape != b.shape or list(a) != list(b):
        sizes = [f"{frame.shape[0]} × {frame.shape[1]}" for frame in (a, b)]
        return 0, [Mismatch(then.stem, 0, "rows × columns", *sizes)]
    count, mismatches = 0, []
    for column in a:
        x, y = (pd.to_numeric(frame[column], errors="coerce") for frame in (a, b))
        count += int(x.notna().sum())
        differing = a[column] != b[column]
        if tolerance:  # of numbers alone
            near = (x - y).abs() <= tolerance * x.abs().clip(y.abs()).clip(upper=sys.float_info.max)
            differing &= ~(near | x.isna() & y.isna())
        mismatches += [Mismatch(then.stem, row + 1, column, a[column][row], b[column][row])
                       for row in a.index[differing]]
    return count, mismatches
