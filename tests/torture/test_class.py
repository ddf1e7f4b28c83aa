"""A class of twenty over all notebooks: right, half done, wrong, raising, hanging, empty; graded."""
from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from prunekit.course import classroom, copies
from prunekit.workbook import project

ROOT = Path(__file__).parents[2]
MEASURED = ("03_baselines", 6)  # whose solution may turn out otherwise, see there
KINDS = {"right": 8, "half": 4, "wrong": 3, "raises": 2, "hangs": 1, "ends": 1, "empty": 1}
LOST = {"hangs": "It did not end within 20 seconds.", "ends": "It ended the process it ran in."}


def given(kind, number, solution, is_function):
    """What a student of this kind writes as an answer; None: nothing."""
    right = f"{solution}\nanswer_{number} = solution_{number}"
    body = {"wrong": "return 'no idea'", "raises": "raise RuntimeError('lost')",
            "ends": "import os; os._exit(1)", "hangs": "while True: pass"}.get(kind)
    if kind == "right" or kind == "half" and number % 2 or number > 1 and kind in LOST and not is_function:
        return right
    if body and is_function:
        return f"def answer_{number}(*given):\n    {body}"
    return body and body.replace("return", f"answer_{number} =")


def write_class(folder):
    """Twenty copies with answers; folder -> kind."""
    made = {folder / f"{kind}-{i}": kind for kind, many in KINDS.items() for i in range(1, many + 1)}
    for copied, kind in made.items():
        copies.write_copy(copied)
        for path in sorted((copied / "notebooks").glob("*.ipynb")):
            lesson = project.cells(ROOT / "notebooks" / path.name)
            solutions = {int(found[1]): cell["source"] for cell in lesson
                         if project.tagged(cell, "solution")
                         and (found := re.search(r"pk\.grade\((\d), solution", cell["source"]))}
            content = json.loads(path.read_text(encoding="utf-8"))
            for cell in content["cells"]:
                source = "".join(cell["source"])
                if found := re.match(r"(def )?answer_(\d)\b", source):
                    number = int(found[2])
                    cell["source"] = given(kind, number, solutions[number], bool(found[1])) or source
            path.write_text(json.dumps(content), encoding="utf-8")
    return made


@pytest.mark.torture
def test_a_class_of_twenty_is_graded(tmp_path, monkeypatch):
    for name in ("notebooks", "params"):
        shutil.copytree(ROOT / name, tmp_path / "home" / name)
    monkeypatch.setenv("PRUNEKIT_HOME", str(tmp_path / "home"))
    kinds = write_class(tmp_path / "class")
    said = {}
    for grade in classroom.check_copies(list(kinds), "smoke", progress=False):
        if (grade.topic, grade.number) != MEASURED:
            said.setdefault(kinds[grade.folder], Counter())[grade.word, grade.sentence] += 1
    assert set(said["right"]) == {("right", "")} and set(said["empty"]) == {("not answered", "")}
    assert {word for word, _ in said["half"]} == {"right", "not answered"}
    assert {word for word, _ in said["wrong"]} == {word for word, _ in said["raises"]} == {"wrong"}
    for kind, sentence in LOST.items():
        assert set(said[kind]) == {("right", ""), ("wrong", sentence)}
