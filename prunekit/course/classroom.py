"""Grading: the lessons run once, the answers of all copies behind them; the class as a table and a page."""
from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from prunekit.batch import schedule
from prunekit.course.copies import answers, write_notebook
from prunekit.course.grading import exercises
from prunekit.errors import UsageError
from prunekit.files import environment, write_atomic
from prunekit.workbook import project

_POLL = 0.2  # seconds
_MARKS = {"right": "✓", "wrong": "✗", "not answered": "·", "not graded": "?"}


@dataclass(frozen=True)
class Grade:
    """One exercise of one copy; `word` and `sentence` as of `grading.Verdict`."""

    folder: Path
    topic: str
    number: int
    word: str
    sentence: str = ""


def check_copies(folders: Sequence[Path], profile: str = "embedded", topics: Sequence[str] = (),
                 limit: float = 20.0, *, progress: bool = True) -> Iterator[Grade]:
    """Grade the exercises of students' copies behind the project's own lessons; each grade as it comes.

    The lessons run once for all copies, under `profile`, in a folder that is thrown away; only the students'
    answers are taken from the copies, and run behind the lesson, in a process that may be lost: one that does
    not end within `limit` seconds, or ends the process, costs its own exercise only. Processors only: a fork
    has no GPU. Raises UsageError if a folder is no copy.
    """
    for folder in folders:
        if not (folder / "notebooks").is_dir():
            raise UsageError(f"{folder} holds no notebooks/ folder; `prunekit student DIR` writes a copy.")
    wanted = project.named(topics)
    graded = {topic: list(exercises(topic)) for topic in project.closure(wanted) if topic in wanted}
    return _graded(list(folders), profile, wanted, graded, limit, progress)


def _graded(folders: list[Path], profile: str, wanted: list[str], graded: dict[str, list[int]], limit: float,
            progress: bool) -> Iterator[Grade]:
    asked = [(folder, topic, number) for topic, numbers in graded.items() for folder in folders
             for number in numbers]
    why: dict[Any, str] = {}  # a topic, or a folder and a topic -> why it is not graded
    with tempfile.TemporaryDirectory(prefix="prunekit-check-") as home:
        files = {topic: _prepared(Path(home), topic, folders, graded.get(topic, []), limit, why)
                 for topic in project.closure(wanted)}
        shutil.copytree(project.root() / "params", Path(home, "params"))
        bar = tqdm(total=len(asked), unit="answer", disable=None if progress else True)

        def lessons() -> None:
            for record in schedule.run_profile(profile, wanted, progress=False, workers=2):  # as make report
                why[record.topic] = f"The lesson did not run: {record.reason.rstrip('.')}."
                bar.set_description_str(f"lesson {record.topic} {record.outcome}")

        with bar, environment(PRUNEKIT_HOME=home, CUDA_VISIBLE_DEVICES=""), ThreadPoolExecutor(1) as beside:
            running = beside.submit(lessons)
            for grade in _arriving(running, files, folders):
                asked.remove((grade.folder, grade.topic, grade.number))
                bar.clear()
                yield grade
                bar.update()
            running.result()
    yield from (Grade(folder, topic, number, "not graded", why.get((folder, topic), why[topic]))
                for folder, topic, number in asked)


def _prepared(home: Path, topic: str, folders: list[Path], numbers: list[int], limit: float,
              why: dict[Any, str]) -> Path:
    """The lesson with the class behind it; where the answers are, and the verdicts will be."""
    file, questions = home / f"{topic}.json", []
    for folder in folders:
        try:
            written = answers(folder / "notebooks" / f"{topic}.ipynb")
            questions.append([(number, written.get(number, "")) for number in numbers])
        except UsageError as error:
            why[folder, topic] = str(error)
            questions.append([])
    file.write_text(json.dumps(questions), encoding="utf-8")
    call = f"sitting.examine(globals(), {topic!r}, {str(file)!r}, {limit!r})"
    examined = {"cell_type": "code", "id": "examined", "metadata": {},
                "source": f"from prunekit.course import sitting\n\n{call}"}
    write_notebook(home / "notebooks", topic, [*project.lesson(topic), examined])
    return file


def _arriving(running: Future, files: dict[str, Path], folders: list[Path]) -> Iterator[Grade]:
    """Every verdict, as soon as a kernel has written it."""
    read, last = dict.fromkeys(files, 0), False
    while not last:
        last = running.done()
        for topic, file in files.items():
            lines = Path(f"{file}l")
            new = lines.read_bytes()[read[topic]:] if lines.exists() else b""
            new = new[:new.rfind(b"\n") + 1]  # whole lines
            read[topic] += len(new)
            for line in new.splitlines():
                verdict = json.loads(line)
                yield Grade(folders[verdict.pop("copy")], topic, **verdict)
        if not last:
            time.sleep(_POLL)


# ---------------------------------------------------------------- what came out

def write_class(grades: Sequence[Grade], folder: Path) -> Path:
    """grades.csv, a row for each exercise of each copy, and grades.html; returns the page."""
    import jinja2
    import pandas as pd

    names = _names([grade.folder for grade in grades])
    grades = sorted(grades, key=lambda grade: (names[grade.folder], grade.topic, grade.number))
    frame = pd.DataFrame([{"student": names[grade.folder], "notebook": grade.topic, "exercise": grade.number,
                           "verdict": grade.word, "sentence": grade.sentence} for grade in grades])
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("class.html.j2").read_text(encoding="utf-8"))
    cells_ = {(row.student, row.notebook, row.exercise): row for row in frame.itertuples()}
    asked = sorted({(notebook, exercise) for _, notebook, exercise in cells_})
    right = Counter(name for row in cells_.values() if row.verdict == "right"
                    for name in (row.student, (row.notebook, row.exercise)))
    said = frame[frame["verdict"] == "wrong"].groupby(["notebook", "exercise", "sentence"])["student"]
    wrong = sorted(((*key, list(who)) for key, who in said), key=lambda row: (*row[:2], -len(row[3])))
    page = template.render(
        students=list(dict.fromkeys(frame["student"])), asked=asked, cells=cells_, marks=_MARKS, right=right,
        wrong=wrong, on=time.strftime("%Y-%m-%d %H:%M"))
    write_atomic(folder / "grades.csv", frame.to_csv(index=False))
    write_atomic(folder / "grades.html", page)
    return folder / "grades.html"


def _names(folders: Iterable[Path]) -> dict[Path, str]:
    """A copy's last folder; where two have the same, the whole path."""
    whole = {folder: folder.resolve() for folder in folders}
    last = [path.name for path in whole.values()]
    return {folder: path.name if last.count(path.name) == 1 else str(path) for folder, path in whole.items()}
