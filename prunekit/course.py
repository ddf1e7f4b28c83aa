"""The course: exercises that say whether an answer is right, a student's copy without solutions, and its grading.

An exercise stands behind the end of its lesson and has up to four cells, known by their tags: the question (`exercise`),
`answer_3 = ...` (`answer`), a function `check_3` that returns one sentence about what is wrong, or nothing (`check`), and a
folded solution that passes that check (`solution`). An open question has no answer and no check.
"""
from __future__ import annotations

import code
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
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import EllipsisType
from typing import Any

from prunekit.batch import notebooks
from prunekit.errors import UsageError
from prunekit.files import environment, replacing, write_atomic
from prunekit.workbook import manifest, project
from prunekit.workbook.project import cells, tagged

MARKER = "student.json"  # makes a copy a project of its own, wherever the package is
_HANDED_OUT = """# The course

JupyterLab of the environment that prunekit is installed in opens these notebooks: `jupyter lab notebooks`. Work through
them in order; the lessons are complete, the exercises at their ends are yours. An answer replaces the three dots in
`answer_1 = ...`; the cell below says whether it is right.

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
    """What `check` says of an answer; nothing means right. Never raises: an answer of a wrong kind is a wrong answer."""
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
    """Write the notebooks without solutions and outputs, and the parameter files, to a new folder; returns the topics.

    The copy is a project of its own: started anywhere inside it, notebooks and commands use it. It appears whole or not
    at all. Raises UsageError if there is something in the folder already.
    """
    folder = Path(folder).expanduser().resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an empty folder; name a new one for the student's copy.")
    with replacing(folder) as inside:
        for topic in project.topics():
            lesson = [cell for cell in cells(project.notebook(topic)) if not tagged(cell, "solution")]
            _write_notebook(inside / "notebooks", topic, lesson)
        shutil.copytree(project.root() / "params", inside / "params")
        (inside / "README.md").write_text(_HANDED_OUT, encoding="utf-8")
        made = {"made by": "prunekit student", "on": time.strftime("%Y-%m-%d"), **manifest.versions(), **manifest.commit()}
        (inside / MARKER).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return [path.stem for path in sorted((folder / "notebooks").glob("*.ipynb"))]


def _write_notebook(folder: Path, topic: str, lesson: list[dict[str, Any]]) -> None:
    """The project's notebook of that topic with other cells, without outputs."""
    notebook = json.loads(project.notebook(topic).read_text(encoding="utf-8"))
    notebook["cells"] = [cell | {"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else cell for cell in lesson]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{topic}.ipynb").write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


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
    found = {}
    for cell in cells(project.notebook(topic)):
        if tagged(cell, "check"):
            found[int(re.search(r"^def check_(\d+)\(", cell["source"], re.MULTILINE)[1])] = cell["source"]
    return found


def answers(path: Path) -> dict[int, str]:
    """What a student wrote: number -> all code between question and check, so that helpers may have cells of their own."""
    found, pending = {}, []
    for cell in cells(path):
        if tagged(cell, "exercise"):
            pending = []
        elif tagged(cell, "check"):
            if number := re.search(r"^def check_(\d+)\(", cell["source"], re.MULTILINE):
                found[int(number[1])] = "\n\n".join(pending)
            pending = []
        elif cell["cell_type"] == "code":
            pending.append(cell["source"])
    return found


def check_copies(folders: Sequence[Path], profile: str = "embedded", topics: Sequence[str] = (), limit: float = 60.0, *,
                 progress: bool = True) -> list[Grade]:
    """Grade the exercises of students' copies, each against the project's own lessons and checks.

    The lessons run once for all copies, under `profile`, in a folder that is thrown away; only the students' answers are
    taken from the copies, and run behind the lesson, in a process that may be lost: one that does not end within `limit`
    seconds, or ends the process, costs its own exercise only. Raises UsageError if a folder is no copy.
    """
    wanted = list(topics or project.topics())
    asked = {topic: exercises(topic) for topic in wanted}
    given: dict[str, list[dict[str, Any]]] = {topic: [] for topic in wanted}
    for folder in folders:
        if not (Path(folder) / "notebooks").is_dir():
            raise UsageError(f"{folder} holds no notebooks/ folder, so it is no copy; `prunekit student DIR` writes one.")
        for topic in wanted:
            path = Path(folder) / "notebooks" / f"{topic}.ipynb"
            written = answers(path) if path.is_file() else {}
            given[topic].append({number: written.get(number, "") for number in asked[topic]})
    with tempfile.TemporaryDirectory(prefix="prunekit-check-") as home:
        for topic in project.closure(wanted):
            file = Path(home, f"{topic}.json")
            file.write_text(json.dumps({"checks": asked.get(topic, {}), "copies": given.get(topic, [])}), encoding="utf-8")
            lesson = cells(project.notebook(topic))
            end = next((place for place, cell in enumerate(lesson) if tagged(cell, "exercise")), len(lesson))
            call = f"from prunekit import course\n\ncourse.examine(globals(), {str(file)!r}, {limit!r})"
            examined = {"cell_type": "code", "id": "examined", "metadata": {}, "source": call}
            _write_notebook(Path(home, "notebooks"), topic, [*lesson[:end], examined])
        shutil.copytree(project.root() / "params", Path(home, "params"))
        with environment(PRUNEKIT_HOME=home):
            records = {record.topic: record for record in notebooks.run_profile(profile, wanted, progress=progress)}
        return [grade for place, folder in enumerate(folders) for topic in wanted
                for grade in _grades(Path(folder), asked[topic], records[topic], Path(home, f"{topic}.json"), place)]


def _grades(folder: Path, asked: dict[int, str], record: notebooks.Record, file: Path, place: int) -> Iterator[Grade]:
    if record.outcome != "done":
        sentence = f"The lesson did not run: {record.reason.rstrip('.')}."
        yield from (Grade(folder, record.topic, number, "not graded", sentence) for number in asked)
    else:
        for verdict in json.loads(file.read_text(encoding="utf-8"))["verdicts"][place]:
            yield Grade(folder, record.topic, **verdict)


# ---------------------------------------------------------------- in the lesson's kernel

def examine(variables: dict[str, Any], file: str, limit: float) -> None:
    """Behind a lesson: run the answers in `file` on the lesson's variables, and write the verdicts into it."""
    content = json.loads(Path(file).read_text(encoding="utf-8"))
    content["verdicts"] = []
    for copied in content["copies"]:
        questions = [(int(number), source, copied[number]) for number, source in content["checks"].items()]
        content["verdicts"].append([vars(verdict) for verdict in _verdicts(variables, questions, limit)])
    write_atomic(Path(file), json.dumps(content))


def _verdicts(variables: dict[str, Any], questions: list[tuple[int, str, str]], limit: float) -> Iterator[Verdict]:
    """Answers run one after the other in a fork of the lesson; when one takes it down, the next begins in a fresh fork."""
    processes = multiprocessing.get_context("fork")
    while questions:
        ours, theirs = processes.Pipe(duplex=False)
        process = processes.Process(target=_sit, args=(variables, questions, theirs), daemon=True)
        process.start()
        theirs.close()
        alive = True
        while questions and alive:
            number, *_ = questions.pop(0)
            sentence = f"It did not end within {limit:g} seconds."
            try:
                if alive := ours.poll(limit):
                    yield Verdict(**json.loads(ours.recv_bytes()))
                    continue
            except (EOFError, OSError, ValueError, TypeError):
                alive, sentence = False, "It ended the process it ran in."
            yield Verdict(number, "wrong", sentence)
        _end(process)
        ours.close()


def _end(process: Any) -> None:
    """Kill the process and whatever it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.join()


def _sit(variables: dict[str, Any], questions: list[tuple[int, str, str]], pipe: Connection) -> None:
    """The forked process: alone in its group, silent, with one thread (the lesson's other threads are not here)."""
    import torch

    os.setsid()
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    torch.set_num_threads(1)
    for number, check, answer in questions:
        pipe.send_bytes(json.dumps(vars(_attempt(variables, number, check, answer))).encode())


def _attempt(variables: dict[str, Any], number: int, check: str, answer: str) -> Verdict:
    name = f"answer_{number}"
    variables[name] = ...
    _Interpreter(variables).problem_of(check, f"check {number}")
    judge = variables[f"check_{number}"]  # taken before the answer can change it
    if problem := _Interpreter(variables).problem_of(answer, name):
        return Verdict(number, "wrong", f"It stops with {problem}.")
    return grade(number, variables.get(name, ...), judge)


class _Interpreter(code.InteractiveInterpreter):
    problem = ""

    def problem_of(self, source: str, name: str) -> str:
        """Run a cell's source; what it stopped with, or nothing."""
        try:
            self.runcode(compile(source, name, "exec"))
        except (SyntaxError, ValueError, SystemExit) as error:
            self.problem = _said(error)
        return self.problem

    def showtraceback(self) -> None:
        self.problem = _said(sys.exc_info()[1])
