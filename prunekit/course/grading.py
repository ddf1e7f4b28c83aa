"""What is said of one answer."""
from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import EllipsisType, FunctionType, SimpleNamespace
from typing import Any

from prunekit.errors import UsageError
from prunekit.workbook import run as runs


@dataclass(frozen=True)
class Verdict:
    """Of one exercise: `word` is right, wrong, not answered, or not graded where the lesson did not run;
    `sentence` says what is wrong."""

    number: int
    word: str
    sentence: str = ""

    @property
    def right(self) -> bool:
        return self.word == "right"

    def __repr__(self) -> str:
        return f"Exercise {self.number}: {self.word}." + f" {self.sentence}" * bool(self.sentence)


class Lesson(SimpleNamespace):
    """The variables of a notebook; one that does not exist is no fault of the answer."""

    def __getattr__(self, name: str) -> Any:
        raise Unfinished(f"`{name}` is not there: run the notebook from its top first.")


class Unfinished(Exception):
    """The lesson above an exercise was not run."""


def grade(number: int, answer: Any) -> Verdict:
    """What is right or wrong about the answer to an exercise of the notebook that was begun last here.

    Raises UsageError without a notebook, or without such an exercise; never because of the answer.
    """
    run = runs.current()
    if run is None:
        raise UsageError("grade belongs to a notebook: run its set-up cell, with pk.start_run, first.")
    return judge(run.topic, number, answer, run.variables)


def judge(topic: str, number: int, answer: Any, variables: Mapping[str, Any]) -> Verdict:
    """`grade`, of any notebook: `variables` are its globals. Never raises because of the answer."""
    known = exercises(topic)
    if number not in known:
        raise UsageError(f"{topic} has no exercise {number} that can be checked; it has "
                         f"{', '.join(map(str, known)) or 'none'}.")
    if unanswered(answer):
        return Verdict(number, "not answered")
    try:
        sentence = known[number](answer, Lesson(**variables))
    except Unfinished as error:
        return Verdict(number, "not graded", str(error))
    except Exception as error:  # noqa: BLE001 (the answer may be anything)
        what = "Called by the check, it stops with {}." if callable(answer) else (
            "It is not of the kind that was asked for ({}).")
        sentence = what.format(said(error))
    return Verdict(number, "wrong" if sentence else "right", sentence or "")


def exercises(topic: str) -> dict[int, Callable[[Any, Lesson], str | None]]:
    """The checks of a notebook: number -> function of (answer, lesson) that returns one sentence about what
    is wrong, or nothing."""
    try:
        module = importlib.import_module(f"prunekit.course.checks.{re.sub(r'^[0-9]+_', '', topic)}")
    except ModuleNotFoundError:
        return {}
    return {int(name.removeprefix("exercise_")): check for name, check in vars(module).items()
            if name.startswith("exercise_")}


def unanswered(answer: Any) -> bool:
    """Three dots, or a function without a body."""
    code, empty = getattr(answer, "__code__", None), _empty.__code__
    nothing = code is not None and (code.co_code, code.co_consts) == (empty.co_code, empty.co_consts)
    return isinstance(answer, EllipsisType) or isinstance(answer, FunctionType) and nothing


def _empty() -> None:
    ...


def said(error: BaseException) -> str:
    """An error in one line, without a full stop."""
    return f"{type(error).__name__}: {error}".strip().partition("\n")[0].rstrip(": .")
