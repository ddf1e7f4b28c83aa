"""Run the notebooks of a profile: check everything first, run what is not fresh, keep what failed, carry on."""
from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from prunekit.errors import UsageError
from prunekit.files import environment, lock, write_atomic, writing_to
from prunekit.workbook import manifest, params, project

_KERNEL = "prunekit"
_ONE_AT_A_TIME = threading.Lock()  # in a worker of several threads: a kernel is started through the environment


@dataclass(frozen=True)
class Record:
    """What became of one notebook: `outcome` is fresh, done, failed or skipped; `reason` one sentence or empty."""

    topic: str
    outcome: str
    seconds: float
    reason: str = ""


def run_profile(profile: str, topics: Iterable[str] | None = None, overrides: Mapping[str, str] | None = None, *,
                force: bool = False, progress: bool = True, workers: int = 1) -> Iterator[Record]:
    """Bring the notebooks of a profile up to date, in the order of the graph, and yield one Record for each.

    `topics` limits it to these and what they read from; `force` runs the named ones (all, when none is named) even
    when they are fresh. `workers`: so many notebooks at a time, each in a process of its own (see `share_cores`). All
    parameters are checked before the first notebook starts (UsageError), and that no other process is running the
    profile. A notebook that fails leaves failed.ipynb, reason.txt and log.txt in TOPIC.attempt, beside its
    last finished run; those that do not read from it still run.
    """
    wanted = list(topics or project.topics())
    for topic in wanted:
        project.notebook(topic)
    parameters = params.resolve_profile(profile, overrides)
    records = run_all(profile, project.closure(wanted), parameters, set(wanted) if force else set(), progress, workers)
    return _alone(profile, overrides or {}, records)


def _alone(profile: str, overrides: Mapping[str, str], records: Iterator[Record]) -> Iterator[Record]:
    with only_one(project.root() / "runs" / profile, f"prunekit run {profile}"):
        _remember(profile, overrides)
        yield from records


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
        lock(file.fileno(), f"`{command}` is under way already, in process {file.read() or 'unknown'}: wait for it, or stop it.")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def run_all(profile: str, plan: list[str], parameters: Mapping[str, dict], forced: set[str], progress: bool,
            workers: int = 1) -> Iterator[Record]:
    """Bring the runs of `plan` up to date with their parameters, `workers` at a time; those in `forced` in any case."""
    from prunekit.parallel import open_executor

    waiting, broken = list(plan), set()
    running: dict[str, Future] = {}
    with ExitStack() as stack:
        pool = open_executor("processes" if workers > 1 else "serial", workers=workers)
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        bar = stack.enter_context(tqdm(total=len(plan), leave=False, bar_format="{n}/{total} |{bar}| {elapsed} {desc}",
                                       disable=None if progress and workers > 1 else True))
        while waiting or running:
            ready = [topic for topic in waiting if not {*waiting, *running} & {*project.upstream(topic)}]
            order = ready[::-1] if workers > 1 else ready  # side by side, the later ones first: they take longer
            for topic in order[:workers - len(running)]:
                waiting.remove(topic)
                record = _settled(profile, topic, parameters[topic], broken, topic in forced)
                running[topic] = done(record) if record else pool.submit(
                    execute, str(project.root()), topic, project.run_folder(profile, topic), parameters[topic], progress and workers == 1)
            bar.set_description_str(", ".join(running))
            if workers > 1:
                wait(running.values(), return_when=FIRST_COMPLETED)
            topic = next((topic for topic, future in running.items() if future.done()), next(iter(running)))
            record = result(topic, running.pop(topic))
            if record.outcome in ("failed", "skipped"):
                broken.add(topic)
            bar.clear()
            yield record
            bar.update()


def _settled(profile: str, topic: str, parameters: Mapping[str, Any], broken: set[str], forced: bool) -> Record | None:
    """The record of a notebook that is not to be run, or None."""
    if blocked := [other for other in project.upstream(topic) if other in broken]:
        return Record(topic, "skipped", 0.0, f"it reads from {blocked[0]}, which did not finish")
    if (not forced and (project.run_folder(profile, topic) / "executed.ipynb").exists()
            and manifest.state(profile, topic, parameters).fresh):
        return Record(topic, "fresh", manifest.read(profile, topic)["seconds"])
    return None


def share_cores(workers: int) -> None:
    """Let processes that are started from here on use their share of the cores each, unless the environment says otherwise."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


def done(record: Record) -> Future:
    future: Future = Future()
    future.set_result(record)
    return future


def execute(root: str, topic: str, folder: Path, parameters: Mapping[str, Any], progress: bool = False) -> Record:
    """`run_one`, as a worker does it."""
    with _ONE_AT_A_TIME, environment(PRUNEKIT_HOME=root):  # the worker may have been started elsewhere
        return run_one(topic, folder, parameters, progress)


def result(topic: str, future: Future) -> Record:
    """What became of a notebook that `execute` ran somewhere."""
    try:
        return future.result()
    except BrokenExecutor:
        return Record(topic, "failed", 0.0, "its worker process died; start this again, it goes on from here")


def run_one(topic: str, folder: Path, parameters: Mapping[str, Any], progress: bool) -> Record:
    """Execute one notebook with papermill, beside the finished run in `folder`, whose place it then takes."""
    import papermill
    from nbconvert.filters import strip_ansi
    from traitlets.config import Config

    project.begin(folder)
    attempt = project.attempt_folder(folder)
    declared = params.read_parameters(project.notebook(topic))
    changed = {key: value for key, value in parameters.items() if value != declared[key].default}
    partial, started, reason = attempt / ".executing.ipynb", time.monotonic(), ""
    with ExitStack() as stack:
        stack.enter_context(_own_kernel(folder / "log.txt"))
        stack.enter_context(_log(attempt / "log.txt"))
        try:
            papermill.execute_notebook(
                str(project.notebook(topic)), str(partial), parameters=changed, kernel_name=_KERNEL, log_output=True,
                progress_bar={"desc": topic, "leave": False, "disable": None} if progress else False,
                cwd=str(project.root()), config=Config(KernelManager={"transport_encryption": "auto"}))
        except papermill.PapermillExecutionError as error:
            logging.getLogger("papermill").error(strip_ansi(str(error)))
            reason = _sentence(error.ename, error.evalue)
        except RuntimeError as error:
            reason = f"the kernel died ({error}); often too little memory"
    if not reason and not (attempt / "manifest.json").exists():
        reason = "it ended without run.finish()"
    if partial.exists():
        partial.rename(attempt / ("failed.ipynb" if reason else "executed.ipynb"))
    if reason:  # an error after run.finish() counts too
        (attempt / "manifest.json").unlink(missing_ok=True)
        write_atomic(attempt / "reason.txt", reason + "\n")
    else:
        project.take_place(folder)
    return Record(topic, "failed" if reason else "done", round(time.monotonic() - started, 1), reason)


def _sentence(name: str, message: str) -> str:
    from nbconvert.filters import strip_ansi

    first = strip_ansi(message or "").strip().partition("\n")[0]
    return first if name == UsageError.__name__ else f"{name}: {first}" if first else name


@contextmanager
def _own_kernel(log: Path) -> Iterator[None]:
    """A kernel of the running interpreter, whatever kernels are installed on the machine, with this project as home."""
    from ipykernel.kernelspec import get_kernel_dict

    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder, "kernels", _KERNEL)
        spec.mkdir(parents=True)
        (spec / "kernel.json").write_text(json.dumps(get_kernel_dict(["--log-level=CRITICAL"])))
        paths = os.pathsep.join(filter(None, [folder, os.environ.get("JUPYTER_PATH")]))
        with environment(JUPYTER_PATH=paths, PRUNEKIT_HOME=str(project.root()), PRUNEKIT_LOG=project.relative(log),
                                 PYDEVD_DISABLE_FILE_VALIDATION="1"):
            yield


@contextmanager
def _log(path: Path) -> Iterator[None]:
    """Send papermill's log, with all the notebook's output, to a file instead of the terminal."""
    logger = logging.getLogger("papermill")
    handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    lock(handler.stream.fileno(), f"{path} is being written by another process.")  # see project.begin
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    propagate, level = logger.propagate, logger.level
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
        logger.propagate, logger.level = propagate, level


# ---------------------------------------------------------------- status

def _remember(profile: str, overrides: Mapping[str, str]) -> None:
    write_atomic(project.root() / "runs" / profile / "overrides.json", json.dumps(dict(overrides)))


def remembered(profile: str) -> dict[str, str]:
    """The `--set` values of the last `run` of a profile, so that `status` speaks of that run."""
    path = project.root() / "runs" / profile / "overrides.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def status(profile: str, overrides: Mapping[str, str] | None = None) -> dict[str, manifest.State]:
    """The state of every notebook under a profile; what reads from one that is to be run anew is stale as well."""
    parameters = params.resolve_profile(profile, overrides or remembered(profile))
    states: dict[str, manifest.State] = {}
    for topic in project.topics():
        above = next((other for other in project.upstream(topic) if not states[other].fresh), "")
        own = manifest.state(profile, topic, parameters[topic])
        states[topic] = manifest.below(above, states[above]) if own.fresh and above else own
    return states
