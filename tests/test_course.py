"""The course: the form of every exercise, what a copy holds; grading is fair and cannot be taken down."""
from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import prunekit as pk
from prunekit.cli import main
from prunekit.course import classroom, copies, grading, sitting
from prunekit.evaluate.perplexity import Perplexity
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
    kinds, stars, written = [], [], 0
    for _, tags, source, metadata in found[start + 1:-1]:
        (tag,) = tags
        if tag == "exercise":
            number, star = re.match(r"\*\*Exercise (\d) (★+) · [^*]+\.\*\*", source).groups()
            stars.append(len(star))
            assert int(number) == len(stars)
            kinds.append([])
        kinds[-1].append(tag)
        if tag == "answer":
            assert re.fullmatch(rf"answer_{number} = \.\.\.   # your line|"
                                rf"def answer_{number}\([\w, ]+\):\n    \.\.\.   # your lines", source)
            written += source.startswith("def")
        elif tag == "check":
            assert source == f"pk.grade({number}, answer_{number})"
        elif tag == "solution":
            assert metadata["jupyter"] == {"source_hidden": True, "outputs_hidden": True}
            assert f"pk.grade({number}, solution_{number})" in source or "check" not in kinds[-1]
    assert 3 <= len(stars) <= 6 and stars == sorted(stars) and {1, 3} <= set(stars)
    assert all(kind in (["exercise", "answer", "check", "solution"], ["exercise", "solution"])
               for kind in kinds)
    checked = [number for number, kind in enumerate(kinds, 1) if "check" in kind]
    assert list(grading.exercises(topic)) == checked and len(checked) >= 3
    assert written, "no exercise asks for code"


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


def test_a_copy_holds_neither_solutions_nor_what_makes_an_answer_right(tmp_path):
    """Nor any sentence of a check: what it says is said of a mistake."""
    copies.write_copy(tmp_path / "ann")
    for topic in TOPICS:
        copied = (tmp_path / "ann" / "notebooks" / f"{topic}.ipynb").read_text(encoding="utf-8")
        assert not re.search("solution_|Solutions are folded|def check_|assert pk.grade", copied)
        secrets = [source for _, tags, source, _ in cells(ROOT / "notebooks" / f"{topic}.ipynb")
                   if "solution" in tags]
        checks = ROOT / "prunekit" / "course" / "checks" / f"{topic[3:]}.py"
        for function in ast.parse(checks.read_text(encoding="utf-8")).body:
            if isinstance(function, ast.FunctionDef) and function.name.startswith("exercise_"):
                secrets += [node.value for node in ast.walk(function)
                            if isinstance(node, ast.Constant) and " " in str(node.value)]
        assert len(secrets) > 10
        path = tmp_path / "ann" / "notebooks" / f"{topic}.ipynb"
        shown = "\n".join(source for _, _, source, _ in cells(path))
        assert not [secret for secret in secrets if len(secret) > 25 and secret in shown]


# ---------------------------------------------------------------- verdicts

def test_a_verdict_is_one_clear_sentence(monkeypatch):
    def said(answer, number=1, topic="01_data", **lesson):
        return repr(grading.judge(topic, number, answer, lesson))

    assert said((7, 104, 889)) == "Exercise 1: right."
    assert said((7, 104, 896)).startswith("Exercise 1: wrong. The first token of a window is predicted by")
    assert said(...) == "Exercise 1: not answered."
    assert "wrong. It is not of the kind that was asked for (ValueError: too many" in said("seven")
    assert said(12, 4) == (
        "Exercise 4: not graded. `frequency` is not there: run the notebook from its top first.")
    with pytest.raises(pk.UsageError, match="01_data has no exercise 9 that can be checked; it has 1, 2, 3"):
        said(1, 9)
    monkeypatch.setattr("prunekit.workbook.run._current", None)  # whatever ran before in this process
    with pytest.raises(pk.UsageError, match="run its set-up cell"):
        pk.grade(1, 7)


def test_a_function_is_called_and_one_without_a_body_is_no_answer():
    def empty(text, seqlen, stride):
        ...   # your lines

    def documented(text, seqlen, stride):
        """Nothing."""
        return text.missing

    assert grading.judge("01_data", 5, empty, {}).word == "not answered"
    assert grading.judge("01_data", 5, lambda text, seqlen, stride: 0, {}).sentence == (
        "Of 100 tokens, with seqlen 16 and stride 16, it returns int, not a tensor.")
    sentence = grading.judge("01_data", 5, documented, {}).sentence
    assert sentence.startswith("Called by the check, it stops with AttributeError: 'Tensor' object")
    assert grading.judge("01_data", 5, lambda text, seqlen, stride: text.unfold(0, seqlen, stride), {}).right


def test_a_right_answer_is_right_in_whatever_form_it_comes():
    mask = [1, 0, 1, 0, 0, 1, 0, 1]
    for answer in (mask, torch.tensor(mask), [mask[:4], mask[4:]]):
        assert grading.judge("03_baselines", 1, answer, {}).right
    rng = np.random.default_rng(0)
    dense = rng.normal(size=8)
    nll = pd.DataFrame({"wanda": dense + 0.3 * rng.normal(size=8)})
    lesson = {"nll": nll, "dense": SimpleNamespace(nll=dense)}
    pruned = nll["wanda"]
    for own in (0, 1):   # as `dense.nll.var()` of NumPy has it, and as pandas does
        times = ((pruned.var() + dense.var(ddof=own)) / (pruned - dense).var()) ** 0.5
        assert grading.judge("03_baselines", 4, times, lesson).right
        assert "ratio of the variances" in grading.judge("03_baselines", 4, times**2, lesson).sentence
    assert grading.judge("03_baselines", 4, 1.1 * times, lesson).word == "wrong"


def test_the_lessons_last_exercise_needs_the_first_three_code_cells_alone():
    code = [source for kind, _, source, _ in cells(ROOT / "notebooks" / "03_baselines.ipynb")
            if kind == "code"]
    made = {node.id for node in ast.walk(ast.parse("\n".join(code[:3])))
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    read = set(re.findall(r"lesson\.(\w+)", inspect.getsource(grading.exercises("03_baselines")[6])))
    assert read == {"network", "windows", "gradients"} <= made


MISTAKES = {  # topic and number: answers that are wrong, and what is said of them
    ("01_data", 5): [(lambda t, n, s: t[:len(t) // n * n].view(-1, n), "misses a window"),
                     (lambda t, n, s: t.unfold(0, n, s)[:-1], "misses a window")],
    ("04_gp_search", 4): [(lambda a, at, b, of: a[:at] + b[of:of + 1] + a[at + 1:], "goes"),
                          (lambda a, at, b, of: a, "it becomes")],
    ("05_tree_analysis", 4): [(lambda p: [len(p) * x for x in p], "above 1"),
                              (lambda p: sorted(pk.holm(p)), "order is not"),
                              (lambda p: [min(1, x * (len(p) - sorted(p).index(x))) for x in p],
                               "lower than")],
    ("06_zero_shot", 5): [(lambda k, n: (k / n - 1.96 * (k / n * (1 - k / n) / n) ** 0.5,
                                         k / n + 1.96 * (k / n * (1 - k / n) / n) ** 0.5), "plain interval")],
    ("03_baselines", 5): [(lambda W, U, i, keep: W, "is not 0"), (lambda W, U, i, keep: W[0], "shape"),
                          (lambda W, U, i, keep: W - (W[:, i] / U[i, i])[:, None] * U[i], "weight stays"),
                          (lambda W, U, i, keep: W - (W[:, i] * ~keep)[:, None] * U[i] / U[i, i] * (
                              torch.arange(6) == i), "After all columns")],
    ("07_lora", 5): [(lambda W, A, B, s: (W + B @ A * s).to(W.dtype), "fills zeros in"),
                     (lambda W, A, B, s: W + (W != 0) * (B @ A) * s, "float32 of torch.bfloat16"),
                     (lambda W, A, B, s: W.add_((W != 0) * (B @ A) * s), "changes W itself")],
    ("07_lora", 3): [((np.eye(3), [1], [1, 1, 1]), "three numbers"),
                     ((np.ones((3, 3)), [1, 2, 3], [1, 2, 3]), "rank 1")],
    ("07_lora", 4): [((1 / 16, 0.5), "one bit")],
}


@pytest.mark.parametrize("place", MISTAKES, ids=str)
def test_a_mistake_in_code_is_named(place):
    for answer, words in MISTAKES[place]:
        verdict = grading.judge(*place, answer, {})
        assert verdict.word == "wrong" and words in verdict.sentence, verdict


NAN = float("nan")
NANS = {  # by topic: of each exercise whose answer holds numbers, one that is NaN throughout
    "01_data": {1: (NAN,) * 3, 2: NAN, 4: NAN, 5: lambda t, n, s: t.unfold(0, n, s) * NAN, 6: NAN},
    "02_gradients": {1: [[NAN] * 2] * 3, 3: [[NAN] * 3] * 2, 4: NAN,
                     5: lambda stream, norm: NAN * next(stream), 6: [[NAN] * 3] * 2},
    "03_baselines": {1: [[NAN] * 4] * 2, 2: [NAN] * 8, 3: lambda s: NAN, 4: NAN,
                     5: lambda W, U, i, keep: W * NAN},
    "04_gp_search": {2: [[NAN] * 2] * 2, 5: NAN},
    "05_tree_analysis": {1: NAN, 2: [NAN] * 4, 3: NAN, 4: lambda p: [NAN] * len(p), 5: (NAN, NAN)},
    "06_zero_shot": {1: (NAN, NAN), 2: NAN, 3: NAN, 4: NAN, 5: lambda right, n: (NAN, NAN)},
    "07_lora": {1: [[[NAN] * 2] * 2] * 2, 2: (NAN, NAN), 3: (np.eye(3), [NAN] * 3, [NAN] * 3),
                4: (NAN, NAN), 5: lambda W, A, B, s: W * NAN},
}


@pytest.mark.parametrize("topic", NANS)
def test_what_is_not_a_number_is_not_right(topic, monkeypatch):
    """So a check compares as `not off <= tolerance`: `off > tolerance` lets NaN pass."""
    ones = pd.DataFrame({"wanda": [1.0, 2.0, 4.0]})
    lesson = {"frequency": {"test": torch.ones(3)}, "unigram": {"test": 3.0}, "nll": ones,
              "dense": SimpleNamespace(nll=np.array([1.0, 2.0, 3.0])), "everything": [1],
              "history": pd.DataFrame({"journal": ["a"], "tree": ["W"]}), "query": "q", "choices": ["a", "b"],
              "tokenizer": lambda text: {"input_ids": list(text)}, "by_hand": [-1.0, -2.0]}
    if topic == "02_gradients":
        monkeypatch.setattr(f"{grading.exercises(topic)[4].__module__}._collected",
                            lambda *_: torch.ones(2, 3))
        lesson["layer"] = SimpleNamespace(name="a layer")
    for number, answer in NANS[topic].items():
        assert grading.judge(topic, number, answer, lesson).word == "wrong", number


def test_what_a_check_reads_is_what_was_asked_for():
    for equal in ([1] * 8, [0] * 8, [8, 7, 6, 5, 4, 3, 2, 2]):  # equal scores fall by place
        assert "different numbers" in grading.judge("03_baselines", 2, equal, {}).sentence
    assert grading.judge("03_baselines", 2, [8, 7, 6, 5, 4, 3, 2, 1], {}).right
    assert "smallest whole number" in grading.judge("04_gp_search", 5, 148.6, {}).sentence
    assert grading.judge("04_gp_search", 5, 149.0, {}).right
    assert grading.judge("02_gradients", 2, {"mul(W,G)", "mul(W,mms(G))"}, {}).right
    same = ["mul(sqr(W),X)", "exp(mul(W,sqrt(X)))", "div(mul(W,sqrt(X)),G)", "log(mul(W,sqrt(X)))"]
    assert grading.judge("04_gp_search", 1, same, {}).right
    assert "is not one of the five" in grading.judge("02_gradients", 2, {"W"}, {}).sentence
    assert grading.judge("07_lora", 4, (0.06, 0.56), {}).right  # 1/16 and 9/16, said shorter
    without = grading.judge("03_baselines", 6, "W", {"windows": {"test": torch.ones(1, 2)}})
    assert without.word == "not graded" and "select" in without.sentence


def test_gradients_are_read_from_one_place_in_memory(monkeypatch):
    pieces = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    found = {"l2": pieces.square().sum(0).sqrt(), "l1": pieces.abs().sum(0)}
    monkeypatch.setattr(f"{grading.exercises('02_gradients')[5].__module__}._collected",
                        lambda _, windows, norm: found.get(norm, pieces[windows.start or 0]))

    def said(answer):
        verdict = grading.judge("02_gradients", 5, answer, {})
        return verdict.sentence or verdict.word

    assert said(lambda stream, norm: sum(g.square() for g in stream).sqrt() if norm == "l2" else
                sum(g.abs() for g in stream)) == "right"
    assert "those that were kept are gone" in said(
        lambda stream, norm: torch.stack(list(stream)).norm(p=2 if norm == "l2" else 1, dim=0))
    assert "still needs them" in said(lambda stream, norm: sum(
        g.abs_() ** (2 if norm == "l2" else 1) for g in stream) ** (0.5 if norm == "l2" else 1))


# ---------------------------------------------------------------- copies and grades, of two tiny notebooks

LESSON = [
    ("md", "# 01 · Data"), ("parameters", 'profile: str = "tiny"\nrows: int = 3\n'),
    ("", 'import prunekit as pk\nrun = pk.start_run("01_data", globals())'), ("", "run.finish()"),
    ("md", "## Exercises"),
    ("exercise", "**Exercise 1**"), ("answer", "answer_1 = ..."), ("check", "pk.grade(1, answer_1)"),
    ("solution", "solution_1 = 7, 104, 889"),
    ("exercise", "**Exercise 2**"), ("answer", "answer_2 = ..."), ("check", "pk.grade(2, answer_2)"),
    ("solution", "5"),
    ("exercise", "**Exercise 3**"), ("solution", "'open'"),
    ("md", "Next"),
]  # of the real exercises of 01, and in 03, two: ANSWERS
ANSWERS = {1: "7, 104, 889", 2: "72 ** 0.25"}


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
                     if "".join(cell["source"]).startswith((f"{name} = ...", f"def {name}(")))
        *before, last = [sources] if isinstance(sources, str) else sources
        content["cells"][place]["source"] = last
        empty = {"cell_type": "code", "metadata": {}, "outputs": []}
        content["cells"][place:place] = [empty | {"source": source} for source in before]
    path.write_text(json.dumps(content))


def test_a_copy_is_a_project_of_its_own_without_solutions(school, tmp_path, monkeypatch):
    copied = tmp_path / "ann"
    assert copies.write_copy(copied) == ["01_data", "03_baselines"]
    assert [tags for _, tags, _, _ in cells(copied / "notebooks" / "01_data.ipynb")] == [
        [tag] if tag not in ("", "md") else [] for tag, _ in LESSON if tag != "solution"]
    made = json.loads((copied / "student.json").read_text())
    assert made["prunekit"] == pk.__version__ and made["made by"] == "prunekit student"
    assert (copied / "params" / "tiny" / "common.yaml").read_text() == "rows: 5\n"
    with pytest.raises(pk.UsageError, match="is not an empty folder"):
        copies.write_copy(copied)
    monkeypatch.delenv("PRUNEKIT_HOME")
    monkeypatch.chdir(copied / "notebooks")
    assert project.root() == copied  # although the package lies beside notebooks of its own
    monkeypatch.chdir(tmp_path)
    assert project.root() == ROOT


def test_grading_is_fair_and_cannot_be_taken_down(school, tmp_path, monkeypatch):
    monkeypatch.setattr(classroom, "exercises", lambda topic: dict.fromkeys(ANSWERS))  # not in the kernels
    names = ("empty", "solved", "wrong", "helped", "endless", "exits", "eats", "cheats", "broken")
    folders = {name: tmp_path / name for name in names}
    for copied in folders.values():
        copies.write_copy(copied)
    right_1, right_2 = (f"answer_{number} = {text}" for number, text in ANSWERS.items())
    answer(folders["solved"], "01_data", answer_1=f"x = 1\n{right_1}", answer_2=right_2)
    answer(folders["wrong"], "01_data", answer_1="answer_1 = 7, 104, 896", answer_2="answer_2 = rows +")
    answer(folders["helped"], "01_data", answer_2="answer_2 = mine(72) ** 0.25",
           answer_1=["def mine(x):\n    return x", "answer_1 = mine((7, 104, 889))"])
    answer(folders["endless"], "01_data", answer_2=right_2, answer_1=(
        "while True:\n    try:\n        while True: pass\n    except BaseException:\n        pass"))
    answer(folders["exits"], "01_data", answer_1="import os; os._exit(0)", answer_2="raise SystemExit('bye')")
    answer(folders["eats"], "01_data", answer_1="answer_1 = bytearray(6 << 30)",
           answer_2="open('large', 'wb').write(bytes(80 << 20))")
    answer(folders["cheats"], "01_data", answer_2="rows = 'mine'", answer_1=(
        "def grade(*_):\n    return 'right'\n\npk.grade = grade\nanswer_1 = 'guessed'"))
    (folders["broken"] / "notebooks" / "01_data.ipynb").write_text("{")
    failing = school / "notebooks" / "03_baselines.ipynb"
    failing.write_text(failing.read_text().replace("run.finish()", "1 / 0"))
    coming = classroom.check_copies(list(folders.values()), "tiny", limit=4, progress=False)
    came = [(grade, time.monotonic()) for grade in coming]
    assert came[0][0].number == 1
    lost = {grade.folder: at for grade, at in came if grade.sentence == "It did not end within 4 seconds."}
    late = [grade.folder for grade, at in came if grade.topic == "01_data" and at > min(lost.values())]
    assert set(late) <= {*lost, folders["broken"]}  # one that hangs holds up no other
    grades = [grade for grade, _ in came if grade.topic == "01_data"]
    assert {(grade.word, grade.sentence) for grade, _ in came if grade.topic == "03_baselines"} == {
        ("not graded", "The lesson did not run: ZeroDivisionError: division by zero.")}
    found = {name: [(grade.word, grade.sentence) for grade in grades if grade.folder == folder]
             for name, folder in folders.items()}
    right, open_ = ("right", ""), ("not answered", "")
    assert found["empty"] == [open_, open_]
    assert found["solved"] == found["helped"] == [right, right]
    assert found["wrong"][0][1].startswith("The first token of a window is predicted by nobody")
    assert found["wrong"][1][1].startswith("It stops with SyntaxError: ")
    assert found["endless"] == [("wrong", "It did not end within 4 seconds."), right]
    assert found["exits"] == [("wrong", "It ended the process it ran in."),
                              ("wrong", "It stops with SystemExit: bye.")]
    assert found["eats"][0] == ("wrong", "It stops with MemoryError.")
    assert found["eats"][1][0] == "wrong" and not (tmp_path / "large").exists()
    # The check is the project's, not the copy's.
    assert found["cheats"][0][0] == "wrong" and found["cheats"][1] == open_
    assert [word for word, _ in found["broken"]] == ["not graded"] * 2
    assert "cannot be read as a notebook" in found["broken"][0][1]
    assert not (tmp_path / "solved" / "runs").exists()

    page = classroom.write_class(grades, tmp_path / "class").read_text(encoding="utf-8")
    rows = (tmp_path / "class" / "grades.csv").read_text().splitlines()
    assert rows[0] == "student,notebook,exercise,verdict,sentence" and len(rows) == 1 + len(grades)
    assert "endless,01_data,1,wrong,It did not end within 4 seconds." in rows
    assert "9 copies, 2 exercises each" in page and page.count("✓") == 1 + 5
    assert "It stops with SystemExit: bye." in page


def test_what_an_answer_defines_is_there_after_one_that_hangs(tmp_path):
    """One that hangs itself the second time is given up, and later ones are judged all the same."""
    define = "def mine(x):\n    return x\nanswer_1 = mine((7, 104, 889))"
    once = "import os\nif os.path.exists(mark):\n    while True: pass\nopen(mark, 'w').close()\n"
    for first, last in ((define, "right"), (once + define, "wrong")):
        asked = [[1, first], [2, "while True: pass"], [3, "answer_3 = mine({'a', 'b', 'd'})"]]
        found = sitting._verdicts({"mark": str(tmp_path / "mark")}, "01_data", asked, 1)
        assert [verdict.word for verdict in found] == ["right", "wrong", last]


def test_an_answer_is_judged_by_the_lesson_as_it_was():
    """And not by what the answer, or one before it, made of the lesson's data in place."""
    count = torch.tensor([5.0, 3, 1, 0, 7])
    p = count[count > 0] / count.sum()
    lesson = {"frequency": {"test": count}, "unigram": {"test": 9.0}, "torch": torch}
    in_place = ("f = frequency['test']\nf += 1\np = f / f.sum()\n"
                "answer_4 = torch.exp(-(p * p.log()).sum()).item()")
    right = f"answer_4 = {torch.exp(-(p * p.log()).sum()).item()}"
    found = sitting._verdicts(lesson, "01_data", [[4, in_place], [4, right]], 60)
    assert [verdict.word for verdict in found] == ["wrong", "right"]
    losses = {"dense": Perplexity(np.ones(2)), "nll": pd.DataFrame({"wanda": [1.0]}), "all": [np.ones(2)],
              "network": torch.nn.Linear(1, 1)}
    copied = sitting._copied(losses)
    losses["dense"].nll[:], losses["nll"].iloc[:], losses["all"][0][:] = 0, 0, 0
    assert copied["dense"].nll.all() and copied["nll"].all(axis=None) and copied["all"][0].all()
    assert copied["network"] is losses["network"]


def test_the_command_says_one_line_for_each_exercise(school, tmp_path, capsys):
    assert main(["student", str(tmp_path / "bob")]) == 0
    assert "2 notebooks without solutions" in capsys.readouterr().out
    assert main(["student", str(tmp_path / "bob")]) == 2
    assert main(["check", str(tmp_path)]) == 2
    assert "holds no notebooks/ folder" in capsys.readouterr().err
    answer(tmp_path / "bob", "01_data", answer_2="answer_2 = 72 ** 0.25")
    told = ["check", str(tmp_path / "bob"), "--profile", "tiny", "--only", "01_data"]
    assert main([*told, "--output", str(tmp_path / "class")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["01_data            1  not answered", "01_data            2  right"]
    assert lines[-2].endswith("not answered, 1 right; 6 exercises can be checked")
    assert (tmp_path / "class" / "grades.html").is_file()


# ---------------------------------------------------------------- the project's own first notebook

def test_solutions_pasted_back_are_right_and_an_empty_copy_is_not_answered(tmp_path, monkeypatch):
    """Notebook 01; the other notebooks assert their solutions themselves, see test_smoke.py."""
    monkeypatch.setenv("PRUNEKIT_HOME", str(tmp_path / "home"))
    for folder in ("notebooks", "params"):
        shutil.copytree(ROOT / folder, tmp_path / "home" / folder,
                        ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    empty, solved = folders = [tmp_path / name for name in ("empty", "solved")]
    for copied in folders:
        copies.write_copy(copied)
    for _, tags, source, _ in cells(ROOT / "notebooks" / "01_data.ipynb"):
        if "solution" in tags:
            number = re.search(r"solution_(\d)", source)[1]
            given = f"{source}\nanswer_{number} = solution_{number}"
            answer(solved, "01_data", **{f"answer_{number}": given})
    grades = list(classroom.check_copies(folders, "smoke", ["01_data"], progress=False))
    words = {folder: [one.word for one in grades if one.folder == folder] for folder in folders}
    assert words == {empty: ["not answered"] * 6, solved: ["right"] * 6}
