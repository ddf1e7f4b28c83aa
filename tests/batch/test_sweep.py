"""A sweep refuses what cannot be, runs each thing once, survives a kill, and joins its tables rightly."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from prunekit.batch import notebook, schedule, sweep
from prunekit.batch.notebook import Record
from prunekit.cli import main
from prunekit.cli.workbook import _forecast
from prunekit.workbook import project
from tests.tiny_project import write_notebook

SWEEP = "profile: tiny\ntopics: [03_baselines]\ngrid:\n  {}\n"
SETUP = "import pandas as pd, prunekit as pk\nrun = pk.start_run({!r}, globals())"
UPSTREAM = """run.save("content", {"value": 100 * rows + seed})
run.finish()"""
# A cell's number can be worked out by hand: 100 rows + seed + 1000 scale. sleepy: there is time to kill it.
READER = """import time
value = run.load("01_data", "content")["value"]
assert seed != 1, "the seed is 1"
time.sleep(10 if sleepy else 0)
frame = pd.DataFrame({"model": "m", "method": ["a", "b"], "metric": "sum", "sparsity": 0.5, "pattern": "2:4",
                      "corpus": "c", "n": 1, "value": [value + 1000 * scale, -value], "seconds": time.time()})
run.table(frame, "sums", "Sums.", result=True)
run.table(frame, "aside", "No result.")
run.finish()"""


@pytest.fixture
def grid(home):
    """The tiny project with notebooks that run, and a function that writes a sweep."""
    write_notebook(home / "notebooks/01_data.ipynb", [
        ("parameters", 'profile: str = "tiny"\nrows: int = 4\nseqlen: int = 8\nseed: int = 0\n'),
        ("", SETUP.format("01_data")), ("", UPSTREAM)])
    write_notebook(home / "notebooks/03_baselines.ipynb", [
        ("parameters",
         'profile: str = "tiny"\nscale: float = 1.0\nsleepy: bool = False\nseqlen: int = 8\nseed: int = 0\n'),
        ("", SETUP.format("03_baselines")), ("", READER)])

    def write(body, fixed=""):
        file = home / "params/sweeps/s.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(SWEEP.format(body) + fixed)
        return file
    return write


@pytest.mark.parametrize(("body", "sentence"), [
    ("sed: [1]", "no notebook of this sweep has a parameter 'sed' (did you mean 'seed'?)"),
    ("rank: [8]", "no notebook of this sweep has a parameter 'rank'"),
    ("pattern: [2:4]", 'pattern = 124 must be text (YAML reads an unquoted 2:4 as 124: quote it: "2:4")'),
    ("scale: [1e-4]", "scale = '1e-4' must be a number (YAML reads 1e-4 as text: write 1.0e-4)"),
    ("methods: [wanda]", "methods = 'wanda' must be a list, each entry text (write it as a list: [wanda])"),
    ("methods: [[wnda]]", "methods[0] = 'wnda' is no method"),
    ("sparsity: [0.5, 1.5]", "sparsity = 1.5 must be at least 0 and below 1 (share of zeros)"),
    ("seed: 3", "grid.seed = 3 must be a list of values (write it as [3])"),
    ("seed: []", "the grid's seed = [] must name one or more different values"),
    ("seed: [1, 1]", "the grid's seed = [1, 1] must name one or more different values"),
    ("profile: [a]", "'profile' is set by the sweep itself, leave it out"),
    ("seed: [1]\nfixed: {seed: 2}", "'seed' is both fixed and in the grid, give it once"),
    ("seed: [1]\ngird: {}", "a sweep has no key 'gird' (did you mean 'grid'?)"),
    ("seed: [1]\ngrid:\n  seed: [2]", "not readable as YAML: the key 'grid' is given twice"),
])
def test_what_cannot_be_is_said_before_anything_runs(home, capsys, body, sentence):
    file = home / "params/sweeps/s.yaml"
    file.parent.mkdir()
    file.write_text(SWEEP.format(body))
    assert main(["sweep", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("prunekit: params/sweeps/s.yaml: ") and sentence in error
    assert error.count("\n") == 1
    assert not (home / "runs").exists()


def test_what_agrees_is_run_once(grid, capsys):
    file = grid("scale: [1.0, 2]\n  seed: [0, 1, 2]\n  rows: [4, 5]")
    planned = sweep.read(file)
    topics = [unit.topic for unit in planned.units]
    assert len(planned.cells) == 12 and topics == ["01_data"] * 6 + ["03_baselines"] * 12
    assert len({unit.profile for unit in planned.units}) == 18
    first, other = planned.cells[0].units[0], planned.cells[6].units[0]
    assert first.upstream == other.upstream and first.parameters["scale"] == 1.0
    assert other.parameters["scale"] == 2.0
    longer = sweep.read(grid("rows: [4]\n  seed: [2, 7]\n  scale: [2.0]"))
    # In any order.
    assert len({unit.profile for unit in longer.units} & {unit.profile for unit in planned.units}) == 2


def test_a_dry_run_counts_and_estimates(grid, capsys):
    file = grid("scale: [1.0, 2.0]\n  seed: [0, 1]")
    assert main(["sweep", str(file), "--dry-run"]) == 0
    assert "the time of 01_data, 03_baselines is not known" in capsys.readouterr().out
    for topic, seconds in (("01_data", 200), ("03_baselines", 300)):
        folder = project.run_folder("tiny", topic)
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(f'{{"seconds": {seconds}}}')
    assert main(["sweep", str(file), "--dry-run", "--workers", "2"]) == 0
    out = capsys.readouterr().out  # two runs of 01 and four of 03 are 1,600 s, on two workers 800
    assert "4 cells, 6 runs: 6 missing" in out and "about 13 min on 2 workers" in out


def test_a_run_says_what_it_will_take(home):
    """By the last run of a notebook, else by what the profile expects."""
    (home / "params" / "tiny" / "expected.yaml").write_text("01_data: [90, 800]\n")
    assert schedule.ahead("tiny") == {"01_data": [90, 800], "03_baselines": None}
    folder = project.run_folder("tiny", "03_baselines")
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"seconds": 6000, "memory_mb": 2100} | {
        "parameters": {}, "artifacts": {}, "modules": {}, "loaded": {}, "inputs": {}, "notebook": ""}))
    told = _forecast(schedule.ahead("tiny"))
    assert told == ("to run: 01_data 90 s, 03_baselines 100 min; about 102 min one after "
                    "another, at most 2.1 GB of memory")
    assert schedule.ahead("tiny", ["01_data"]).keys() == {"01_data"}


def state(unit):
    return schedule.states([*unit.upstream, unit])[unit]


def test_killed_resumed_and_retried(grid, monkeypatch):
    """Two runs of 01, two of 03, one of which fails; killed while these run."""
    file = grid("seed: [0, 1]", "fixed: {sleepy: true}\n")
    planned = sweep.read(file)
    log = file.with_suffix(".log")
    with open(log, "w") as out:
        command = [sys.executable, "-m", "prunekit", "sweep", str(file), "--workers", "2"]
        process = subprocess.Popen(command, stdout=out, stderr=out,
                                   env={**os.environ, "PYTHONPATH": str(Path(sweep.__file__).parents[2])})
    above, readers = planned.units[:2], planned.units[2:]
    while not (all(state(unit).fresh for unit in above)
               and any(state(unit).word == "running" for unit in readers)):
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {unit: (unit.folder / "manifest.json").read_text() for unit in planned.units
                if state(unit).fresh}
    assert [unit.topic for unit in finished] == ["01_data", "01_data"]
    records = dict(sweep.bring_up_to_date(planned, workers=2))
    assert [records[unit].outcome for unit in planned.units] == ["fresh", "fresh", "done", "failed"]
    assert all((unit.folder / "manifest.json").read_text() == made for unit, made in finished.items())
    cells = sweep.collect(planned)["cells"]
    assert list(cells["outcome"]) == ["done", "failed"]
    assert cells["reason"].iloc[-1] == "AssertionError: the seed is 1"
    results = pd.read_csv(planned.folder / "results.csv")
    assert "seconds" not in results and list(results["table"].unique()) == ["sums"]
    assert results[["cell", "seed", "method", "value"]].to_numpy().tolist() == [
        [1, 0, "a", 1400.0], [1, 0, "b", -400.0]]
    assert set(results["run"]) == {project.relative(planned.cells[0].units[0].folder)}
    again = [record.outcome for _, record in sweep.bring_up_to_date(planned)]
    assert again == ["fresh", "fresh", "fresh", "failed"]  # what failed is left alone ...
    tried = []
    done = Record("03_baselines", "done", 1.0)
    monkeypatch.setattr(notebook, "run_one", lambda topic, folder, *rest: tried.append(folder) or done)
    again = [record.outcome for _, record in sweep.bring_up_to_date(planned, retry=True)]
    assert again == ["fresh", "fresh", "fresh", "done"]
    assert tried == [planned.units[-1].folder]  # ... until it is asked for


def test_after_a_worker_that_died_the_others_are_run(grid, home):
    """Two at a time, and the second kills its worker, and the pool with it: one run beside it may be lost."""
    dies = "import os, signal\nif seed == 1:\n    os.kill(os.getppid(), signal.SIGKILL)\n"
    write_notebook(home / "notebooks/01_data.ipynb", [
        ("parameters", 'profile: str = "tiny"\nseed: int = 0\n'), ("", SETUP.format("01_data")),
        ("", dies + "run.finish()")])
    file = grid("seed: [0, 1, 2, 3]")
    file.write_text(file.read_text().replace("03_baselines", "01_data"))
    planned = sweep.read(file)
    records = dict(sweep.bring_up_to_date(planned, workers=2))
    lost = [unit.parameters["seed"] for unit in planned.units if records[unit].outcome == "failed"]
    assert 1 in lost and len(lost) <= 2
    for unit in planned.units:
        assert records[unit].outcome == "done" or "its worker process died" in records[unit].reason


def test_two_runs_of_one_sweep_do_not_meet(grid, capsys):
    file = grid("seed: [0]")
    with schedule.only_one(sweep.read(file).folder, "prunekit sweep s"):
        assert main(["sweep", str(file)]) == 2
        assert "is under way already, in process" in capsys.readouterr().err


def test_seeds_are_joined(grid):
    rows = [{"cell": cell, "scale": scale, "seed": seed, "run": f"r{cell}", "table": "t", "method": method,
             "tree": f"{cell}", "pattern": "2:4", "n": 5, "value": value, "low": value - 1}
            for cell, (scale, seed) in enumerate([(1.0, 0), (1.0, 1), (1.0, 2), (2.0, 0)])
            for method, value in (("a", 10.0 + seed), ("b", 20.0))]
    table = sweep.over_seeds(pd.DataFrame(rows), ["scale"])
    assert list(table["measure"].unique()) == ["value"] and len(table) == 4
    first = table[(table["scale"] == 1.0) & (table["method"] == "a")].iloc[0]
    low, high = stats.t.interval(0.95, 2, loc=11, scale=stats.sem([10, 11, 12]))
    assert (first["mean"], first["sd"], first["n"]) == (11.0, 1.0, 3)
    assert (first["low"], first["high"]) == pytest.approx((low, high))
    assert (table["n"] == [3, 3, 1, 1]).all()
    assert table[table["n"] == 1][["sd", "low", "high"]].isna().all(axis=None)


def test_winners_that_read_other_things_are_still_one_method():
    rows = [{"cell": seed, "seed": seed, "run": f"r{seed}", "table": "t", "method": "winner", "tree": tree,
             "gradient_corpus": corpus, "leaks": "no" if corpus == "-" else "yes", "value": float(value)}
            for seed, (tree, corpus, value) in enumerate([
                ("mul(W, G)", "embedded", 20.0), ("W", "-", 10.0), ("G", "embedded", 22.0),
                ("X", "-", 11.0)])]
    [row] = sweep.over_seeds(pd.DataFrame(rows), []).itertuples()
    assert (row.mean, row.n, row.gradient_corpus, row.leaks) == (15.75, 4, "- or embedded", "no or yes")
    two = sweep.over_seeds(pd.DataFrame(rows), ["gradient_corpus"])  # here the grid varies it
    assert two.set_index("gradient_corpus")["mean"].to_dict() == {"embedded": 21.0, "-": 10.5}


def test_seeds_are_joined_whatever_their_verdict():
    """By verdict, means would be of the seeds that were chosen for their numbers."""
    said = ["first", "indistinguishable", "indistinguishable", "second"]
    rows = [{"cell": seed, "seed": seed, "run": f"r{seed}", "table": table, "method": "a", "verdict": verdict,
             "ratio": ratio} for table, words in (("t", said), ("u", [None] * 4))
            for seed, (verdict, ratio) in enumerate(zip(words, [0.9, 1.0, 1.1, 1.2], strict=True))]
    table = sweep.over_seeds(pd.DataFrame(rows), []).set_index("table")
    assert table["verdict"].to_dict() == {"t": "first or indistinguishable or second", "u": ""}
    assert table["mean"].to_list() == pytest.approx([1.05, 1.05]) and table["n"].to_list() == [4, 4]


def test_the_ready_sweeps_are_sound(monkeypatch):
    monkeypatch.delenv("PRUNEKIT_HOME", raising=False)
    counts = {file.stem: len(sweep.read(file).cells)
              for file in (project.root() / "params/sweeps").glob("*.yaml")}
    assert counts["embedded"] == 12 and counts["calibration"] == 9 * 5 and counts["seeds"] == 10
    assert counts["published-llama"] == 4 * 3 and counts["published-opt"] == 6 * 4
