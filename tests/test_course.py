"""The course: the form of every exercise, what a copy holds; grading is fair and cannot be taken down."""
from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path

import pytest

import prunekit as pk
from prunekit import course
from prunekit.cli import main
from prunekit.workbook import project
from tests.tiny_project import profile, write_notebook

ROOT = Path(__file__).resolve().parents[1]
TOPICS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def cells(path):
    return [(cell["cell_type"], cell["metadata"].get("tags", []), "".join(cell["source"]), cell["metadata"])
            for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]


# ---------------------------------------------------------------- the form of the exercises

@pytest.mark.parametrize("topic", TOPICS)
def test_every_notebook_has_goals_and_exercises_of_rising_difficulty(topic):
    found = cells(ROOT / "notebooks" / f"{topic}.ipynb")
    assert "**After this notebook you can**" in found[0][2] and re.search(r"\| \d+ (s|min) \|", found[0][2])
    start = next(place for place, cell in enumerate(found) if cell[2].startswith("## Exercises"))
    assert not [cell for cell in found[:start] if {"exercise", "answer", "check", "solution"} & set(cell[1])]
    kinds, stars = [], []
    for _, tags, source, metadata in found[start + 1:-1]:
        (tag,) = tags
        if tag == "exercise":
            number, star = re.match(r"\*\*Exercise (\d) (★+) · [^*]+\.\*\*", source).groups()
            stars.append(len(star))
            assert int(number) == len(stars)
            kinds.append([])
        kinds[-1].append(tag)
        if tag == "answer":
            assert source == f"answer_{number} = ...   # your line"
        elif tag == "check":
            assert source.startswith(f"def check_{number}(answer):\n")
            assert source.endswith(f"\npk.grade({number}, answer_{number}, check_{number})")
        elif tag == "solution":
            assert metadata["jupyter"] == {"source_hidden": True, "outputs_hidden": True}
            graded = f"pk.grade({number}, solution_{number}, check_{number})" in source
            assert graded or "check" not in kinds[-1]
    assert 3 <= len(stars) <= 6 and stars == sorted(stars) and {1, 3} <= set(stars)
    assert all(kind in (["exercise", "answer", "check", "solution"], ["exercise", "solution"])
               for kind in kinds)
    assert len(course.exercises(topic)) == kinds.count(["exercise", "answer", "check", "solution"]) >= 3


@pytest.mark.parametrize("topic", TOPICS)
def test_nothing_depends_on_a_solution(topic):
    """A copy without solutions runs: no name that only solutions define is used outside its own solution."""
    defined, used = {}, {}
    for kind, tags, source, _ in cells(ROOT / "notebooks" / f"{topic}.ipynb"):
        if kind == "code":
            names = [node for node in ast.walk(ast.parse(source))
                     if isinstance(node, (ast.Name, ast.FunctionDef))]
            group = source if "solution" in tags else "lesson"
            defined.setdefault(group, set()).update(
                node.name if isinstance(node, ast.FunctionDef) else node.id for node in names
                if isinstance(node, ast.FunctionDef) or isinstance(node.ctx, ast.Store))
            used.setdefault(group, set()).update(
                node.id for node in names if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
    lesson = defined.pop("lesson")
    for group, names in defined.items():
        for other in used.keys() - {group}:
            assert not (names - lesson - defined.get(other, set())) & used[other]


# ---------------------------------------------------------------- verdicts

def test_a_verdict_is_one_clear_sentence():
    def check(answer):
        return None if answer + 1 == 3 else "It is not two."

    assert repr(pk.grade(1, 2, check)) == "Exercise 1: right."
    assert repr(pk.grade(2, 5, check)) == "Exercise 2: wrong. It is not two."
    assert repr(pk.grade(3, ..., check)) == "Exercise 3: not answered."
    broken = pk.grade(4, "two", check)
    assert broken.word == "wrong"
    assert broken.sentence.startswith("It is not of the kind that was asked for (TypeError: ")
    assert not pk.grade(5, None, lambda answer: 1 / 0).right


# ---------------------------------------------------------------- copies and grades, of two tiny notebooks

CHECK = """def check_{0}(answer):
    return None if answer == {1} else "It is not {1}."


pk.grade({0}, answer_{0}, check_{0})"""
LESSON = [
    ("md", "# 01 · Data"), ("parameters", 'profile: str = "tiny"\nrows: int = 3\n'),
    ("", 'import prunekit as pk\nrun = pk.start_run("01_data", globals())'), ("", "run.finish()"),
    ("md", "## Exercises"),
    ("exercise", "**Exercise 1**"), ("answer", "answer_1 = ..."), ("check", CHECK.format(1, "rows")),
    ("solution", "rows"),
    ("exercise", "**Exercise 2**"), ("answer", "answer_2 = ..."), ("check", CHECK.format(2, "rows + 1")),
    ("solution", "5"),
    ("exercise", "**Exercise 3**"), ("solution", "'open'"),
    ("md", "Next"),
]


@pytest.fixture
def school(home):
    tags = [tag for tag, _ in LESSON]
    for topic in ("01_data", "03_baselines"):
        cells_ = [(tag, source.replace("01_data", topic)) for tag, source in LESSON]
        path = write_notebook(home / "notebooks" / f"{topic}.ipynb", cells_)
        content = json.loads(path.read_text())
        for tag, cell in zip(tags, content["cells"], strict=True):
            if tag == "exercise":
                cell |= {"cell_type": "markdown", "metadata": {"tags": ["exercise"]}}
                del cell["outputs"], cell["execution_count"]
        path.write_text(json.dumps(content))
    profile(home, "tiny", common="rows: 5\n")
    return home


def answer(folder, topic, **given):
    """Write answers into a copy, each in place of its dots; of a list, all but the last into cells before."""
    path = folder / "notebooks" / f"{topic}.ipynb"
    content = json.loads(path.read_text())
    for name, sources in given.items():
        place = next(i for i, cell in enumerate(content["cells"])
                     if "".join(cell["source"]).startswith(f"{name} = ..."))
        *before, last = [sources] if isinstance(sources, str) else sources
        content["cells"][place]["source"] = last
        empty = {"cell_type": "code", "metadata": {}, "outputs": []}
        content["cells"][place:place] = [empty | {"source": source} for source in before]
    path.write_text(json.dumps(content))


def test_a_copy_is_a_project_of_its_own_without_solutions(school, tmp_path, monkeypatch):
    copied = tmp_path / "ann"
    assert course.write_copy(copied) == ["01_data", "03_baselines"]
    assert [tags for _, tags, _, _ in cells(copied / "notebooks" / "01_data.ipynb")] == [
        [tag] if tag not in ("", "md") else [] for tag, _ in LESSON if tag != "solution"]
    made = json.loads((copied / "student.json").read_text())
    assert made["prunekit"] == pk.__version__ and made["made by"] == "prunekit student"
    assert (copied / "params" / "tiny" / "common.yaml").read_text() == "rows: 5\n"
    with pytest.raises(pk.UsageError, match="is not an empty folder"):
        course.write_copy(copied)
    monkeypatch.delenv("PRUNEKIT_HOME")
    monkeypatch.chdir(copied / "notebooks")
    assert project.root() == copied  # although the package lies beside notebooks of its own
    monkeypatch.chdir(tmp_path)
    assert project.root() == ROOT


def test_grading_is_fair_and_cannot_be_taken_down(school, tmp_path):
    names = ("empty", "solved", "wrong", "helped", "endless", "exits", "cheats")
    copies = {name: tmp_path / name for name in names}
    for copied in copies.values():
        course.write_copy(copied)
    answer(copies["solved"], "01_data", answer_1="solution_1 = rows\nanswer_1 = solution_1",
           answer_2="answer_2 = rows + 1")
    answer(copies["wrong"], "01_data", answer_1="answer_1 = 4", answer_2="answer_2 = rows +")
    answer(copies["helped"], "01_data", answer_1=["def mine(x):\n    return x", "answer_1 = mine(rows)"],
           answer_2="answer_2 = mine(rows) + 1")
    answer(copies["endless"], "01_data", answer_2="answer_2 = rows + 1", answer_1=(
        "while True:\n    try:\n        while True: pass\n    except BaseException:\n        pass"))
    answer(copies["exits"], "01_data", answer_1="import os; os._exit(0)", answer_2="raise SystemExit('bye')")
    answer(copies["cheats"], "01_data", answer_1="def check_1(answer):\n    pass\n\nanswer_1 = 'guessed'",
           answer_2="rows = 'mine'")
    (copies["cheats"] / "notebooks" / "03_baselines.ipynb").unlink()
    grades = course.check_copies(list(copies.values()), "tiny", ["01_data"], limit=2, progress=False)
    found = {name: [(grade.word, grade.sentence) for grade in grades if grade.folder == folder]
             for name, folder in copies.items()}
    right, open_ = ("right", ""), ("not answered", "")
    assert found["empty"] == [open_, open_]
    assert found["solved"] == found["helped"] == [right, right]
    assert found["wrong"][0] == ("wrong", "It is not rows.")
    assert found["wrong"][1][1].startswith("It stops with SyntaxError: ")
    assert found["endless"] == [("wrong", "It did not end within 2 seconds."), right]
    assert found["exits"] == [("wrong", "It ended the process it ran in."),
                              ("wrong", "It stops with SystemExit: bye.")]
    # The check is the project's, not the copy's.
    assert found["cheats"] == [("wrong", "It is not rows."), open_]
    assert [one.number for one in grades if one.folder == copies["empty"]] == [1, 2]
    assert not (tmp_path / "solved" / "runs").exists()


def test_the_command_says_one_line_for_each_exercise(school, tmp_path, capsys):
    assert main(["student", str(tmp_path / "bob")]) == 0
    assert "2 notebooks without solutions" in capsys.readouterr().out
    assert main(["student", str(tmp_path / "bob")]) == 2
    assert main(["check", str(tmp_path)]) == 2
    assert "holds no notebooks/ folder" in capsys.readouterr().err
    answer(tmp_path / "bob", "01_data", answer_2="answer_2 = 6")
    assert main(["check", str(tmp_path / "bob"), "--profile", "tiny", "--only", "01_data"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "01_data            1  not answered", "01_data            2  right",
        "1 not answered, 1 right; 2 exercises can be checked"]


# ---------------------------------------------------------------- the project's own first notebook

def test_solutions_pasted_back_are_right_and_an_empty_copy_is_not_answered(tmp_path, monkeypatch):
    """Notebook 01; the other notebooks assert their solutions themselves, see test_smoke.py."""
    monkeypatch.setenv("PRUNEKIT_HOME", str(tmp_path / "home"))
    for folder in ("notebooks", "params"):
        shutil.copytree(ROOT / folder, tmp_path / "home" / folder,
                        ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    empty, solved, wrong = copies = [tmp_path / name for name in ("empty", "solved", "wrong")]
    for copied in copies:
        course.write_copy(copied)
    solutions = {int(re.search(r"^solution_(\d)", source, re.MULTILINE)[1]): source
                 for _, tags, source, _ in cells(ROOT / "notebooks" / "01_data.ipynb") if "solution" in tags}
    for number, source in solutions.items():
        answer(solved, "01_data", **{f"answer_{number}": f"{source}\nanswer_{number} = solution_{number}"})
    answer(wrong, "01_data", answer_1="answer_1 = (7, 104, 896)", answer_3='answer_3 = {"a", "b", "c", "d"}')
    grades = course.check_copies(copies, "smoke", ["01_data"], progress=False)
    words = {folder: [one.word for one in grades if one.folder == folder] for folder in copies}
    open_ = "not answered"
    assert words == {empty: [open_] * 5, solved: ["right"] * 5,
                     wrong: ["wrong", open_, "wrong", open_, open_]}
    assert any(one.sentence.startswith("The first token of a window is predicted by nobody")
               for one in grades)
