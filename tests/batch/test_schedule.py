"""The scheduler keeps its workers busy, and what it says on a terminal is true."""
from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from prunekit.batch import notebook, schedule, terminal
from prunekit.batch.notebook import Record
from prunekit.batch.schedule import Unit
from prunekit.cli import main
from prunekit.workbook import project

CELLS = [("markdown", "# 01 · Data", ""), ("code", "1", "completed"),
         ("markdown", "## 1 Inputs\n\nWords.", ""), ("code", "2", "completed"),
         ("markdown", "### Seen twice?", ""), ("code", "3", "running"),
         ("markdown", "## 2 Later", ""), ("code", "4", "pending")]


@pytest.fixture
def fakes(home, monkeypatch):
    """Two chains, 01 to 03 in each, on two threads; a fake run says that it began and waits to be let go."""
    began = {f"{chain}/{topic}": threading.Event() for chain in "ab" for topic in ("01_data", "03_baselines")}
    go = {place: threading.Event() for place in began}

    def fake(root, topic, folder, parameters):
        place = f"{folder.parent.name}/{topic}"
        began[place].set()
        assert go[place].wait(20)
        return Record(topic, "done", 1.0)

    monkeypatch.setattr(notebook, "execute", fake)
    monkeypatch.setattr(schedule, "open_executor", lambda kind, workers, address: ThreadPoolExecutor(workers))
    chains = []
    for name in "ab":
        first = Unit("01_data", name, {"seed": 0})
        chains += [first, Unit("03_baselines", name, {"seed": 0}, (first,))]
    return chains, began, go


def test_no_worker_waits_for_a_slow_run_or_for_the_caller(fakes):
    units, began, go = fakes
    records = schedule.bring_up_to_date(units, workers=2)
    go["b/01_data"].set()
    unit, _ = next(records)   # a/01_data is still at it
    assert (unit.profile, unit.topic) == ("b", "01_data")
    assert began["b/03_baselines"].wait(20)   # though nobody has asked for the next record
    assert not began["a/03_baselines"].is_set()
    for event in go.values():
        event.set()
    assert [(unit.profile, unit.topic) for unit, _ in records][-1] == ("a", "03_baselines")


def unit(topic, *above):
    return Unit(topic, "p", {}, above)


def test_the_time_left_is_that_of_the_work_or_of_the_longest_chain():
    first = unit("01_data")
    long, short = unit("03_baselines", first), unit("04_gp_search", first)
    expected = {first: 10.0, long: 100.0, short: 20.0}
    units = [first, long, short]
    assert terminal.left(units, expected, {}, 2, {}) == 110          # the chain
    assert terminal.left(units, expected, {}, 1, {}) == 130          # the work
    assert terminal.left(units[1:], expected, {long: 30.0}, 2, {first: 10.0}) == 70
    assert terminal.left(units[1:], expected, {long: 30.0}, 2, {first: 20.0}) == 170   # a slower machine
    assert terminal.left(units[1:], expected, {long: 500.0}, 2, {first: 10.0}) == 20   # late, not negative
    assert terminal.left(units, expected | {short: None}, {}, 2, {}) is None
    assert terminal.left([], expected, {}, 2, {}) == 0


def test_the_heading_above_the_running_cell(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEKIT_HOME", str(tmp_path))
    (tmp_path / "notebooks").mkdir()
    folder = tmp_path / "runs" / "p" / "01_data"
    assert terminal.told([unit("01_data")], None) == "01_data"   # nothing is known yet
    attempt = project.attempt_folder(folder)
    attempt.mkdir(parents=True)
    cells = [{"cell_type": kind, "source": source, "metadata": {"papermill": {"status": status}}}
             for kind, source, status in CELLS]
    (attempt / ".executing.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
    assert terminal.told([unit("01_data")], 170) == "01_data · Seen twice?, about 3 min left"
    assert terminal.told([], 40) == "a minute left, or less"
    (attempt / ".executing.ipynb").write_text('{"cells": [', encoding="utf-8")   # half written
    assert terminal.heading(folder) == ""


def test_every_notebook_states_its_time_and_only_for_its_defaults(monkeypatch):
    monkeypatch.delenv("PRUNEKIT_HOME", raising=False)
    from prunekit.workbook import params

    for topic, parameters in params.resolve_profile("embedded").items():
        assert 5 <= terminal.stated(topic, parameters) <= 600, topic
    assert all(terminal.stated(topic, parameters) is None
               for topic, parameters in params.resolve_profile("smoke").items())


def test_the_report_is_there_after_the_first_notebook(home, monkeypatch, capsys):
    """Its address once, then the report grows with every notebook that ends."""
    from prunekit.report import site

    rendered = []
    records = [Record("01_data", "fresh", 1.0), Record("02_gradients", "done", 1.0),
               Record("03_baselines", "failed", 1.0, "why"), Record("04_gp_search", "done", 1.0)]
    monkeypatch.setattr(schedule, "run_profile", lambda *given, **more: iter(records))
    monkeypatch.setattr(site, "render", lambda profile: rendered.append(profile) or "reports/tiny/index.html")
    assert main(["run", "tiny"]) == 1
    ahead, *lines = capsys.readouterr().out.splitlines()
    assert ahead.startswith("to run: ")
    assert [line.split()[0] for line in lines] == ["01_data", "02_gradients", "the", "03_baselines",
                                                   "04_gp_search", "report:"]
    assert lines[2] == "the report so far: reports/tiny/index.html" and len(rendered) == 3
    records[:] = records[:1]
    assert main(["run", "tiny"]) == 0 and len(rendered) == 4   # all fresh: once
