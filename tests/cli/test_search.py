import json
import shutil

import pandas as pd
import pytest

import prunekit as pk
from prunekit.cli import main, search

START = ["search", "start", "--model", "embedded/llama", "--seqlen", "32", "--nsamples", "4",
         "--search-windows", "8", "--targets", "0.7", "2:4", "--preset", "random-distinct"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("found")
    assert main([*START, "--budget", "6", "--output", str(folder)]) == 0
    return folder


def test_a_search_from_start_to_export(folder, capsys):
    assert main(["search", "resume", str(folder / "journal.jsonl"), "--budget", "9"]) == 0
    assert main(["search", "status", str(folder / "journal.jsonl")]) == 0
    shown = capsys.readouterr().out
    assert "preset random-distinct, seed 0, group row" in shown and "9 distinct evaluations" in shown
    for name in ("h.csv", "h.parquet", "best.json"):
        assert main(["search", "export", str(folder / "journal.jsonl"), str(folder / name)]) == 0
    history = pk.history(folder / "journal.jsonl")
    written = pd.read_csv(folder / "h.csv", dtype={"parents": str}).fillna({"parents": ""})
    for table in (written, pd.read_parquet(folder / "h.parquet")):
        alike = (frame.astype({"same": float}) for frame in (table, history))  # nothing but gaps has no type
        pd.testing.assert_frame_equal(*alike, check_dtype=False)
    assert len(history) >= 9
    best = json.loads((folder / "best.json").read_text())
    assert set(best) <= {"data", "left", "right", "meta"}
    assert pk.Tree.from_json(best) == pk.replay(folder / "journal.jsonl").best.tree
    assert pk.Tree.from_json(folder / "winner.json").size >= 1


def test_a_search_does_not_go_on_with_anything_else(folder, capsys):
    assert main([*START, "--budget", "6", "--output", str(folder)]) == 0
    assert "going on with" in capsys.readouterr().out
    for name, value in {"bos": "always", "seed": "1", "targets": "2:4", "search-windows": "9",
                        "update": "obs", "model": "embedded/opt", "dtype": "bfloat16"}.items():
        assert main([*START, f"--{name}", value, "--budget", "6", "--output", str(folder)]) == 2
        said = f"holds what was computed with another {name.replace('-', '_')} ("
        assert said in capsys.readouterr().err
    (folder / "asked.json").write_text("{")
    assert main([*START, "--budget", "6", "--output", str(folder)]) == 2
    assert "asked.json is damaged" in capsys.readouterr().err


def test_a_request_that_came_to_nothing_binds_nobody(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.txt").write_text("A few words. " * 900)
    start = [*START, f"--corpus={tmp_path}/mine.txt", f"--output={tmp_path}/found"]
    monkeypatch.setattr(search, "gradients_of", lambda *given: 1 / 0)
    assert main([*start, "--search-windows=9000"]) == 2
    assert "ask for fewer or shorter windows" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):  # it goes on as far as that
        main([*start, "--search-windows=2"])


def test_a_search_for_budgets_ends_in_a_file_that_prune_takes(tmp_path, capsys):
    found = str(tmp_path / "found")
    start = [*START[:-5], "--targets=0.6", "--evolve=budget", "--method=magnitude", "--budgets=owl"]
    assert main([*start, "--budget", "4", "--output", found]) == 0
    assert main(["search", "resume", f"{found}/journal.jsonl", "--budget", "6"]) == 0
    assert main(["search", "export", f"{found}/journal.jsonl", f"{found}/best.json"]) == 0
    search = pk.replay(f"{found}/journal.jsonl")
    assert search.evaluated == 6 and {str(each.tree) for each in search.candidates.values()} == {"W"}
    budget = json.loads((tmp_path / "found" / "best-budget.json").read_text())
    assert budget == dict(search.best.budget)
    assert json.loads((tmp_path / "found" / "winner-budget.json").read_text()).keys() == budget.keys()
    prune = ["prune", "--model=embedded/llama", "--method=magnitude", "--seqlen=32", "--nsamples=4"]
    assert main([*prune, f"--sparsity={found}/best-budget.json", "--test-windows=4"]) == 0
    assert "% of the prunable weights are zero" in capsys.readouterr().out
    assert main([*START, "--output", found, "--budgets", "owl"]) == 2
    assert "budgets are evolved for one target" in capsys.readouterr().err


def test_a_folder_that_was_moved_goes_on_with_its_own_evaluator(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "moved")
    loaded = []
    monkeypatch.setattr(pk, "evolve", lambda evaluator, *args, **kwargs: [])
    monkeypatch.setattr(pk.Evaluator, "load", loaded.append)
    alone = shutil.copy(folder / "journal.jsonl", tmp_path / "alone.jsonl")
    for journal in (tmp_path / "moved" / "journal.jsonl", alone):
        assert main(["search", "resume", str(journal)]) == 0
    assert loaded == [tmp_path / "moved" / "evaluator.safetensors", folder / "evaluator.safetensors"]


def test_a_search_takes_its_options_from_a_file(tmp_path, monkeypatch, capsys):
    given = {"model": "embedded/llama", "targets": ["0.7", "2:4"], "seqlen": 32, "threads": 2}
    (tmp_path / "c.json").write_text(json.dumps(given))
    monkeypatch.setattr(search, "_start", lambda args, say: seen.append(args) or 0)
    seen = []
    file, target = f"--config={tmp_path}/c.json", f"--output={tmp_path}"
    assert main(["search", "start", file, target, "--threads=3"]) == 0
    assert {key: getattr(seen[0], key) for key in given} == given | {"threads": 3}
    (tmp_path / "c.json").write_text('{"thread": 1}')
    assert main(["search", "start", file]) == 2
    said = capsys.readouterr().err
    assert "c.json: `prunekit search start` has no option 'thread' (did you mean 'threads'?)" in said


@pytest.mark.parametrize("arguments, sentence", [
    (["start", "--model", "embedded/llama", "--output", "x", "--preset", "modem"], "did you mean 'modern'"),
    (["start", "--model", "embedded/llama", "--output", "x", "--targets", "0.5", "5:4"],
     "--targets 5:4|pattern '5:4'"),
    (["start", "--model=embedded/llama", "--output=x", "--threads=0"], "--threads 0 must be at least 1"),
    (["start", "--model=embedded/llama", "--output=x", "--workers=2"], "kind 'serial' has no 2 workers"),
    (["start", "--model=embedded/llama", "--output=x", "--method=sparsegpt"], "no search can begin with it"),
    (["start", "--model=embedded/llama", "--output=x", "--targets=0.6", "--evolve=budget", "--budgets", "{"],
     "sparsity '{' is none"),
    (["resume", "nowhere.jsonl", "--budget", "0"], "--budget 0 must be at least 1"),
    (["status", "nowhere.jsonl"], "there is no journal nowhere.jsonl"),
    (["export", "nowhere.jsonl", "x.xlsx"], "must end in .csv, .parquet or .json"),
])
def test_bad_commands(capsys, arguments, sentence):
    import re

    assert main(["search", *arguments]) == 2
    assert re.search(sentence, capsys.readouterr().err)
