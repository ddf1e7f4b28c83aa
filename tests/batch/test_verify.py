"""A profile run anew has the same tables; a number that is another is named, and the exit status says so."""
from __future__ import annotations

import json
import os

import pytest

from prunekit.batch import notebook, schedule, verify
from prunekit.batch.notebook import Record
from prunekit.cli import main
from prunekit.errors import UsageError
from prunekit.workbook import manifest, project
from tests.tiny_project import write_notebook

CODE = """import pandas as pd, time, torch
import prunekit as pk
run = pk.start_run("01_data", globals())
frame = pd.DataFrame({"draw": torch.rand(3).tolist(), "rows": rows, "seconds": time.time()})
run.table(frame, "draws", "Draws.")
run.finish()"""


@pytest.fixture
def saved(home, monkeypatch):
    """A finished run of 01_data, its code executed in this process instead of a kernel."""
    write_notebook(home / "notebooks/01_data.ipynb", [
        ("parameters", 'profile: str = "tiny"\nrows: int = 4\nseqlen: int = 8\nseed: int = 0\n'), ("", CODE)])

    def run_here(topic, folder, parameters):
        exec(CODE, dict(parameters))  # noqa: S102 - the code above
        (folder / "executed.ipynb").write_text("{}")
        return Record(topic, "done", 1.0)

    monkeypatch.setattr(notebook, "run_one", run_here)
    assert [record.outcome for record in schedule.run_profile("tiny", ["01_data"], {"rows": "7"})] == ["done"]
    return project.run_folder("tiny", "01_data")


def replaced(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_the_same_numbers_digit_by_digit(home, saved, capsys):
    before = manifest.read("tiny", "01_data")
    assert main(["verify", "tiny"]) == 0
    assert capsys.readouterr().out == "01_data           the same   6 numbers compared digit by digit\n"
    assert manifest.read("tiny", "01_data") == before and not (home / "runs/verify/tiny").exists()


def test_another_number_is_named_and_the_new_run_kept(home, saved, capsys):
    table = saved / "tables/draws.csv"
    first = table.read_text().splitlines()[1].split(",")[0]
    replaced(table, first, str(float(first) * 1.0005))
    assert main(["verify", "tiny"]) == 1
    out = capsys.readouterr().out
    assert f"  draws, row 1, draw: {float(first) * 1.0005} → {first}\n" in out and out.count(" → ") == 1
    assert (home / "runs/verify/tiny/01_data/manifest.json").exists()
    assert main(["verify", "tiny", "--tolerance", "1e-3"]) == 0
    assert "within 0.001" in capsys.readouterr().out
    assert main(["verify", "tiny", "--tolerance", "1e-4"]) == 1


def test_on_another_machine_a_tolerance_is_allowed(saved):
    made = json.loads((saved / "manifest.json").read_text())
    for key, value in (("machine", "another"), ("threads", 99),
                       ("versions", made["versions"] | {"torch": "1.0"})):
        (saved / "manifest.json").write_text(json.dumps(made | {key: value}))
        assert [verdict.tolerance for verdict in verify.verify("tiny")] == [verify.TOLERANCE]


def test_a_number_that_became_infinite_is_within_no_tolerance(tmp_path):
    for name, values in {"then": "1.0\ninf\ninf\n2.0\n", "now": "inf\n-inf\ninf\n2.0000001\n"}.items():
        (tmp_path / name / "tables").mkdir(parents=True)
        (tmp_path / name / "tables/ppl.csv").write_text("ppl\n" + values)
    count, found = verify.compare_tables(tmp_path / "then", tmp_path / "now", 1e-3)
    assert (count, [(each.row, each.then, each.now) for each in found]) == (
        4, [(1, "1.0", "inf"), (2, "inf", "-inf")])


def test_what_cannot_be_verified_is_said(home, saved):
    with pytest.raises(UsageError, match="There is no profile 'tny'"):
        verify.verify("tny")
    with pytest.raises(UsageError,
                       match="03_baselines has no finished run to verify: `prunekit run tiny 03_"):
        verify.verify("tiny", ["03_baselines"])
    (saved / "manifest.json").unlink()
    with pytest.raises(UsageError, match="tiny has no finished run to verify"):
        verify.verify("tiny")


def test_a_run_that_fails_is_not_the_same(saved, monkeypatch, capsys):
    failed = Record("01_data", "failed", 1.0, "too little memory")
    monkeypatch.setattr(notebook, "run_one", lambda *given: failed)
    assert main(["verify", "tiny"]) == 1
    assert "01_data           failed     too little memory\n" in capsys.readouterr().out


def test_it_runs_on_as_many_threads_as_the_saved_run(saved, monkeypatch):
    """A report of several notebooks at a time gave each a share of the cores."""
    made = saved / "manifest.json"
    made.write_text(json.dumps(json.loads(made.read_text()) | {"threads": 3}))
    threads = []

    def run_here(topic, *given):
        threads.append(os.environ["OMP_NUM_THREADS"])
        return Record(topic, "failed", 1.0)

    monkeypatch.setattr(notebook, "run_one", run_here)
    before = os.environ.get("OMP_NUM_THREADS")
    list(verify.verify("tiny", progress=False))
    assert threads == ["3"] and os.environ.get("OMP_NUM_THREADS") == before


def test_two_verifications_do_not_meet(home, saved, capsys):
    with schedule.only_one(home / "runs/verify", "prunekit verify"):
        assert main(["verify", "tiny"]) == 2
    assert "`prunekit verify` is under way already, in process" in capsys.readouterr().err
    assert main(["verify", "tiny"]) == 0
