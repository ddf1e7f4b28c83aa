"""Run a profile anew beside its saved runs, and compare every number of the tables."""
from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunekit.batch import notebooks
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
    record: notebooks.Record
    tolerance: float = 0.0
    numbers: int = 0
    mismatches: list[Mismatch] = field(default_factory=list)

    @property
    def same(self) -> bool:
        return self.record.outcome == "done" and not self.mismatches


def verify(profile: str, topics: Iterable[str] | None = None, tolerance: float | None = None, *,
           progress: bool = True) -> Iterator[Verdict]:
    """Run the finished notebooks of a profile again, with the parameters in their manifests and on as many threads (where all
    had the same), one after the other, and compare their tables.

    The new runs lie in runs/verify/<profile> (a plain `diff verify/<profile>/TOPIC <profile>/TOPIC` works); where
    all is the same they are removed at the end. `tolerance` (relative) None: 0 where machine, device, threads and
    versions are those of the saved run, else 1e-3. With a tolerance of 0 texts are compared as well; times and memory
    never are.
    """
    if profile not in project.profiles():
        params.profile_settings(profile)  # says that there is none
    wanted = project.closure(list(topics or (topic for topic in project.topics() if manifest.read(profile, topic))))
    if not wanted:
        raise UsageError(f"{profile} has no finished run to verify: `prunekit run {profile}` makes them.")
    saved, scratch = {}, f"verify/{profile}"
    for topic in wanted:
        project.notebook(topic)
        saved[topic] = manifest.read(profile, topic)
        if saved[topic] is None:
            raise UsageError(f"{topic} has no finished run to verify: `prunekit run {profile} {topic}` makes it.")
        made = f"{project.relative(project.run_folder(profile, topic))}/manifest.json"
        params.validate(topic, {key: params.Setting(value, made) for key, value in saved[topic]["parameters"].items()})
    return _verify(profile, scratch, saved, tolerance, progress)


def _verify(profile: str, scratch: str, saved: dict[str, dict[str, Any]], tolerance: float | None,
            progress: bool) -> Iterator[Verdict]:
    scratch_folder = project.root() / "runs" / scratch
    threads = {str(made["threads"]) for made in saved.values() if "threads" in made}  # sums depend on their number
    with (notebooks.only_one(scratch_folder.parent, "prunekit verify"),
          environment(**{"OMP_NUM_THREADS": threads.pop()} if len(threads) == 1 else {})):
        shutil.rmtree(scratch_folder, ignore_errors=True)
        parameters = {topic: made["parameters"] | {"profile": scratch} for topic, made in saved.items()}
        all_same = True
        for record in notebooks.run_all(scratch, list(saved), parameters, set(), progress):
            verdict = Verdict(record.topic, record)
            if record.outcome == "done":
                old, new = saved[record.topic], manifest.read(scratch, record.topic)
                alike = all(old.get(key) == new[key] for key in _SAME)
                allowed = (0.0 if alike else TOLERANCE) if tolerance is None else tolerance
                folders = [project.run_folder(name, record.topic) for name in (profile, scratch)]
                verdict = Verdict(record.topic, record, allowed, *compare_tables(*folders, allowed))
            all_same &= verdict.same
            yield verdict
        if all_same:
            shutil.rmtree(scratch_folder, ignore_errors=True)


def compare_tables(then: Path, now: Path, tolerance: float = 0.0) -> tuple[int, list[Mismatch]]:
    """How many numbers the saved tables of two run folders hold, and where they differ."""
    names = sorted({file.name for folder in (then, now) for file in (folder / "tables").glob("*.csv")})
    count, found = 0, []
    for name in names:
        files = [folder / "tables" / name for folder in (then, now)]
        if all(file.is_file() for file in files):
            numbers, mismatches = _compare(*files, tolerance)
            count, found = count + numbers, found + mismatches
        else:
            words = ["there" if file.is_file() else "missing" for file in files]
            found.append(Mismatch(name.removesuffix(".csv"), 0, "the table", *words))
    return count, found


def _compare(then: Path, now: Path, tolerance: float) -> tuple[int, list[Mismatch]]:
    import pandas as pd

    a, b = (pd.read_csv(file, dtype=str, keep_default_na=False).drop(columns=[*run.TIMINGS], errors="ignore")
            for file in (then, now))
    if a.shape != b.shape or list(a) != list(b):
        sizes = [f"{frame.shape[0]} × {frame.shape[1]}" for frame in (a, b)]
        return 0, [Mismatch(then.stem, 0, "rows × columns", *sizes)]
    count, found = 0, []
    for column in a:
        x, y = (pd.to_numeric(frame[column], errors="coerce") for frame in (a, b))
        count += int(x.notna().sum())
        differing = a[column] != b[column]
        if tolerance:  # of numbers alone
            near = (x - y).abs() <= tolerance * pd.concat([x.abs(), y.abs()], axis=1).max(axis=1)
            differing &= ~near & ~(x.isna() & y.isna())
        found += [Mismatch(then.stem, row + 1, column, a[column][row], b[column][row])
                  for row in a.index[differing]]
    return count, found
