"""Where work runs: here, in processes, or on a Dask cluster. All are concurrent.futures executors."""
from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from prunekit.errors import UsageError, did_you_mean

KINDS = ("serial", "processes", "dask")


def open_executor(kind: str = "serial", *, workers: int | None = None, address: str | None = None
                  ) -> Executor:
    """An executor by kind, to be used as a context manager.

    "serial": in this process. "processes": `workers` processes on this machine (default: one per core).
    "dask": the scheduler at `address`, or without one a cluster of `workers` processes on this machine (extra
    `cluster`). Where several GPUs are visible, each process of a pool or of a cluster made here sees one of
    them, in turn. Raises UsageError for an unknown kind, arguments that do not fit, and a scheduler that does
    not answer.
    """
    if kind not in KINDS:
        raise UsageError(f"executor kind {kind!r} is not known{did_you_mean(kind, KINDS)}.")
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise UsageError(f"workers = {workers!r}: give a number of processes, 1 or more.")
    if address and kind != "dask":
        raise UsageError(f"executor kind '{kind}' has no address; give kind 'dask' to use that of {address}.")
    if kind == "serial" and workers not in (None, 1):
        raise UsageError(f"executor kind 'serial' has no {workers} workers; give kind 'processes'.")
    if kind == "dask":
        return Dask(address, workers)
    return Processes(workers or os.cpu_count() or 1) if kind == "processes" else Serial()


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name here, one GPU each, without starting CUDA."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    return list(map(str, range(torch.cuda.device_count())))


def see_one(gpus: Sequence[str], worker: int) -> None:
    """In a worker, before CUDA starts: of several GPUs let this process see its own."""
    if len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[worker % len(gpus)]


class Serial(Executor):
    """One after the other, in this process, each when its result is asked for."""

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future:
        return _Lazy(partial(function, *args, **kwargs))


class _Lazy(Future):
    def __init__(self, work: Callable[[], Any]):
        super().__init__()
        self._work = work

    def result(self, timeout: float | None = None) -> Any:
        if not self.done():
            self.set_result(self._work())
        return super().result(timeout)


class Processes(Executor):
    """A process pool that is replaced when one of its workers dies."""

    def __init__(self, workers: int):
        self.workers = workers
        self._pool = self._new()

    def _new(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        held, self._lease = context.Pipe(duplex=False)
        start = held, visible_gpus(), context.Value("i", 0)
        return ProcessPoolExecutor(self.workers, context, _begin, start)

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future:
        future = self._pool.submit(function, *args, **kwargs)
        # The pool is told of work before it starts a worker for it, and so watches those that it had until
        # something else happens: the death of the new one would be seen when another's work ends.
        with self._pool._shutdown_lock:
            self._pool._executor_manager_thread_wakeup.wakeup()
        return future

    def renew(self) -> None:
        self.shutdown(wait=False, cancel_futures=True)
        self._pool = self._new()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._pool.shutdown(wait, cancel_futures=cancel_futures)
        self._lease.close()


def _begin(held: Connection, gpus: Sequence[str], started: Any) -> None:
    """In a worker: take the next GPU, and end with the pool. started: how many workers did so before."""
    with started.get_lock():
        see_one(gpus, started.value)
        started.value += 1
    _end_with(held)


def _end_with(held: Connection) -> None:
    """In a worker: end when the other end of the pipe closes, that is, with the pool or with the process that
    had it, and at nothing else: a Ctrl-C is for that process to answer.

    A pool that breaks while it starts another worker forgets that worker, which would then keep Python from
    ending.
    """
    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            held.recv_bytes()
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()


class Dask(Executor):
    """Dask's own executor. A worker that dies is replaced by the scheduler, its work is done elsewhere."""

    def __init__(self, address: str | None, workers: int | None):
        try:
            from distributed import Client, LocalCluster, WorkerPlugin
        except ImportError as error:
            raise UsageError("executor kind 'dask' needs Dask: pip install 'prunekit[cluster]'.") from error
        here = {"n_workers": workers or os.cpu_count(), "threads_per_worker": 1, "dashboard_address": None}
        self._cluster = None if address else LocalCluster(**here)
        try:
            self._client = Client(address or self._cluster, timeout=15, set_as_default=False)
        except (OSError, ValueError) as error:
            raise UsageError(f"no Dask scheduler answers at {address}: start one there (dask scheduler), or "
                             "correct the address.") from error
        gpus = [] if address else visible_gpus()  # of another machine's nothing is known

        class OwnGpu(WorkerPlugin):
            def setup(self, worker: Any) -> None:  # before it is sent anything that may start CUDA
                see_one(gpus, int(worker.name))

        if len(gpus) > 1:
            self._client.register_plugin(OwnGpu())
        self._executor = self._client.get_executor(pure=False)

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future:
        return self._executor.submit(function, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._executor.shutdown(wait=False)
        self._client.close()
        if self._cluster:
            self._cluster.close()
