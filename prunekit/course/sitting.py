"""In the kernel of a lesson that has just run: the answers of a class, in processes that may be lost."""
from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pandas as pd
import torch

from prunekit.course.grading import Verdict, exercises, judge, said
from prunekit.evaluate.perplexity import Perplexity

_MEMORY, _FILE = 4 << 30, 64 << 20  # bytes that an answer may take beside the lesson's, and put into a file
_AT_A_TIME = max(2, os.cpu_count() or 1)  # copies, of which each takes one core
_one = threading.Lock()
_variables: dict[str, Any] = {}  # in a fork of the kernel: the lesson's, and what the answers make of them
_untouched: dict[str, Any] = {}  # as the checks see them: copies, since an answer may change data in place


def examine(variables: dict[str, Any], topic: str, file: str, limit: float) -> None:
    """Behind a lesson: run the answers that `file` holds on its variables, and write a line of `file`l for
    each verdict as it comes. file: for each copy its (exercise, answer) pairs, as JSON. Some copies at a
    time, so that one which hangs holds up no other."""
    copies = json.loads(Path(file).read_text(encoding="utf-8"))
    exercises(topic)  # imported here, once, and not in every fork
    with open(f"{file}l", "a", encoding="utf-8") as lines, ThreadPoolExecutor(_AT_A_TIME) as desks:
        def take(place: int) -> None:
            for verdict in _verdicts(variables, topic, copies[place], limit):
                with _one:
                    lines.write(json.dumps({"copy": place, **vars(verdict)}) + "\n")
                    lines.flush()

        list(desks.map(take, range(len(copies))))


def _verdicts(variables: dict[str, Any], topic: str, questions: list[list[Any]], limit: float
              ) -> Iterator[Verdict]:
    """Answers run one after the other in a fork of the lesson; after one that takes it down, in a fresh one,
    where those before it run again, since what they define may be used.

    (nbclient would have to run the lesson again for every copy, and after every such answer.)
    """
    ended: list[list[Any]] = []
    while questions:
        folder = tempfile.mkdtemp(prefix="prunekit-answers-")
        fork = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(1, fork, _sit, (variables, folder)) as pool:
            with _one:  # a fork made beside another would hold its pipes open, and hide its end
                process = pool.submit(os.getpid).result()
            alive = not ended
            with suppress(TimeoutError):
                alive = alive or pool.submit(_repeat, ended).exception(limit * len(ended)) is None
            ended = ended if alive else []  # what does not end a second time is not tried a third
            while questions and alive:
                (number, answer), *questions = questions
                attempt = pool.submit(_attempt, topic, number, answer)
                sentence = "It ended the process it ran in."
                try:
                    alive = attempt.exception(limit) is None
                except TimeoutError:
                    alive, sentence = False, f"It did not end within {limit:g} seconds."
                lost = {"number": number, "word": "wrong", "sentence": sentence}
                yield Verdict(**json.loads(attempt.result()) if alive else lost)
                ended += [[number, answer]] * alive
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process, signal.SIGKILL)  # with whatever the answers have started
        shutil.rmtree(folder, ignore_errors=True)


def _sit(variables: dict[str, Any], folder: str) -> None:
    """In the fork: alone in its group and in a folder of its own, silent, with bounds, and with one thread
    (the lesson's other threads are not here)."""
    import resource

    _variables.update(variables)
    os.setsid()
    os.chdir(folder)
    sys.stdin, sys.stdout = open(os.devnull), open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stdout
    torch.set_num_threads(1)
    _untouched.update(_copied(variables))
    bounds = {resource.RLIMIT_FSIZE: _FILE, resource.RLIMIT_CORE: 0}
    if sys.platform == "linux":  # which tells how much the lesson holds
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
        bounds[resource.RLIMIT_AS] = pages * resource.getpagesize() + _MEMORY
    for kind, most in bounds.items():
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _copied(value: Any) -> Any:
    """A copy of tensors, arrays, frames and losses, also of those in containers; all else is shared."""
    if isinstance(value, torch.Tensor) and value.is_cpu:  # a fork cannot use the lesson's GPU
        return value.detach().clone()
    if type(value) is dict:
        return {key: _copied(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_copied, value))
    return deepcopy(value) if isinstance(value, (np.ndarray, pd.DataFrame, pd.Series, Perplexity)) else value


def _execute(number: int, answer: str) -> Any:
    name = f"answer_{number}"
    _variables[name] = ...
    FunctionType(compile(answer, name, "exec"), _variables)()
    return _variables.get(name, ...)


def _repeat(answers: list[list[Any]]) -> None:
    for number, answer in answers:
        with suppress(BaseException):
            _execute(number, answer)


def _attempt(topic: str, number: int, answer: str) -> str:
    """The verdict on one answer, as JSON: nothing that an answer made goes to the lesson's kernel."""
    try:
        verdict = judge(topic, number, _execute(number, answer), _untouched)
    except BaseException as error:  # noqa: BLE001 (SystemExit among them)
        verdict = Verdict(number, "wrong", f"It stops with {said(error)}.")
    return json.dumps(vars(verdict))
