"""Evaluations under way, on any executor, and what becomes of those whose worker died."""
from __future__ import annotations

import socket
from collections.abc import Iterable
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import dataclass
from typing import Any, Self

from prunekit.errors import UsageError
from prunekit.search.records import Outcome

KILLED = "killed two workers"


@dataclass(eq=False)
class Task:
    """One evaluation that was asked for."""

    args: tuple[Any, ...]
    future: Future


class Workers:
    """An executor, and what to do when its workers die. A context manager, which leaves the executor open."""

    def __init__(self, executor: Executor):
        if not hasattr(executor, "submit"):
            raise UsageError(f"executor {type(executor).__name__} has no submit: give a concurrent.futures."
                             "Executor, or open_executor('processes', workers=2).")
        self._executor = executor
        self._open: list[Task] = []
        self.host = socket.gethostname()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.forget(list(self._open))

    def submit(self, *args: Any) -> Task:
        task = Task(args, self._start(args))
        self._open.append(task)
        return task

    def result(self, task: Task) -> Any:
        """The outcome. A worker's death costs nothing; a tree that kills two workers by itself is refused."""
        self._open.remove(task)
        try:
            return task.future.result()
        except BrokenExecutor:
            return self._alone(task)
        except Exception as error:
            if type(error).__name__ == "KilledWorker":  # Dask's, after several tries on different workers
                return Outcome(defect=KILLED)
            raise

    def forget(self, pending: Iterable[Any]) -> None:
        """Cancel those of `pending` that are tasks."""
        for task in pending:
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
        """After a death among several, this one by itself, to know whose fault it was; then the others."""
        if not hasattr(self._executor, "renew"):
            raise UsageError("a worker died and this executor cannot replace it: give "
                             "open_executor('processes'), and start the search again, it goes on from its "
                             "last event.")
        outcome = Outcome(defect=KILLED)
        for _ in range(2):
            self._executor.renew()
            try:
                outcome = self._start(task.args).result()
                break
            except BrokenExecutor:
                continue
        else:
            self._executor.renew()
        for other in self._open:
            if other.future.cancelled() or not other.future.done() or other.future.exception():
                other.future = self._start(other.args)
        return outcome


def _call(evaluator: Any, *args: Any) -> Any:
    return evaluator(*args)
