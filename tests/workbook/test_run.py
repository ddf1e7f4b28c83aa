"""A run's artifacts come back as they were, its manifest is written last, and it knows when it is stale."""
from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
import torch

from prunekit.errors import UsageError
from prunekit.evaluate.sentences import claim
from prunekit.files import file_hash
from prunekit.workbook import manifest, project
from prunekit.workbook import run as runs
from prunekit.workbook.protocol import PROVENANCE, with_protocol
from tests.tiny_project import DATA, write_notebook

mpl.use("agg")
FIRST = {"profile": "tiny", "rows": 4, "seqlen": 8, "seed": 0}
SECOND = {"profile": "tiny", "seqlen": 8, "seed": 0}


@pytest.fixture
def tiny(home):
    """01_data and 03_baselines without models: only runs are tested here."""
    write_notebook(home / "notebooks" / "03_baselines.ipynb", [
        ("parameters", 'profile: str = "tiny"\nseqlen: int = 8\nseed: int = 0\n'), ("", "1 + 1")])
    return home


def finished(topic="01_data", variables=FIRST, **artifacts):
    run = runs.start_run(topic, variables)
    for name, value in artifacts.items():
        run.save(name, value)
    run.finish()
    return run


def state(topic="01_data", parameters=FIRST):
    return manifest.state("tiny", topic, parameters)


def test_a_number_names_a_notebook(tiny):
    assert project.named(["03", "01_data"]) == ["03_baselines", "01_data"]
    assert project.named([]) == ["01_data", "03_baselines"]
    for word in ("0", "02", ""):
        with pytest.raises(UsageError, match=f"There is no notebook '{word}'"):
            project.named([word])


def test_everything_saved_comes_back(tiny):
    from prunekit.metric.tree import Tree

    tree = Tree.parse("mul(W, sqrt(X))")
    saved = {"tensor": torch.arange(4.0), "tensors": {"a": torch.ones(2, 2).T, "b": torch.zeros(1)},
             "frame": pd.DataFrame({"x": [0.1, 1 / 3], "y": ["a", "b"]}), "records": [{"a": 1}, {"a": 2}],
             "plain": {"list": [1, 2], "number": torch.tensor(2)}, "tree": tree}
    finished(**saved)
    run = runs.start_run("03_baselines", SECOND)
    assert torch.equal(run.load("01_data", "tensor"), saved["tensor"])
    assert torch.equal(run.load("01_data", "tensors")["a"], torch.ones(2, 2))
    pd.testing.assert_frame_equal(run.load("01_data", "frame"), saved["frame"], check_exact=True)
    assert run.load("01_data", "records") == saved["records"]
    assert run.load("01_data", "plain") == {"list": [1, 2], "number": 2}
    assert run.load("01_data", "tree") == tree
    assert set(run.loaded) == {f"01_data/{name}" for name in saved}


def test_what_cannot_be_loaded_is_said(tiny):
    finished(plain={"a": 1})
    run = runs.start_run("03_baselines", SECOND)
    missing = r"01_data has saved nothing called 'plan' \(did you mean 'plain'\?\)"
    with pytest.raises(UsageError, match=missing):
        run.load("01_data", "plan")
    (tiny / "runs/tiny/01_data/plain.json").write_text('{"a": 2}')
    with pytest.raises(UsageError, match=r"runs/tiny/01_data/plain.json is not what 01_data wrote"):
        run.load("01_data", "plain")


def test_unknown_kinds_and_names_are_refused(tiny):
    run = runs.start_run("01_data", FIRST)
    with pytest.raises(UsageError, match="cannot save a set"):
        run.save("thing", {1, 2})
    with pytest.raises(UsageError, match="no name for an artifact"):
        run.save("../thing", {"a": 1})


def test_the_manifest_says_how_the_run_was_made(tiny):
    run = finished(plain={"a": 1})
    made = json.loads((run.folder / "manifest.json").read_text())
    assert made["parameters"] == FIRST and made["seed"] == 0
    assert {"python", "torch", "transformers", "numpy", "prunekit"} <= made["versions"].keys()
    assert made["artifacts"]["plain"]["sha256"] == file_hash(run.folder / "plain.json")
    assert made["artifacts"]["plain"]["made by"] == f"01_data, run {run.id}"
    assert made["machine"].startswith(platform.system()) and made["log"] is None
    assert made["started"] <= made["finished"]
    assert "prunekit.workbook.run" in made["modules"] and "prunekit.workbook.params" not in made["modules"]


def test_seeds_are_set(tiny):
    numbers = []
    for _ in range(2):
        runs.start_run("01_data", FIRST)
        numbers.append(torch.rand(1).item())
    assert numbers[0] == numbers[1]


def test_figures_are_the_same_files_every_time(tiny):
    import matplotlib.pyplot as plt

    contents = []
    for _ in range(2):
        run = runs.start_run("01_data", FIRST)
        fig, ax = plt.subplots()
        ax.plot([1, 2], label="a")
        ax.legend()
        shown = run.figure(fig, "curve", "A curve <b>.")
        contents.append([(run.folder / "figures" / f"curve.{kind}").read_bytes() for kind in ("svg", "pdf")])
    assert contents[0] == contents[1]
    assert b"Date" not in contents[0][1] and b"<dc:date>" not in contents[0][0]
    assert 'alt="A curve &lt;b&gt;."' in shown.html
    assert not plt.get_fignums()


@pytest.mark.parametrize("drawn", ["in our style", "by hand"])
def test_the_fonts_of_pdf_figures_are_truetype(tiny, drawn):
    """Venues refuse Type 3. Streams are looked into, too: fonts may be listed in a compressed one."""
    import matplotlib.pyplot as plt

    from prunekit import figures

    curve = pd.DataFrame({"x": [1.0, 2.0], "y": [1.0, 3.0], "by": ["a", "b"]})
    if drawn == "by hand":
        figure, axes = plt.subplots()
        axes.set_title("$\\Vert x \\Vert_2 = \\sqrt{n}$ − “q”")
    else:
        figure = figures.lines(curve, "x", "y", "by", "$|W|$ × text", "y")
    run = runs.start_run("01_data", FIRST)
    run.figure(figure, "curve", "A curve.")
    content = (run.folder / "figures/curve.pdf").read_bytes()
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", content, re.DOTALL)
    for stream in streams:
        with contextlib.suppress(zlib.error):
            content += zlib.decompress(stream)
    assert b"/TrueType" in content or b"/CIDFontType2" in content
    assert b"/Type3" not in content


def test_a_result_table_carries_its_provenance(tiny):
    run = runs.start_run("01_data", FIRST)
    frame = pd.DataFrame({"method": ["a_1", "b"], "metric": "W", "sparsity": 0.5, "pattern": "2:4", "n": 3,
                          "ppl": [7.25, 1e4], "p_holm": [1e-9, 0.25], "difference": [-1e-9, 1.5]})
    with pytest.raises(UsageError, match="The result table 'ppl' lacks the columns model, corpus"):
        run.table(frame, "ppl", "Perplexity.", result=True)
    shown = run.table(frame.assign(model="m", corpus="c"), "ppl", "Perplexity.", result=True,
                      columns=["method", "ppl", "p_holm", "difference"])
    saved = pd.read_csv(run.folder / "tables/ppl.csv")
    assert set(PROVENANCE) <= set(saved) and list(saved["seqlen"]) == [8, 8]
    assert "sparsity" not in shown.html and '<td class="num">10,000.0</td>' in shown.html
    latex = (run.folder / "tables/ppl.tex").read_text()
    assert "\\toprule" in latex and "a\\_1 & 7.2 & under 0.001 & 0.0 \\\\" in latex


def test_a_result_carries_the_protocol_of_what_it_read(home):
    """Its own parameters and those of the run that drew its windows, row by row as far as it applies."""
    own = home / "wikitext2"
    own.mkdir()
    (own / "test.txt").write_text("Not that text.")
    given = {"corpus": "embedded", "gradient_corpus": "", "test_corpus": str(own), "windows": "",
             "roles": "disjoint", "bos": "auto", "nsamples": 128, "test_windows": 40, "seqlen": 8}
    lines = "".join(f"{key}: {type(value).__name__} = {value!r}\n" for key, value in given.items())
    write_notebook(home / "notebooks" / "01_data.ipynb", [("parameters", 'profile: str = "tiny"\n' + lines)])
    variables = {"profile": "tiny", "seed": 0, "seqlen": 8, "corpus": "embedded", "model": "embedded/llama",
                 "bos": "auto"}
    write_notebook(home / "notebooks" / "03_baselines.ipynb", [("parameters", "".join(
        f"{key}: {type(value).__name__} = {value!r}\n" for key, value in variables.items()))])
    data = runs.start_run("01_data", {"profile": "tiny"} | given)
    data.save("plain", {"a": 1}, begins="every window")
    data.finish()
    assert manifest.read("tiny", "01_data")["artifacts"]["plain"]["said"] == {"begins": "every window"}
    with pytest.raises(UsageError, match=r"01_data, which is stale \(bos was 'auto', is 'always'\)"):
        runs.start_run("03_baselines", variables | {"bos": "always"})
    run = runs.start_run("03_baselines", variables)
    methods = ["dense", "magnitude", "magnitude", "wanda", "pruner-zero", "mine", "mul(W, G)"]
    rows = pd.DataFrame({"method": methods, "update": ["", "", "obs", "none", "", "", ""], "n": 3,
                         "metric": "perplexity", "sparsity": 0.5, "pattern": "2:4"})
    before = with_protocol(rows, "ppl", run._known)
    assert set(before["split"]) == set(before["bos"]) == {"unknown"}
    assert set(before["calibration_windows"]) == {"-", "unknown"}
    run.load("01_data", "plain")
    run.table(rows, "ppl", "Perplexity.", result=True)
    table = pd.read_csv(run.folder / "tables/ppl.csv", dtype=str)
    one = {"corpus_or_tasks": "wikitext2 (own)", "context": "8", "split": "test, first 40 windows",
           "bos": "every window",
           "tokenizer": "model", "few_shot": "-", "documents": "-", "harness": "-"}
    assert (table[list(one)] == pd.Series(one)).all(axis=None)
    assert table["calibration"].tolist() == ["-", "-", *["embedded"] * 5]
    assert table["calibration_windows"].tolist() == ["-", "-", *["128"] * 5]
    assert table["roles"].tolist() == ["-", "-", *["disjoint"] * 5]
    ready = with_protocol(rows, "ppl", run._known | {"windows": str(own), "begins": "file"})
    assert ready["roles"].tolist() == ["-", "-", *["file"] * 5] and set(ready["bos"]) == {"file"}
    assert table["gradient_corpus"].tolist() == ["-", "-", "-", "-", "embedded", "unknown", "embedded"]
    assert set(table["leaks"]) == {"no"} and set(table["dtype"]) == {"unknown"}  # 01 loads no model
    elsewhere = {"test_corpus": "", "gradient_corpus": "c4"}
    alike = with_protocol(rows, "ppl", run._known | elsewhere)  # measured on the text of the calibration
    assert alike["leaks"].tolist() == ["no", "no", "yes", "yes", "no", "yes", "no"]  # where X or H is read
    named = rows.assign(tree=["W", "W", "mul(W, G)", "mul(W, X)", "W", None, "w²/U_ii²"], method=[
        "dense", "magnitude (rows)", "winner", "winner", "winner", "winner", "sparsegpt"], update=[
        "", "", "", "", "obs", "", "obs-iter"])
    for texts, leaks in ((elsewhere, "nnnyyyy"), ({"test_corpus": "c4", "gradient_corpus": "c4"}, "nnynnnn")):
        found = with_protocol(named, "ppl", run._known | texts)
        assert [word[0] for word in found["leaks"]] == list(leaks)
        assert found["calibration"].tolist() == ["-", "-", *["embedded"] * 5]
    alone = rows.assign(method=["dense", "magnitude", "sparsegpt", "admm", "mine (X)", "gradient", "gblm"])
    found = with_protocol(alone.drop(columns="update"), "ppl", run._known | elsewhere)
    assert [word[0] for word in found["leaks"]] == list("nnyyyny")
    read = with_protocol(rows, "ppl", run._known | {"corpus": "c4", "test_corpus": "embedded"})
    assert read["gradient_corpus"].tolist()[4] == "c4" and set(read["leaks"]) == {"no"}
    read = with_protocol(rows, "ppl", run._known | {
        "corpus": "c4", "gradient_corpus": "ptb", "test_corpus": "ptb", "dtype": "bfloat16"})
    assert read["leaks"].tolist() == ["no"] * 4 + ["yes", "no", "yes"] and set(read["dtype"]) == {"bfloat16"}
    part = with_protocol(rows.assign(split="all"), "ppl", run._known)
    assert set(part["split"]) == {"all"}   # what the notebook says, stays
    texts = rows.assign(text=["wikitext2", "c4", "mine", None, "c4", "c4", "c4"])
    told = with_protocol(texts, "ppl", run._known | {"test_corpora": ["c4", "/a/mine.txt"]})
    first = "wikitext2 (own)"
    assert told["corpus_or_tasks"].tolist()[:4] == [first, "c4", "mine.txt (own)", first]
    assert [split.split(",")[0] for split in told["split"][:3]] == ["test", "validation", "test"]
    several = {"test": 1, "select": 2, "test ptb": 3}
    assert run.texts(several) == {"wikitext2": 1, "ptb": 3} and run.texts({"test": 1}) == {"": 1}
    asked = rows.assign(task="rte", limit=[0] * 6 + [2000], num_fewshot=5, harness="lm-eval 1")
    answered = with_protocol(asked, "tasks", run._known)
    assert answered["bos"].tolist() == ["-", "-", *["every window"] * 5]
    last = answered.iloc[-1]
    said = last[["corpus_or_tasks", "context", "few_shot", "documents"]].tolist()
    assert said == ["rte", "-", 5, "2000 per task"]


def test_a_takeaway_may_speak_of_a_known_problem(tiny):
    run = runs.start_run("01_data", FIRST)
    run.takeaway("Plain.")
    assert "<strong>3</strong>" in run.takeaway("It is **3**.", problem=3).html
    run.finish()
    made = manifest.read("tiny", "01_data")
    assert made["takeaways"] == ["Plain.", "It is **3**."]
    assert made["answers"] == [{"problem": 3, "sentence": "It is **3**."}]


def test_upstream_must_be_there_and_agree(tiny):
    missing = (r"03_baselines reads from 01_data, which is missing \(never run\): run that notebook first, "
               r"or `prunekit run tiny 01_data`")
    with pytest.raises(UsageError, match=missing):
        runs.start_run("03_baselines", SECOND)
    finished()
    with pytest.raises(UsageError, match=r"01_data, which is stale \(seqlen was 8, is 16\)"):
        runs.start_run("03_baselines", {**SECOND, "seqlen": 16})


def test_a_new_run_disowns_the_one_before(tiny):
    old = runs.start_run("01_data", FIRST)
    runs.start_run("01_data", FIRST)
    with pytest.raises(UsageError, match="01_data was started anew elsewhere"):
        old.save("plain", {"a": 1})
    assert state().word == "running"


def test_parameters_sources_and_files_make_stale(tiny):
    run = finished(plain={"a": 1})
    assert state().fresh
    assert state(parameters={**FIRST, "rows": 5}).reason == "rows was 4, is 5"
    (run.folder / "plain.json").unlink()
    assert state().reason == "plain.json is missing or was changed"
    finished(plain={"a": 1})
    path = tiny / "notebooks" / "01_data.ipynb"
    text = path.read_text()
    path.write_text(text.replace("rows of the table", "rows"))
    assert state().fresh  # a comment among the parameters is not code
    cell = {"cell_type": "code", "id": "x", "metadata": {}, "source": "1", "outputs": [],
            "execution_count": None}
    path.write_text(text.replace('"cells": [', f'"cells": [{json.dumps(cell)}, '))
    assert state().reason == "notebooks/01_data.ipynb changed"


def test_an_answer_leaves_the_lesson_fresh(tiny):
    """Exercises stand behind the end of a run, which they cannot change."""
    def write(lesson, answer):
        cells = [("", lesson), ("exercise", "# How many?"), ("answer", answer), ("", "more = 1")]
        write_notebook(tiny / "notebooks" / "01_data.ipynb", [("parameters", DATA), *cells])

    write("a = 1", "answer_1 = ...")
    finished(plain={"a": 1})
    write("a = 1", "answer_1 = 42")
    assert state().fresh
    write("a = 2", "answer_1 = 42")
    assert state().reason == "notebooks/01_data.ipynb changed"


def test_what_changes_while_it_is_in_use_makes_stale(home):
    corpus, notebook = home / "text.txt", home / "notebooks" / "01_data.ipynb"
    variables = {"profile": "tiny", "corpus": str(corpus)}

    def began():
        write_notebook(notebook, [("parameters", 'profile: str = "tiny"\ncorpus: str = ""\n'), ("", "a = 1")])
        corpus.write_text("the text")
        return runs.start_run("01_data", variables)

    began().finish()
    assert state(parameters=variables).fresh
    run = began()
    corpus.write_text("another text")
    run.finish()
    assert state(parameters=variables).reason == f"the corpus {corpus} changed"
    for history, reason in (([], "notebooks/01_data.ipynb changed"), (["", "a = 1", "a = 2\n"], "")):
        run = began()
        notebook.write_text(notebook.read_text().replace("a = 1", "a = 2"))
        run.variables = variables | {"In": history}  # of IPython: what was executed, saved or not
        run.finish()
        assert state(parameters=variables).reason == reason


def test_a_model_that_is_downloaded_meanwhile_is_known_by_what_came(home, monkeypatch):
    from prunekit import models

    cells = [("parameters", 'profile: str = "tiny"\nmodel: str = ""\n')]
    write_notebook(home / "notebooks" / "01_data.ipynb", cells)
    there = {}
    monkeypatch.setattr(models, "fingerprint", lambda name: there.get(name, name))
    run = runs.start_run("01_data", {"profile": "tiny", "model": "a/b"})
    there["a/b"] = "a/b@1234"
    run.finish()
    assert manifest.read("tiny", "01_data")["inputs"] == {"model": "a/b@1234"}


def test_a_corpus_that_changes_within_a_process_is_another(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("one")
    before = manifest.inputs({"corpus": str(corpus)})
    corpus.write_text("another")
    assert manifest.inputs({"corpus": str(corpus)}) != before


def test_a_source_file_makes_stale_just_those_that_imported_it(tiny, tmp_path, monkeypatch):
    package = tmp_path / "prunekit"
    shutil.copytree(manifest.PACKAGE, package, ignore=shutil.ignore_patterns("embedded", "__pycache__"))
    monkeypatch.setattr(manifest, "PACKAGE", package)
    modules = ["prunekit.errors"]
    monkeypatch.setattr(manifest, "imported_modules", lambda: modules)
    finished(plain={"a": 1})
    modules.append("prunekit.pruning.masks")
    run = runs.start_run("03_baselines", SECOND)
    run.load("01_data", "plain")
    run.finish()
    assert state().fresh and state("03_baselines", SECOND).fresh
    with open(package / "pruning" / "masks.py", "a") as file:
        file.write("\n")
    assert state().fresh
    assert state("03_baselines", SECOND).reason == "prunekit.pruning.masks changed"
    with open(package / "errors.py", "a") as file:
        file.write("\n")
    assert state().reason == "prunekit.errors changed"


def test_masks_concern_just_the_notebooks_that_prune(monkeypatch):
    """What real notebooks import, in a process of its own: 01 does not read what makes masks, 03 does."""
    monkeypatch.delenv("PRUNEKIT_HOME", raising=False)
    script = """
import ast, json, sys
import prunekit as pk
from prunekit.workbook import manifest, project
for topic in sys.argv[1:]:
    cells = json.loads(project.notebook(topic).read_text())["cells"]
    code = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for node in ast.walk(ast.parse(chr(10).join(code))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pk":
            getattr(pk, node.attr)
        elif isinstance(node, (ast.Import, ast.ImportFrom)) and "prunekit" in ast.unparse(node):
            exec(ast.unparse(node))
    print(*manifest.imported_modules())
"""
    command = [sys.executable, "-c", script, "01_data", "03_baselines"]
    lines = subprocess.run(command, text=True, check=True, stdout=subprocess.PIPE).stdout.splitlines()
    data, baselines = (set(line.split()) for line in lines)
    assert "prunekit.data" in data and "prunekit.pruning.masks" in baselines - data


def test_data_that_a_module_reads_counts_as_its_source(tmp_path, monkeypatch):
    package = tmp_path / "prunekit"
    (package / "embedded/lm_eval").mkdir(parents=True)
    (package / "evaluate").mkdir()
    yaml, words = "embedded/lm_eval/a.yaml", "embedded/words.yaml"
    for file in ("evaluate/harness.py", "evaluate/other.py", "embedded/entities.py", yaml, words):
        (package / file).write_text("1")
    monkeypatch.setattr(manifest, "PACKAGE", package)
    names = ["prunekit.evaluate.harness", "prunekit.evaluate.other", "prunekit.embedded.entities"]
    for data, same in ((yaml, [False, True, True]), (words, [True, True, False])):
        before = manifest.module_hashes(names)
        (package / data).write_text("2")
        after = manifest.module_hashes(names)
        assert [before[name] == after[name] for name in names] == same


def test_every_parameter_that_names_a_model_a_text_or_data_has_a_fingerprint(tmp_path):
    parameters = {"other_models": ["", "embedded/opt"], "test_corpora": [""]}
    texts = ("corpus", "gradient_corpus", "test_corpus", "other_corpus")
    for name in (*texts, "windows", "folders", "model", "m"):
        file = tmp_path / name / ("config.json" if name.startswith("m") else "a.txt")
        file.parent.mkdir()
        file.write_text("one")
        parameters[name] = str(file if name == "windows" else file.parent)
    parameters["other_models"].append(parameters.pop("m"))
    parameters["folders"] = f"boolq={parameters['folders']}"
    parameters["test_corpora"].append(parameters["other_corpus"])
    before = manifest.inputs(parameters)
    assert before.keys() == {"model", *texts, "windows", "folders boolq", *(
        f"{key} {text}" for key in ("other_models", "test_corpora") for text in parameters[key] if text)}
    for file in [*tmp_path.glob("*/a.txt"), *tmp_path.glob("*/config.json")]:
        file.write_text("two")
    now = manifest.inputs(parameters)
    assert {key for key in before if now[key] == before[key]} == {"other_models embedded/opt"}
    for file in tmp_path.glob("m*/config.json"):
        file.unlink()  # which `prunekit status` can say, as of any other change
    gone = manifest.inputs(parameters)
    assert [key for key, print_ in gone.items() if not print_] == ["model", f"other_models {tmp_path / 'm'}"]


def test_a_digit_that_changes_makes_stale_but_in_large_files_as_long_as_before(tiny, monkeypatch):
    run = runs.start_run("01_data", FIRST)
    run.table(pd.DataFrame({"v": [12.34]}), "t", "T.")
    run.finish()
    made = manifest.read("tiny", "01_data")["artifacts"]["tables/t"]
    assert made["hashes"]["tables/t.csv"] == made["sha256"] and len(made["hashes"]) == len(made["files"]) == 2
    for name in made["files"]:
        file = run.folder / name
        text = file.read_text()
        file.write_text(text.replace("12.34", "11.34"))
        assert state().reason == f"{name} is missing or was changed"
        with monkeypatch.context() as patch:
            patch.setattr(manifest, "_LARGE", 1)
            assert state().fresh
        file.write_text(text)
    assert state().fresh


def test_new_content_upstream_makes_its_readers_stale(tiny):
    finished(plain={"a": 1}, other={"b": 1})
    run = runs.start_run("03_baselines", SECOND)
    run.load("01_data", "plain")
    run.finish()
    finished(plain={"a": 1}, other={"b": 2})
    assert state("03_baselines", SECOND).fresh  # it read only `plain`, which is the same
    finished(plain={"a": 2}, other={"b": 2})
    assert state("03_baselines", SECOND).reason == "01_data has made 'plain' anew"
    (tiny / "runs/tiny/01_data/manifest.json").unlink()
    (tiny / "runs/tiny/01_data.attempt").mkdir()
    (tiny / "runs/tiny/01_data.attempt/reason.txt").write_text("no memory\n")
    assert state("03_baselines", SECOND).reason == "01_data is failed (no memory)"


@pytest.mark.parametrize("before", [False, True])
def test_a_killed_run_does_not_look_finished(tiny, before):
    if before:
        finished(plain={"a": 1})
    code = ("import os, sys; from prunekit.workbook import run as runs; "
            f"run = runs.start_run('01_data', {FIRST!r}); run.save('plain', {{'a': 2}}); "
            "print('saved', flush=True); sys.stdin.read()")
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True)
    assert process.stdout.readline() == "saved\n"
    changed = {**FIRST, "rows": 5}
    assert state(parameters=changed).word == "running"
    running = f"in process {process.pid}"
    assert state() == (manifest.State("fresh", f"last attempt running: {running}") if before else
                       manifest.State("running", running))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert state(parameters=changed).word == "interrupted"
    if before:
        assert state() == manifest.State("fresh", "last attempt interrupted: started, but not finished")
        assert runs.start_run("03_baselines", SECOND).load("01_data", "plain") == {"a": 1}
    else:
        assert not Path(tiny, "runs/tiny/01_data").exists()
        with pytest.raises(UsageError, match="01_data, which is interrupted"):
            runs.start_run("03_baselines", SECOND)
    finished(plain={"a": 3})
    assert state() == manifest.State("fresh")


def test_a_takeaway_that_compares_rests_on_a_saved_table(tiny):
    run = runs.start_run("01_data", FIRST)
    rows = pd.DataFrame({"ratio": [0.9], "low": [0.8], "high": [0.95]})
    ours = claim("Ours {verdict} theirs.", rows, "pairs")
    with pytest.raises(UsageError, match="says 'lower' without a test: build it with pk.claim"):
        run.takeaway("Ours is lower.")
    with pytest.raises(UsageError, match="rests on a table pairs, which this run has not saved"):
        run.takeaway(ours)
    shown = run.table(rows, "pairs", "Pairs.")
    assert 'id="table-pairs"' in shown.html and 'href="#table-pairs"' in run.takeaway(ours).html
    assert run.takeaway(None) is None
    run.finish()
    made = manifest.read("tiny", "01_data")
    assert made["takeaways"] == ["Ours is lower than that of theirs."] and made["claims"] == [ours.as_dict()]
