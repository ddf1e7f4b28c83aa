"""The one scheduler: what a profile, a sweep or a verification is to run, in the order of the graph.

A Unit is one run of one notebook: topic, folder, parameters, and the units that it reads from. A profile is a
sweep of one cell. `bring_up_to_date` walks the units, with workers here or on a Dask cluster.
"""
from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunekit.batch import notebook, terminal
from prunekit.batch.notebook import Record
from prunekit.files import environment, lock, write_atomic, writing_to
from prunekit.parallel import open_executor
from prunekit.workbook import manifest, params, project


@dataclass(frozen=True)
class Unit:
    """One run of one notebook, shared by all cells of a sweep that agree in it."""

    topic: str
    profile: str    # the folder under runs/; of a sweep sweeps/NAME/NN-HASH
    parameters: Mapping[str, Any] = field(compare=False)
    upstream: tuple[Unit, ...] = field(default=(), compare=False)   # all of it, in the order of the graph

    @property
    def folder(self) -> Path:
        return project.run_folder(self.profile, self.topic)

    def link(self) -> None:
        """Let the run find what it reads from beside it, where a notebook looks."""
        for above in self.upstream:
            link = self.folder.parent / above.topic
            if above.profile != self.profile and not link.is_symlink():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(os.path.relpath(above.folder, link.parent), target_is_directory=True)


def units(profile: str, topics: Iterable[str], parameters: Mapping[str, Mapping[str, Any]]) -> list[Unit]:
    """The units of a profile: `topics`, in the order of the graph and with all that they read from."""
    known: dict[str, Unit] = {}
    for topic in topics:
        above = tuple(known[other] for other in project.closure([topic])[:-1])
        known[topic] = Unit(topic, profile, parameters[topic], above)
    return list(known.values())


def states(units: Iterable[Unit]) -> dict[Unit, manifest.State]:
    """The state of every unit, each asked once; what reads from one that is not fresh is stale as well."""
    known: dict[Unit, manifest.State] = {}
    for unit in units:
        above = {other.topic: known[other] for other in unit.upstream}
        known[unit] = manifest.state(unit.profile, unit.topic, unit.parameters, above=above)
    return known


# ---------------------------------------------------------------- running

@contextmanager
def only_one(folder: Path, command: str) -> Iterator[None]:
    """Nobody else writes to this folder meanwhile; a process that dies, however it dies, gives it back.

    Raises UsageError, naming the process, if somebody does already.
    """
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a+", encoding="utf-8")  # noqa: SIM115 (closed below)
    with file:
        file.seek(0)
        process = file.read() or "unknown"
        sentence = f"`{command}` is under way already, in process {process}: wait for it, or stop it."
        lock(file.fileno(), sentence)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def bring_up_to_date(units: Sequence[Unit], *, forced: Collection[Unit] = (), retry: bool = True,
                     workers: int = 1, dask: str | None = None, progress: bool = False,
                     ) -> Iterator[tuple[Unit, Record]]:
    """Run the units that are not fresh, `workers` processes at a time or on the scheduler at `dask`, and
    yield each with its record as soon as it has one.

    `units` name what they read from before themselves. Those in `forced` are run in any case; without
    `retry`, those that failed before are not. Processes share the cores, unless OMP_NUM_THREADS is set.
    """
    waiting, running, records, began = list(units), {}, {}, {}
    kind, most = ("dask", len(units)) if dask else ("processes" if workers > 1 else "serial", workers)
    expected = {unit: (terminal.expected(unit) or (None,))[0] for unit in units} if progress else {}

    def start() -> None:
        ready = [unit for unit in waiting if all(above in records for above in unit.upstream)]
        # Side by side, the later notebooks first: they take longer.
        ready.sort(key=lambda unit: unit.topic, reverse=most > 1)
        for unit in ready[:most - len(running)]:
            waiting.remove(unit)
            began[unit] = time.monotonic()
            running[unit] = _settled(unit, records, unit in forced, retry) or _started(unit, pool)

    def doing() -> str:
        now, going = time.monotonic(), list(running)
        done = {unit: record.seconds for unit, record in dict(records).items() if record.outcome == "done"}
        return terminal.told(going, terminal.left(
            [unit for unit in units if unit not in records], expected,
            {unit: now - began[unit] for unit in going}, min(most, len(units)), done))

    with ExitStack() as stack:
        if kind == "processes":
            share = str(max(1, (os.cpu_count() or 1) // workers))
            stack.enter_context(environment(**{"OMP_NUM_THREADS": share, **os.environ}))
        pool = open_executor(kind, workers=None if dask else workers, address=dask)
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        bar = stack.enter_context(terminal.Bar(len(units), doing, progress))
        start()
        while running:
            if most > 1:
                wait(running.values(), return_when=FIRST_COMPLETED)
            unit = next((unit for unit, future in running.items() if future.done()), next(iter(running)))
            records[unit] = _record(unit, running[unit])
            del running[unit]
            start()  # before the caller, who may take time, has its turn
            with bar.aside():
                yield unit, records[unit]


def _settled(unit: Unit, records: Mapping[Unit, Record], forced: bool, retry: bool) -> Future | None:
    """The record of a unit that is not to be run, or None."""
    broken = [above for above in unit.upstream if records[above].broken]
    fresh = dict.fromkeys(project.GRAPH, manifest.State("fresh"))  # all above it is, when its turn has come
    state = manifest.state(unit.profile, unit.topic, unit.parameters, above=fresh)
    settled: Future = Future()
    if broken:
        name = broken[0].topic if broken[0].profile == unit.profile else project.relative(broken[0].folder)
        settled.set_result(Record(unit.topic, "skipped", 0.0, f"it reads from {name}, which did not finish"))
    elif state.fresh and not forced and (unit.folder / "executed.ipynb").exists():
        settled.set_result(Record(unit.topic, "fresh", manifest.read(unit.profile, unit.topic)["seconds"]))
    elif state.word == "failed" and not retry:
        settled.set_result(Record(unit.topic, "failed", 0.0, state.reason))
    return settled if settled.done() else None


def _started(unit: Unit, pool: Any) -> Future:
    unit.link()
    work = notebook.execute, str(project.root()), unit.topic, unit.folder, unit.parameters
    try:
        return pool.submit(*work)
    except BrokenExecutor:  # a worker has died, and its record says so
        pool.renew()
        return pool.submit(*work)


def _record(unit: Unit, future: Future) -> Record:
    try:
        return future.result()
    except BrokenExecutor:
        reason = "its worker process died; start this again, it goes on from here"
        return Record(unit.topic, "failed", 0.0, reason)


# ---------------------------------------------------------------- a profile

def run_profile(profile: str, topics: Iterable[str] = (), overrides: Mapping[str, str] | None = None, *,
                force: bool = False, progress: bool = True, workers: int = 1) -> Iterator[Record]:
    """Bring the notebooks of a profile up to date, in the order of the graph, and yield one Record for each.

    `topics` limits it to these and what they read from; `force` runs the named ones (all, when none is named)
    even when they are fresh. `workers`: so many notebooks at a time, each in a process of its own. All
    parameters are checked before the first notebook starts (UsageError), and that no other process is running
    the profile. A notebook that fails leaves its traces in TOPIC.attempt, beside its last finished run; those
    that do not read from it still run.
    """
    wanted, planned = _planned(profile, topics, overrides)

    def run() -> Iterator[Record]:
        with only_one(project.root() / "runs" / profile, f"prunekit run {profile}"):
            last = {"folder": os.getcwd(), "set": dict(overrides or {})}
            write_atomic(_remembered(profile), json.dumps(last))
            forced = [unit for unit in planned if force and unit.topic in wanted]
            yield from (record for _, record in bring_up_to_date(
                planned, forced=forced, workers=workers, progress=progress))
    return run()


def _planned(profile: str, topics: Iterable[str], overrides: Mapping[str, str] | None
             ) -> tuple[list[str], list[Unit]]:
    wanted = project.named(topics)
    return wanted, units(profile, project.closure(wanted), params.resolve_profile(profile, overrides))


def ahead(profile: str, topics: Iterable[str] = (), overrides: Mapping[str, str] | None = None, *,
          force: bool = False) -> dict[str, tuple[float, float] | None]:
    """What `run_profile` would run, and what is `terminal.expected` of it; UsageError as there."""
    wanted, planned = _planned(profile, topics, overrides)
    return {unit.topic: terminal.expected(unit) for unit, state in states(planned).items()
            if not state.fresh or (force and unit.topic in wanted)}


def status(profile: str, overrides: Mapping[str, str] | None = None) -> dict[str, manifest.State]:
    """The state of every notebook of a profile, with the `--set` values of its last run if none are given."""
    file = _remembered(profile)
    last = json.loads(file.read_text(encoding="utf-8")) if file.exists() and not overrides else {}
    folder = Path(last["folder"]) if "folder" in last else None
    resolved = params.resolve_profile(profile, overrides or last.get("set"), folder)
    planned = units(profile, project.topics(), resolved)
    return {unit.topic: state for unit, state in states(planned).items()}


def _remembered(profile: str) -> Path:
    return project.root() / "runs" / profile / "overrides.json"
