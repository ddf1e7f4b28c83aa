import json

import pandas as pd
import pytest

import prunekit as pk
from prunekit.__main__ import main

START = ["search", "start", "--model", "embedded/llama", "--seqlen", "32", "--nsamples", "4", "--search-windows", "8",
         "--tasks", "0.7", "2:4", "--preset", "random-distinct"]


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
    table = pd.read_csv(folder / "h.csv")
    assert table.equals(pd.read_csv(folder / "h.csv")) and len(table) == len(pd.read_parquet(folder / "h.parquet")) >= 9
    best = json.loads((folder / "best.json").read_text())
    assert set(best) <= {"data", "left", "right", "meta"} and pk.Tree.from_json(best) == pk.replay(folder / "journal.jsonl").best.tree
    assert pk.Tree.from_json(folder / "winner.json").size >= 1


@pytest.mark.parametrize("arguments, sentence", [
    (["start", "--model", "embedded/llama", "--output", "x", "--preset", "modem"], "did you mean 'modern'"),
    (["start", "--model", "embedded/llama", "--output", "x", "--tasks", "0.5", "5:4"], "--tasks 5:4|pattern '5:4'"),
    (["status", "nowhere.jsonl"], "there is no journal nowhere.jsonl"),
    (["export", "nowhere.jsonl", "x.xlsx"], "must end in .csv, .parquet or .json"),
])
def test_bad_commands(capsys, arguments, sentence):
    import re

    assert main(["search", *arguments]) == 2
    assert re.search(sentence, capsys.readouterr().err)
