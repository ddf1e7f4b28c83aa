"""Where evaluations run: here, in processes, or on a Dask cluster. All are concurrent.futures executors."""
from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Self

from prunekit.errors import UsageError, did_you_mean

KINDS = ("serial", "processes", "dask")
KILLED = "killed two workers"


def open_executor(kind: str = "serial", *, workers: int | None = None, address: str | None = None,
                  **unknown: Any) -> Executor:
    """An executor by kind, to be used as a context manager.

    "serial": in this process. "processes": `workers` processes on this machine (default: one per core). "dask": the
    scheduler at `address`, or without one a cluster of `workers` processes on this machine (needs the extra `cluster`).
    Raises UsageError for an unknown kind, arguments that do not fit, and a scheduler that does not answer.
    """
    for key in unknown:
        known = ("kind", "workers", "address")
        raise UsageError(f"an executor has no setting '{key}'{did_you_mean(key, known)}.")
    if kind not in KINDS:
        raise UsageError(f"executor kind {kind!r} is not known{did_you_mean(kind, KINDS)}.")
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise UsageError(f"workers = {workers!r}: give a number of processes, 1 or more.")
    if address and kind != "dask":
        raise UsageError(f"executor kind '{kind}' has no address; give kind 'dask' to use the scheduler at {address}.")
    if kind == "serial":
        if workers not in (None, 1):
            raise UsageError(f"executor kind 'serial' has no {workers} workers; give kind 'processes'.")
        return Serial()
    return Processes(workers or os.cpu_count() or 1) if kind == "processes" else Dask(address, workers)


class Serial(Executor):
    """One after the other, in this process, each when its result is asked for."""

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future:
        return _Lazy(function, args, kwargs)


class _Lazy(Future):
    def __init__(self, function: Any, args: tuple, kwargs: dict):
        super().__init__()
        self._work = function, args, kwargs

    def result(self, timeout: float | None = None) -> Any:
        if not self.done():
            function, args, kwargs = self._work
            self.set_result(function(*args, **kwargs))
        return super().result(timeout)


class Processes(Executor):
    """A process pool that is replaced when one of its workers dies."""

    def __init__(self, workers: int):
        self.workers = workers
        self._pool = self._new()

    def _new(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        held, self._lease = context.Pipe(duplex=False)
        return ProcessPoolExecutor(self.workers, context, _end_with, (held,))

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future:
        return self._pool.submit(function, *args, **kwargs)

    def renew(self) -> None:
        self.shutdown(wait=False, cancel_futures=True)
        self._pool = self._new()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._pool.shutdown(wait, cancel_futures=cancel_futures)
        self._lease.close()


def _end_with(held: Connection) -> None:
    """In a worker: end when the other end of the pipe closes, that is, with the pool or with the process that
    had it, and at nothing else: a Ctrl-C is for that process to answer.

    A pool that breaks while it starts another worker forgets that worker, which would then keep Python from ending.
    """
    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            held.recv_bytes()
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()


class Dask(Executor):
    """Dask's own executor. A worker that dies is replaced by the scheduler, its evaluations run elsewhere."""

    def __init__(self, address: str | None, workers: int | None):
        try:
            from distributed import Client, LocalCluster
        except ImportError as error:
            raise UsageError("executor kind 'dask' needs Dask: pip install 'prunekit[cluster]'.") from error
        self._cluster = None if address else LocalCluster(n_workers=workers or os.cpu_count(), threads_per_worker=1,
                                                          dashboard_address=None)
        try:
            self._client = Client(address or self._cluster, timeout=15, set_as_default=False)
        except (OSError, ValueError) as error:
            raise UsageError(f"no Dask scheduler answers at {address}: start one there (dask scheduler), or correct the "
                             "address.") from error
        self._executor = self._client.get_executor(pure=False)

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future:
        return self._executor.submit(function, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._executor.shutdown(wait=False)
        self._client.close()
        if self._cluster:
            self._cluster.close()


@dataclass(eq=False)
class Task:
    """One evaluation that was asked for."""

    args: tuple[Any, ...]
    future: Future


class Workers:
    """An executor, and what to do when its workers die. A context manager; closes only what it opened itself."""

    def __init__(self, executor: Executor | Mapping[str, Any]):
        self._own = isinstance(executor, Mapping)
        self._executor = open_executor(**executor) if self._own else executor
        if not isinstance(self._executor, Executor) and not hasattr(self._executor, "submit"):
            raise UsageError(f"executor {type(executor).__name__} has no submit: give a concurrent.futures.Executor, or "
                             "{'kind': 'processes', 'workers': 2}.")
        self._open: list[Task] = []
        self.host = socket.gethostname()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.forget(list(self._open))
        if self._own:
            self._executor.shutdown(wait=False, cancel_futures=True)

    def submit(self, *args: Any) -> Task:
        task = Task(args, self._start(args))
        self._open.append(task)
        return task

    def result(self, task: Task) -> Any:
        """The outcome. A worker's death costs nothing; a tree that kills two workers by itself has that as its defect."""
        self._open.remove(task)
        try:
            return task.future.result()
        except BrokenExecutor:
            return self._alone(task)
        except Exception as error:
            if type(error).__name__ == "KilledWorker":  # Dask's, after several tries on different workers
                return _quarantined()
            raise

    def forget(self, tasks: Iterable[Any]) -> None:
        for task in tasks:
            if isinstance(task, Task):
                task.future.cancel()
                if task in self._open:
                    self._open.remove(task)

    def _start(self, args: tuple[Any, ...]) -> Future:
        try:
            return self._executor.submit(_call, *args)
        except BrokenExecutor as error:  # a worker died since
            future: Future = Future()
            future.set_exception(error)
            return future

    def _alone(self, task: Task) -> Any:
        """After a death among several: this one by itself, so that it is known whose fault it was; then the others."""
        if not hasattr(self._executor, "renew"):
            raise UsageError("a worker died and this executor cannot replace it: give {'kind': 'processes'}, and start the "
                             "search again, it goes on from its last event.")
        outcome = None
        for _ in range(2):
            self._executor.renew()
            try:
                outcome = self._start(task.args).result()
                break
            except BrokenExecutor:
                continue
        if outcome is None:
            self._executor.renew()
        for other in self._open:
            if other.future.cancelled() or not other.future.done() or other.future.exception():
                other.future = self._start(other.args)
        return outcome or _quarantined()


def _quarantined() -> Any:
    from prunekit.search.engine import Outcome

    return Outcome(defect=KILLED)


def _call(evaluator: Any, *args: Any) -> Any:
    return evaluator(*args)
