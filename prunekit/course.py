"""The course: exercises that say whether an answer is right, a student's copy without solutions, grading.

An exercise stands behind the end of its lesson and has up to four cells, known by their tags: the question
(`exercise`), `answer_3 = ...` (`answer`), a function `check_3` that returns one sentence about what is wrong,
or nothing (`check`), and a folded solution that passes that check (`solution`). An open question has no
answer and no check.
"""
from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType, FunctionType
from typing import Any

from prunekit.batch import schedule
from prunekit.errors import UsageError
from prunekit.files import environment, replacing, write_atomic
from prunekit.workbook import manifest, project
from prunekit.workbook.project import cells, tagged

_CHECK = re.compile(r"^def check_(\d+)\(", re.MULTILINE)
MARKER = "student.json"  # makes a copy a project of its own, wherever the package is
_HANDED_OUT = """# The course

JupyterLab of the environment that prunekit is installed in opens these notebooks: `jupyter lab notebooks`.
Work through them in order; the lessons are complete, the exercises at their ends are yours. An answer
replaces the three dots in `answer_1 = ...`; the cell below says whether it is right.

`prunekit check .` grades all of them in one go, `prunekit check . --profile smoke` the same in less time.
Results lie in `runs/`, and `prunekit run embedded` here renders them as pages.
"""


# ---------------------------------------------------------------- in the lesson

@dataclass(frozen=True)
class Verdict:
    """Of one exercise: `word` is right, wrong or not answered; `sentence` says what is wrong."""

    number: int
    word: str
    sentence: str = ""

    @property
    def right(self) -> bool:
        return self.word == "right"

    def __repr__(self) -> str:
        return f"Exercise {self.number}: {self.word}." + f" {self.sentence}" * bool(self.sentence)


def grade(number: int, answer: Any, check: Callable[[Any], str | None]) -> Verdict:
    """What `check` says of an answer; nothing means right. Never raises: an answer of a wrong kind is a
    wrong answer."""
    if isinstance(answer, EllipsisType):
        return Verdict(number, "not answered")
    try:
        sentence = check(answer)
    except Exception as error:  # noqa: BLE001 (the answer may be anything)
        sentence = f"It is not of the kind that was asked for ({_said(error)})."
    return Verdict(number, "wrong" if sentence else "right", sentence or "")


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().partition("\n")[0].removesuffix(": ")


# ---------------------------------------------------------------- the student's copy

def write_copy(folder: Path) -> list[str]:
    """Write the notebooks without solutions and outputs, and the parameter files, to a folder; their topics.

    The copy is a project of its own: started anywhere inside it, notebooks and commands use it. It appears
    whole or not at all. Raises UsageError if there is something in the folder already.
    """
    folder = Path(folder).expanduser().resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an empty folder: give the copy a new one.")
    topics = project.topics()
    with replacing(folder) as inside:
        for topic in topics:
            lesson = [cell for cell in cells(project.notebook(topic)) if not tagged(cell, "solution")]
            _write_notebook(inside / "notebooks", topic, lesson)
        shutil.copytree(project.root() / "params", inside / "params")
        (inside / "README.md").write_text(_HANDED_OUT, encoding="utf-8")
        made = {"made by": "prunekit student", "on": time.strftime("%Y-%m-%d"),
                **manifest.versions(), **manifest.commit()}
        (inside / MARKER).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return topics


def _write_notebook(folder: Path, topic: str, lesson: list[dict[str, Any]]) -> None:
    """The project's notebook of that topic with other cells, without outputs."""
    notebook = json.loads(project.notebook(topic).read_text(encoding="utf-8"))
    empty = {"outputs": [], "execution_count": None}
    notebook["cells"] = [cell | empty if cell["cell_type"] == "code" else cell for cell in lesson]
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(notebook, indent=1, ensure_ascii=False)
    (folder / f"{topic}.ipynb").write_text(text + "\n", encoding="utf-8")


# ---------------------------------------------------------------- grading

@dataclass(frozen=True)
class Grade:
    """One exercise of one copy; `word` as of Verdict, or "not graded" when the lesson itself did not run."""

    folder: Path
    topic: str
    number: int
    word: str
    sentence: str = ""


def exercises(topic: str) -> dict[int, str]:
    """The exercises of a notebook that can be checked: number -> source of the check."""
    checks = [cell["source"] for cell in cells(project.notebook(topic)) if tagged(cell, "check")]
    return {int(_CHECK.search(source)[1]): source for source in checks}


def answers(path: Path) -> dict[int, str]:
    """What a student wrote: number -> all code between question and check, in however many cells."""
    written, pending = {}, []
    for cell in cells(path) if path.is_file() else []:
        if tagged(cell, "exercise"):
            pending = []
        elif tagged(cell, "check"):
            if check := _CHECK.search(cell["source"]):
                written[int(check[1])] = "\n\n".join(pending)
            pending = []
        elif cell["cell_type"] == "code":
            pending.append(cell["source"])
    return written


def check_copies(folders: Sequence[Path], profile: str = "embedded", topics: Sequence[str] = (),
                 limit: float = 60.0, *, progress: bool = True) -> list[Grade]:
    """Grade the exercises of students' copies, each against the project's own lessons and checks.

    The lessons run once for all copies, under `profile`, in a folder that is thrown away; only the students'
    answers are taken from the copies, and run behind the lesson, in a process that may be lost: one that does
    not end within `limit` seconds, or ends the process, costs its own exercise only. Raises UsageError if a
    folder is no copy.
    """
    for folder in folders:
        if not (folder / "notebooks").is_dir():
            raise UsageError(f"{folder} holds no notebooks/ folder; `prunekit student DIR` writes a copy.")
    wanted = list(topics or project.topics())
    with tempfile.TemporaryDirectory(prefix="prunekit-check-") as home:
        files = {topic: Path(home, f"{topic}.json") for topic in project.closure(wanted)}
        for topic, file in files.items():
            checks = exercises(topic) if topic in wanted else {}
            copies = [answers(folder / "notebooks" / f"{topic}.ipynb") for folder in folders]
            questions = [[(number, check, written.get(number, "")) for number, check in checks.items()]
                         for written in copies]
            file.write_text(json.dumps(questions), encoding="utf-8")
            lesson = cells(project.notebook(topic))
            end = next((place for place, cell in enumerate(lesson) if tagged(cell, "exercise")), len(lesson))
            call = f"from prunekit import course\n\ncourse.examine(globals(), {str(file)!r}, {limit!r})"
            examined = {"cell_type": "code", "id": "examined", "metadata": {}, "source": call}
            _write_notebook(Path(home, "notebooks"), topic, [*lesson[:end], examined])
        shutil.copytree(project.root() / "params", Path(home, "params"))
        with environment(PRUNEKIT_HOME=home):
            records = schedule.run_profile(profile, wanted, progress=progress)
            records = {record.topic: record for record in records}
        graded = {topic: json.loads(files[topic].read_text(encoding="utf-8")) for topic in wanted}
    grades = []
    for (place, folder), topic in itertools.product(enumerate(folders), wanted):
        unread = "not graded", f"The lesson did not run: {records[topic].reason.rstrip('.')}."
        grades += [Grade(folder, topic, **verdict) if records[topic].outcome == "done" else
                   Grade(folder, topic, verdict[0], *unread) for verdict in graded[topic][place]]
    return grades


# ---------------------------------------------------------------- in the lesson's kernel

_lesson: dict[str, Any] = {}  # in a fork of the kernel: the lesson's variables


def examine(variables: dict[str, Any], file: str, limit: float) -> None:
    """Behind a lesson: run the answers in `file` on its variables, and put the verdicts in their place."""
    copies = json.loads(Path(file).read_text(encoding="utf-8"))
    verdicts = [[vars(verdict) for verdict in _verdicts(variables, questions, limit)] for questions in copies]
    write_atomic(Path(file), json.dumps(verdicts))


def _verdicts(variables: dict[str, Any], questions: list[list[Any]], limit: float) -> Iterator[Verdict]:
    """Answers run one after the other in a fork of the lesson; after one that takes it down, in a fresh one.

    (nbclient would have to run the lesson again for every copy, and after every such answer.)
    """
    while questions:
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork"), _sit, (variables,)) as pool:
            process, alive = pool.submit(os.getpid).result(), True
            while questions and alive:
                question, *questions = questions
                attempt, sentence = pool.submit(_attempt, *question), "It ended the process it ran in."
                try:
                    alive = attempt.exception(limit) is None
                except TimeoutError:
                    alive, sentence = False, f"It did not end within {limit:g} seconds."
                lost = {"number": question[0], "word": "wrong", "sentence": sentence}
                yield Verdict(**json.loads(attempt.result()) if alive else lost)
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process, signal.SIGKILL)  # with whatever the answers have started


def _sit(variables: dict[str, Any]) -> None:
    """In the fork: alone in its group, silent, with one thread (the lesson's other threads are not here)."""
    global _lesson
    import torch

    _lesson = variables
    os.setsid()
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    torch.set_num_threads(1)


def _attempt(number: int, check: str, answer: str) -> str:
    """The verdict on one answer, as JSON: nothing that an answer made goes to the lesson's kernel."""
    name = f"answer_{number}"
    _lesson[name] = ...
    with suppress(Exception):  # behind the check stands the lesson's own call of it
        _run(check, f"check {number}")
    judge = _lesson[f"check_{number}"]  # taken before the answer can change it
    try:
        _run(answer, name)
        verdict = grade(number, _lesson.get(name, ...), judge)
    except BaseException as error:  # noqa: BLE001 (SystemExit among them)
        verdict = Verdict(number, "wrong", f"It stops with {_said(error)}.")
    return json.dumps(vars(verdict))


def _run(source: str, name: str) -> None:
    """Run a cell's source on the lesson's variables."""
    FunctionType(compile(source, name, "exec"), _lesson)()
