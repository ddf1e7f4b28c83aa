"""Execute one notebook with papermill, in a kernel of its own, and keep what it left when it fails."""
from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.errors import UsageError
from prunekit.files import environment, lock, write_atomic
from prunekit.workbook import manifest, params, project

_KERNEL = "prunekit"
_ONE_AT_A_TIME = threading.Lock()  # of a worker's threads: a kernel is started through the environment


@dataclass(frozen=True)
class Record:
    """What became of a notebook: `outcome` fresh, done, failed or skipped; `reason` one sentence or empty."""

    topic: str
    outcome: str
    seconds: float
    reason: str = ""

    @property
    def broken(self) -> bool:
        return self.outcome in ("failed", "skipped")


def execute(root: str, topic: str, folder: Path, parameters: Mapping[str, Any]) -> Record:
    """`run_one`, as a worker does it."""
    with _ONE_AT_A_TIME, environment(PRUNEKIT_HOME=root):  # the worker may have been started elsewhere
        return run_one(topic, folder, parameters)


def run_one(topic: str, folder: Path, parameters: Mapping[str, Any]) -> Record:
    """Execute a notebook beside the finished run in `folder`, whose place it then takes.

    One that fails leaves failed.ipynb, reason.txt and log.txt in the folder of the attempt.
    """
    import papermill
    from nbconvert.filters import strip_ansi
    from traitlets.config import Config

    project.begin(folder)
    attempt = project.attempt_folder(folder)
    declared = params.read_parameters(project.notebook(topic))
    changed = {key: value for key, value in parameters.items() if value != declared[key].default}
    partial, started, reason = attempt / ".executing.ipynb", time.monotonic(), ""
    lesson = manifest.notebook_hash(topic)  # before papermill reads it
    with _own_kernel(folder / "log.txt", lesson), _log(attempt / "log.txt"):
        try:
            papermill.execute_notebook(
                str(project.notebook(topic)), str(partial), parameters=changed, kernel_name=_KERNEL,
                cwd=str(project.root()), config=Config(KernelManager={"transport_encryption": "auto"}),
                progress_bar=False, log_output=True)
        except papermill.PapermillExecutionError as error:
            logging.getLogger("papermill").error(strip_ansi(str(error)))
            said = strip_ansi(error.evalue or "").strip().partition("\n")[0]
            name = "" if error.ename == UsageError.__name__ else f"{error.ename}: "
            reason = f"{name}{said}".removesuffix(": ")
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


@contextmanager
def _own_kernel(log: Path, lesson: str) -> Iterator[None]:
    """A kernel of the running interpreter, whatever kernels the machine has, with this project as home."""
    from ipykernel.kernelspec import get_kernel_dict

    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder, "kernels", _KERNEL)
        spec.mkdir(parents=True)
        (spec / "kernel.json").write_text(json.dumps(get_kernel_dict(["--log-level=CRITICAL"])))
        with environment(JUPYTER_PATH=os.pathsep.join(filter(None, [folder, os.environ.get("JUPYTER_PATH")])),
                         PRUNEKIT_HOME=str(project.root()), PRUNEKIT_LOG=project.relative(log),
                         PRUNEKIT_LESSON=lesson, PYDEVD_DISABLE_FILE_VALIDATION="1"):
            yield


@contextmanager
def _log(path: Path) -> Iterator[None]:
    """Send papermill's log, with all the notebook's output, to a file instead of the terminal."""
    logger = logging.getLogger("papermill")
    before = logger.propagate, logger.level
    handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    lock(handler.stream.fileno(), f"{path} is being written by another process.")  # see project.begin
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.propagate, logger.level = False, logging.INFO
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
        logger.propagate, logger.level = before
