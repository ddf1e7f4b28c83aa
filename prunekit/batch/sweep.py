"""A grid over the parameters of notebooks: params/sweeps/NAME.yaml, one papermill run per cell.

    profile: smoke                  # where every parameter starts from: a folder of params/
    topics: [03_baselines]          # notebooks to run; what they read from is added
    fixed:                          # optional: parameters changed in every cell
      targets: ["0.5", "2:4"]
    grid:                           # each combination is a cell; a parameter goes to all notebooks with it
      methods: [[magnitude], [wanda]]      # a parameter that is a list takes a list in each place
      seed: [0, 1, 2]

Runs go to runs/sweeps/NAME/NN-HASH/TOPIC, where HASH stands for the parameters of the notebook and of all
that it reads from. Cells that agree in these share the run, a run that is fresh is not made again, and a
longer grid keeps what the shorter one made. Beside them lie cells.csv (one row per cell: parameters, outcome,
seconds, folder), results.csv (the result tables of all finished cells, under the cell's parameters) and,
where the grid has seeds, seeds.csv.
"""
from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prunekit.batch import schedule, terminal
from prunekit.batch.notebook import Record
from prunekit.batch.schedule import Unit
from prunekit.errors import UsageError, did_you_mean
from prunekit.files import write_atomic
from prunekit.workbook import checks, manifest, params, project, run
from prunekit.workbook.protocol import PROVENANCE

if TYPE_CHECKING:
    import pandas as pd


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    profile: str
    topics: list[str] = Field(min_length=1)
    grid: dict[str, list[Any]] = Field(min_length=1)
    fixed: dict[str, Any] = {}


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
    """Read a sweep's file, each cell checked as strictly as a profile; UsageError says what and where."""
    where = project.relative(path)
    content = _checked(params.load_yaml(path), where)
    if wrong := checks.problem("profile", path.stem):
        raise UsageError(f"{where}: the file's name {wrong}.")
    topics = project.topics()
    for topic in content.topics:
        if topic not in topics:
            raise UsageError(f"{where}: there is no notebook '{topic}'{did_you_mean(topic, topics)}.")
        if content.topics.count(topic) > 1:
            raise UsageError(f"{where}: topics names {topic} twice.")
    plan = project.closure(content.topics)
    base = params.profile_settings(content.profile)
    declared = {topic: params.read_parameters(project.notebook(topic)) for topic in plan}
    _check_keys(content, {name for parameters in declared.values() for name in parameters}, where)
    known: dict[str, Unit] = {}
    cells = []
    for number, combination in enumerate(itertools.product(*content.grid.values()), 1):
        values = dict(zip(content.grid, combination, strict=True))
        needed: dict[str, Unit] = {}
        for topic in plan:
            own = {key: value for key, value in (content.fixed | values).items() if key in declared[topic]}
            above = tuple(needed[other] for other in project.closure([topic])[:-1])
            key = json.dumps([topic, own, [unit.profile for unit in above]], default=str)
            if key not in known:  # those that are known are checked already
                known[key] = _unit(path, content.profile, topic, base[topic], own, above)
            needed[topic] = known[key]
        cells.append(Cell(number, values, tuple(needed[topic] for topic in content.topics)))
    units = dict.fromkeys(known.values())
    return Sweep(path.stem, content.profile, cells, sorted(units, key=lambda unit: plan.index(unit.topic)))


def _checked(content: dict[str, Any], where: str) -> _File:
    try:
        return _File(**content)
    except ValidationError as error:  # a misspelt key is also a missing one
        first = max(error.errors(), key=lambda problem: problem["type"] == "extra_forbidden")
        key, given = str(first["loc"][0]), first["input"]
        place = ".".join(str(part) for part in first["loc"])
        problem = {"missing": f"the key '{key}' is missing",
                   "extra_forbidden": f"a sweep has no key '{key}'{did_you_mean(key, _File.model_fields)}",
                   "too_short": f"{place} is empty",
                   "list_type": f"{place} = {given!r} must be a list of values (write it as [{given}])",
                   "dict_type": f"{place} must be lines of the form 'parameter: …'",
                   }.get(first["type"], f"{place} = {given!r} must be text")
        raise UsageError(f"{where}: {problem}.") from None


def _check_keys(content: _File, known: set[str], where: str) -> None:
    for key in (*content.fixed, *content.grid):
        params.refuse_unknown({key: params.Setting(None, where)}, known,
                              "no notebook of this sweep has a parameter")
        if key == "profile":
            raise UsageError(f"{where}: 'profile' is set by the sweep itself, leave it out.")
        if key in content.grid and key in content.fixed:
            raise UsageError(f"{where}: '{key}' is both fixed and in the grid, give it once.")
    for key, values in content.grid.items():
        if not values or any(value in values[:place] for place, value in enumerate(values)):
            raise UsageError(f"{where}: the grid's {key} = {values!r} must name one or more different "
                             "values.")


def _unit(path: Path, profile: str, topic: str, base: Mapping[str, params.Setting], own: Mapping[str, Any],
          above: tuple[Unit, ...]) -> Unit:
    """The checked run of a notebook with `own` values over the profile's, known by a hash of them all."""
    settings = {name: params.absolute(name, params.Setting(value, project.relative(path)), project.root())
                for name, value in own.items()}
    parameters = params.validate(topic, {**base, **settings})
    params.agree(f"params/{profile}", topic, parameters, {unit.topic: unit.parameters for unit in above})
    text = json.dumps([parameters | {"profile": ""}, [unit.profile for unit in above]], sort_keys=True)
    folder = f"sweeps/{path.stem}/{topic[:2]}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
    return Unit(topic, folder, parameters | {"profile": folder}, above)


# ---------------------------------------------------------------- running

def seconds(sweep: Sweep, units: list[Unit]) -> tuple[float, list[str]]:
    """How long these runs take one after another, by the base profile's; what that has not run."""
    known = {unit.topic: terminal.took(sweep.profile, unit.topic) for unit in units}
    unknown = [topic for topic, took in known.items() if took is None]
    return sum(known[unit.topic][0] for unit in units if known[unit.topic]), unknown


def bring_up_to_date(sweep: Sweep, **how: Any) -> Iterator[tuple[Unit, Record]]:
    """The runs of a sweep with their records; `how` (workers, dask, retry) as of `schedule.bring_up_to_date`.

    Killed at any moment, the same call goes on with what is not finished.
    """
    with schedule.only_one(sweep.folder, f"prunekit sweep {sweep.name}"):
        yield from schedule.bring_up_to_date(sweep.units, **{"retry": False, **how})


# ---------------------------------------------------------------- tables

def collect(sweep: Sweep) -> dict[str, pd.DataFrame]:
    """Join what there is, here and as CSV: `cells`; of finished ones `results` and, over seeds, `seeds`."""
    import pandas as pd

    states = schedule.states(sweep.units)
    varied = list(sweep.cells[0].values)
    rows, frames = [], []
    for cell in sweep.cells:
        values = {key: " ".join(map(str, value)) if isinstance(value, list) else value
                  for key, value in cell.values.items()}
        made = {unit: manifest.read(unit.profile, unit.topic) for unit in cell.units}
        runs = {unit: project.relative(unit.folder) for unit in cell.units}
        bad = next((states[unit] for unit in cell.units if not states[unit].fresh), None)
        rows.append({"cell": cell.number, **values, "outcome": bad.word if bad else "done",
                     "seconds": sum(content["seconds"] for content in made.values() if content),
                     "runs": " ".join(runs.values()), "reason": bad.reason if bad else ""})
        frames += [_labelled(frame, {"cell": cell.number, **values, "run": runs[unit], "table": name})
                   for unit, content in made.items() if states[unit].fresh
                   for name, frame in _results(unit, content)]
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


def _labelled(frame: pd.DataFrame, labels: Mapping[str, Any]) -> pd.DataFrame:
    left = frame.drop(columns=[*run.TIMINGS, *labels], errors="ignore")
    return left.assign(**labels)[[*labels, *left.columns]]


# Text that follows from the metric or from the numbers: rows that it told apart would be chosen by outcome.
_FOLLOWS = ("gradient_corpus", "calibration", "calibration_windows", "roles", "bos", "leaks", "verdict")
_SUMMED = {"mean": "mean", "sd": "std", "n": "count"}


def over_seeds(results: pd.DataFrame, varied: list[str]) -> pd.DataFrame:
    """Mean, standard deviation, number of seeds and Student's 95 % interval of every measured column.

    Rows belong together when they agree in what the grid varies but the seed, in their provenance and in all
    text but the expression that a search has found and what follows from that (did it read G?) or from what
    was measured (the verdict), of which all are named. Bounds of intervals within one run are left out.
    """
    from pandas.api.types import is_numeric_dtype
    from scipy import stats

    text = [column for column in results if not is_numeric_dtype(results[column])]
    keys = dict.fromkeys([*varied, "table", *(key for key in PROVENANCE if key in results), *text])
    follows = [key for key in _FOLLOWS if key in results and key not in varied]
    keys = [key for key in keys if key not in ("run", "tree", "seed", "n", *follows)]
    measured = [column for column in results if not column.endswith(("low", "high"))
                and column not in (*keys, *follows, "cell", "run", "tree", "seed", "n")]
    # Of rows of a cell that only their order tells apart.
    place = results.groupby(["cell", *keys], dropna=False).cumcount()
    number = "number "  # no column of a table is called so
    long = results.assign(place=place).melt([*keys, *follows, "place"], measured, "measure", number)
    long = long.dropna(subset=number)
    groups = long.groupby([*keys, "place", "measure"], dropna=False, sort=False)
    named = {key: (key, lambda each: " or ".join(sorted({*each.dropna().map(str)}))) for key in follows}
    table = groups.agg(**named, **{name: (number, how) for name, how in _SUMMED.items()})
    table = table.reset_index().drop(columns="place")
    reach = stats.t.ppf(0.975, table["n"] - 1) * table["sd"] / table["n"] ** 0.5
    return table.assign(low=table["mean"] - reach, high=table["mean"] + reach)
