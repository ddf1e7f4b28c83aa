"""A grid over the parameters of notebooks: params/sweeps/NAME.yaml, one papermill run per cell.

    profile: smoke                  # where every parameter starts from: a folder of params/
    topics: [03_baselines]          # notebooks to run; what they read from is added
    fixed:                          # optional: parameters changed in every cell
      targets: ["0.5", "2:4"]
    grid:                           # every combination of these is a cell; a parameter reaches every notebook that has it
      methods: [[magnitude], [wanda]]      # a parameter that is a list takes a list in each place
      seed: [0, 1, 2]

Runs go to runs/sweeps/NAME/NN-HASH/TOPIC, where HASH stands for the parameters of the notebook and of all that it reads
from. Cells that agree in these share the run, a run that is fresh is not made again, and a longer grid keeps what the
shorter one made. Beside them lie cells.csv (one row per cell: parameters, outcome, seconds, folder), results.csv (the
result tables of all finished cells, under the cell's parameters) and, where the grid has seeds, seeds.csv.
"""
from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prunekit.batch import notebooks
from prunekit.errors import UsageError, did_you_mean
from prunekit.files import write_atomic
from prunekit.workbook import checks, manifest, params, project
from prunekit.workbook import run as runs

if TYPE_CHECKING:
    import pandas as pd


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    profile: str
    topics: list[str] = Field(min_length=1)
    grid: dict[str, list[Any]] = Field(min_length=1)
    fixed: dict[str, Any] = {}


@dataclass(frozen=True)
class Unit:
    """One run of one notebook, shared by all cells that agree in its parameters and in what it reads from."""

    topic: str
    profile: str                        # sweeps/NAME/NN-HASH: the folder under runs/
    parameters: Mapping[str, Any] = field(compare=False, hash=False)
    upstream: tuple[Unit, ...] = ()     # all of it, in the order of the graph

    @property
    def folder(self) -> Path:
        return project.run_folder(self.profile, self.topic)

    def state(self) -> manifest.State:
        state = manifest.state(self.profile, self.topic, self.parameters)
        return manifest.State("interrupted") if state.fresh and not (self.folder / "executed.ipynb").exists() else state


@dataclass(frozen=True)
class Cell:
    """One combination of the grid: what it sets, and the run of each of the sweep's topics."""

    number: int
    values: Mapping[str, Any]
    units: tuple[Unit, ...]


@dataclass(frozen=True)
class Sweep:
    """A checked sweep: `units` in an order in which they can be run."""

    name: str
    profile: str
    cells: list[Cell]
    units: list[Unit]

    @property
    def folder(self) -> Path:
        return project.root() / "runs" / "sweeps" / self.name


# ---------------------------------------------------------------- the file

def read(path: Path) -> Sweep:
    """Read a sweep's file and check every cell as strictly as a profile; UsageError names file, key and value."""
    where = project.relative(path)
    content = _checked(params.load_yaml(path), where)
    if wrong := checks.problem("profile", path.stem):
        raise UsageError(f"{where}: the file's name {wrong}.")
    for topic in content.topics:
        if topic not in project.topics() or content.topics.count(topic) > 1:
            raise UsageError(f"{where}: topics names {topic} twice." if topic in project.topics() else
                             f"{where}: there is no notebook '{topic}'{did_you_mean(topic, project.topics())}.")
    plan = project.closure(content.topics)
    base = params.profile_settings(content.profile)
    declared = {topic: params.read_parameters(project.notebook(topic)) for topic in plan}
    _check_keys(content, {name for parameters in declared.values() for name in parameters}, where)
    known: dict[str, Unit] = {}
    cells = []
    for number, combination in enumerate(itertools.product(*content.grid.values()), 1):
        values = dict(zip(content.grid, combination, strict=True))
        found = _units(path, content.profile, plan, declared, base, content.fixed | values, known)
        cells.append(Cell(number, values, tuple(found[topic] for topic in content.topics)))
    units = {unit.profile: unit for unit in known.values()}.values()
    return Sweep(path.stem, content.profile, cells, sorted(units, key=lambda unit: plan.index(unit.topic)))


def _check_keys(content: _File, known: set[str], where: str) -> None:
    for key in (*content.fixed, *content.grid):
        params.refuse_unknown({key: params.Setting(None, where)}, known, "no notebook of this sweep has a parameter")
        if key == "profile":
            raise UsageError(f"{where}: 'profile' is set by the sweep itself, leave it out.")
        if key in content.grid and key in content.fixed:
            raise UsageError(f"{where}: '{key}' is both fixed and in the grid, give it once.")
    for key, values in content.grid.items():
        if not values or any(value in values[:place] for place, value in enumerate(values)):
            raise UsageError(f"{where}: the grid's {key} = {values!r} must name one or more different values.")


def _checked(content: dict[str, Any], where: str) -> _File:
    try:
        return _File(**content)
    except ValidationError as error:
        first = max(error.errors(), key=lambda one: one["type"] == "extra_forbidden")  # a misspelt key is also a missing one
        key = str(first["loc"][0])
        place = ".".join(str(part) for part in first["loc"])
        problem = {"missing": f"the key '{key}' is missing",
                   "extra_forbidden": f"a sweep has no key '{key}'{did_you_mean(key, _File.model_fields)}",
                   "too_short": f"{place} is empty",
                   "list_type": f"{place} = {first['input']!r} must be a list of values (write it as [{first['input']}])",
                   "dict_type": f"{place} must be lines of the form 'parameter: …'",
                   }.get(first["type"], f"{place} = {first['input']!r} must be text")
        raise UsageError(f"{where}: {problem}.") from None


def _units(path: Path, profile: str, plan: list[str], declared: Mapping[str, Any], base: Mapping[str, Mapping],
           values: Mapping[str, Any], known: dict[str, Unit]) -> dict[str, Unit]:
    """The runs that one cell needs, by topic; those in `known` are checked already, and shared."""
    found: dict[str, Unit] = {}
    for topic in plan:
        own = {key: value for key, value in values.items() if key in declared[topic]}
        above = tuple(unit for other, unit in found.items() if other in project.closure([topic]))
        key = json.dumps([topic, own, [unit.profile for unit in above]], default=str)
        if key not in known:
            where = project.relative(path)
            given = {name: params.absolute(name, params.Setting(value, where), project.root())
                     for name, value in own.items()}
            parameters = params.validate(topic, {**base[topic], **given})
            params.agree(f"params/{profile}", topic, parameters, {unit.topic: unit.parameters for unit in above})
            known[key] = _unit(path.stem, topic, parameters, above)
        found[topic] = known[key]
    return found


def _unit(name: str, topic: str, parameters: dict[str, Any], above: tuple[Unit, ...]) -> Unit:
    text = json.dumps([parameters | {"profile": ""}, [unit.profile for unit in above]], sort_keys=True)
    profile = f"sweeps/{name}/{topic[:2]}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
    return Unit(topic, profile, parameters | {"profile": profile}, above)


# ---------------------------------------------------------------- running

def seconds(sweep: Sweep, units: list[Unit]) -> tuple[float, list[str]]:
    """How long these runs take one after another, by the base profile's; and the notebooks which that has not run."""
    known = {unit.topic: _took(sweep.profile, unit.topic) for unit in units}
    return sum(known[unit.topic] or 0.0 for unit in units), [topic for topic, took in known.items() if took is None]


def _took(profile: str, topic: str) -> float | None:
    """Seconds of a finished run: the manifest's, and what starting the kernel took before them if papermill has said so."""
    made = manifest.read(profile, topic)
    try:
        executed = json.loads((project.run_folder(profile, topic) / "executed.ipynb").read_text(encoding="utf-8"))
        return executed["metadata"]["papermill"]["duration"] if made else None
    except (OSError, ValueError, KeyError):
        return made["seconds"] if made else None


def run(sweep: Sweep, *, executor: Mapping[str, Any] | None = None,
        retry: bool = False) -> Iterator[tuple[Unit, notebooks.Record]]:
    """Bring the runs of a sweep up to date and yield each with its record: fresh, done, failed or skipped.

    `executor`: the arguments of `open_executor` (default: one after another, here). A run that failed before is not
    tried again, unless `retry` says so. Killed at any moment, the same call goes on with what is not finished.
    """
    from prunekit.parallel import open_executor

    records: dict[str, notebooks.Record] = {}
    with ExitStack() as stack:
        stack.enter_context(notebooks.only_one(sweep.folder, f"prunekit sweep {sweep.name}"))
        pool = open_executor(**executor or {})
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        for topic, level in itertools.groupby(sweep.units, key=lambda unit: unit.topic):
            started: list[tuple[Unit, Any]] = []
            for unit in level:
                record = _settled(unit, records, retry)
                _link(unit)
                started.append((unit, notebooks.done(record) if record else pool.submit(
                    notebooks.execute, str(project.root()), topic, unit.folder, unit.parameters)))
            for unit, future in started:
                records[unit.profile] = notebooks.result(topic, future)
                yield unit, records[unit.profile]


def _settled(unit: Unit, records: Mapping[str, notebooks.Record], retry: bool) -> notebooks.Record | None:
    """The record of a run that is not to be made, or None."""
    broken = [above for above in unit.upstream if records[above.profile].outcome in ("failed", "skipped")]
    if broken:
        return notebooks.Record(unit.topic, "skipped", 0.0,
                            f"it reads from {project.relative(broken[0].folder)}, which did not finish")
    state = unit.state()
    if state.fresh:
        return notebooks.Record(unit.topic, "fresh", manifest.read(unit.profile, unit.topic)["seconds"])
    return notebooks.Record(unit.topic, "failed", 0.0, state.reason) if state.word == "failed" and not retry else None


def _link(unit: Unit) -> None:
    """Let the run find what it reads from beside it, where a notebook looks."""
    unit.folder.parent.mkdir(parents=True, exist_ok=True)
    for above in unit.upstream:
        link = unit.folder.parent / above.topic
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(above.folder, link.parent), target_is_directory=True)


# ---------------------------------------------------------------- tables

def collect(sweep: Sweep) -> dict[str, pd.DataFrame]:
    """Join what there is: `cells`, and from finished cells `results` and, over several seeds, `seeds`; each also as CSV."""
    import pandas as pd

    varied = list(sweep.cells[0].values)
    rows, frames = [], []
    for cell in sweep.cells:
        values = {key: " ".join(map(str, value)) if isinstance(value, list) else value for key, value in cell.values.items()}
        states = {unit: unit.state() for unit in cell.units}
        bad = next((state for state in states.values() if not state.fresh), None)
        made = {unit: manifest.read(unit.profile, unit.topic) for unit in cell.units}
        rows.append({"cell": cell.number, **values, "outcome": bad.word if bad else "done",
                     "seconds": sum(one["seconds"] for one in made.values() if one),
                     "runs": " ".join(project.relative(unit.folder) for unit in cell.units),
                     "reason": bad.reason if bad else ""})
        frames += [_labelled(frame, cell.number, values, name, unit) for unit, state in states.items() if state.fresh
                   for name, frame in _results(unit, made[unit])]
    tables = {"cells": pd.DataFrame(rows)}
    if frames:
        tables["results"] = pd.concat(frames, ignore_index=True)
        if "seed" in varied:
            tables["seeds"] = over_seeds(tables["results"], [key for key in varied if key != "seed"])
    for name in ("cells", "results", "seeds"):
        if name in tables:
            write_atomic(sweep.folder / f"{name}.csv", tables[name].to_csv(index=False))
        else:
            (sweep.folder / f"{name}.csv").unlink(missing_ok=True)
    return tables


def _results(unit: Unit, made: Mapping[str, Any]) -> Iterator[tuple[str, pd.DataFrame]]:
    import pandas as pd

    for name, artifact in made["artifacts"].items():
        frame = pd.read_csv(unit.folder / next(iter(artifact["files"]))) if artifact.get("result") else ()
        if len(frame):  # columns without rows have no type
            yield name.removeprefix("tables/"), frame


def _labelled(frame: pd.DataFrame, number: int, values: Mapping[str, Any], name: str, unit: Unit) -> pd.DataFrame:
    left = frame.drop(columns=[column for column in frame if column in (*runs.TIMINGS, *values)])
    first = {"cell": number, **values, "run": project.relative(unit.folder), "table": name}
    return left.assign(**first)[[*first, *left.columns]]


def over_seeds(results: pd.DataFrame, varied: list[str]) -> pd.DataFrame:
    """Mean, standard deviation, number of seeds and Student's 95 % interval of every measured column.

    Rows belong together when they agree in what the grid varies but the seed, in their provenance and in all text but the
    expression that a search has found. Bounds of intervals within one run are left out.
    """
    from pandas.api.types import is_numeric_dtype
    from scipy import stats

    text = [column for column in results if not is_numeric_dtype(results[column]) and column not in ("run", "tree")]
    keys = list(dict.fromkeys([*varied, "table", *(c for c in runs.PROVENANCE if c in results), *text]))
    keys = [key for key in keys if key not in ("seed", "n")]
    measured = [column for column in results if column not in (*keys, "cell", "run", "tree", "seed", "n", "calibration")
                and not column.endswith(("low", "high"))]
    place = results.groupby(["cell", *keys], dropna=False).cumcount()  # rows of one cell that only their order tells apart
    number = "number "  # no column of a table is called so
    long = results.assign(place=place).melt([*keys, "place"], measured, "measure", number).dropna(subset=number)
    grouped = long.groupby([*keys, "place", "measure"], dropna=False, sort=False)[number]
    table = grouped.agg(mean="mean", sd="std", n="count").reset_index().drop(columns="place")
    reach = stats.t.ppf(0.975, table["n"] - 1) * table["sd"] / table["n"] ** 0.5
    return table.assign(low=table["mean"] - reach, high=table["mean"] + reach)
