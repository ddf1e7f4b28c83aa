"""Recipes that make recorded tables."""
from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import kurtosis, spearmanr

import prunekit as pk
from prunekit.analysis.history import lowest
from prunekit.errors import UsageError
from prunekit.evaluate.harness import load_tasks
from prunekit.evaluate.perplexity import Perplexity
from prunekit.ledger import study as recorded
from recipes import common
from recipes.monomials import EXPONENTS, monomials
from recipes.study import study

ASKED = {"windows": 8, "groups": 4, "seqlen": 32, "calibration": 4, "gradient": 4, "steps": 2,
         "progress": False}


def test_monomials_are_measured_as_perplexity_says_and_go_on_after_a_kill(tmp_path):
    file = tmp_path / "monomials.csv"
    table = monomials("embedded/llama", "embedded", file, **ASKED)
    assert len(table) == 4 + 6 * 2 * 4  # dense; 6 monomials, 2 targets, 4 groups
    model, tokenizer = pk.load_model("embedded/llama")
    windows = {role: pk.token_windows("embedded", tokenizer, role, n, 32)
               for role, n in (("calibration", 4), ("gradient", 4), ("select", 8))}
    gradients = pk.collect_gradients(model, windows["gradient"], progress=False)

    def sums(exponents, target):
        rows = table.set_index([*EXPONENTS, "target"]).loc[(*exponents, target)]
        return rows["nll"].to_numpy(), int(rows["tokens"].sum())

    nll = pk.perplexity(model, windows["select"], 32, progress=False).nll
    assert sums((0, 0, 0), "dense")[0] == pytest.approx(31 * nll.reshape(4, 2).sum(1), rel=1e-6)
    tree = pk.grid(2)[1, 1, 0]
    pk.prune(model, windows["calibration"], tree, 0.5, "2:4", gradients=gradients, one_shot=True,
             progress=False)
    nll = pk.perplexity(model, windows["select"], 32, progress=False).nll
    found, tokens = sums((1, 1, 0), "2:4")
    assert found == pytest.approx(31 * nll.reshape(4, 2).sum(1), rel=1e-4) and tokens == 8 * 31

    few = monomials("embedded/llama", "embedded", tmp_path / "few.csv", **ASKED | {"every": 2},
                    properties=tmp_path / "layers.csv")
    assert set(map(tuple, few[EXPONENTS].to_numpy().tolist())) == {(0, 0, 0), (2, 0, 0), (0, 2, 0), (0, 0, 2)}

    half = pd.read_csv(file, dtype={"target": str}).iloc[:4 + 2 * 8]
    half.to_csv(file, index=False)  # as if killed after two monomials
    again = monomials("embedded/llama", "embedded", file, **ASKED)
    assert np.allclose(again["nll"], table["nll"], rtol=1e-6)
    with pytest.raises(UsageError, match=r"holds what was computed with another seqlen \(32\): ask for"):
        monomials("embedded/llama", "embedded", file, **ASKED | {"seqlen": 64})
    with pytest.raises(UsageError, match="was measured at other targets or in other groups"):
        monomials("embedded/llama", "embedded", file, **ASKED | {"targets": ["0.5"]})
    with pytest.raises(UsageError, match="was measured at other targets or in other groups"):
        monomials("embedded/llama", "embedded", file, **ASKED | {"targets": ["0.5", "4:8"]})  # as many
    with pytest.raises(UsageError, match="was measured at other targets or in other groups"):
        monomials("embedded/llama", "embedded", file, **ASKED | {"targets": ["0.6"], "groups": 8})
    with pytest.raises(UsageError, match=r"holds what was computed with another steps \(2\)"):
        monomials("embedded/llama", "embedded", file, **ASKED | {"steps": 3})
    with pytest.raises(UsageError, match="8 windows cannot be 3 groups"):
        monomials("embedded/llama", "embedded", file, **ASKED | {"groups": 3})

    older = table.drop(columns="content").iloc[:4 + 2 * 8]  # goes on, and then says of what
    older.to_csv(tmp_path / "older.csv", index=False)
    again = monomials("embedded/llama", "embedded", tmp_path / "older.csv", **ASKED)
    assert np.allclose(again["nll"], table["nll"], rtol=1e-6)
    (text := tmp_path / "embedded").mkdir()  # another text of this name
    for split in ("train", "validation", "test"):
        (text / f"{split}.txt").write_text("zx 1 2 3 qv 9 8 7 ## !! 4 5 6 wq\n\n" * 99)
    for resumed in (file, tmp_path / "older.csv"):
        with pytest.raises(UsageError, match="holds what was computed with another content"):
            monomials("embedded/llama", str(text), resumed, **ASKED)

    properties = pd.read_csv(tmp_path / "layers.csv").set_index("layer")
    assert len(properties) == len(gradients) and set(properties["model"]) == {"embedded/llama"}
    name, G = next(iter(gradients.items()))
    G, W = G.double().numpy(), pk.load_model("embedded/llama")[0].get_submodule(name).weight.detach().numpy()
    row = properties.loc[name]
    assert row["size"] == G.size and row["kurtosis"] == pytest.approx(kurtosis(G, None, False), rel=1e-3)
    largest = np.sort(G.ravel())[-int(np.ceil(G.size / 100)):]
    assert row["top"] == pytest.approx(largest.sum() / G.sum(), rel=1e-3)
    within = [spearmanr(w, g).statistic for w, g in zip(abs(W), G, strict=True)]
    assert row["W~G"] == pytest.approx(np.mean(within), abs=1e-3)


def test_a_study_is_tested_as_prune_and_perplexity_say_and_goes_on_after_a_kill(tmp_path, monkeypatch):
    text = tmp_path / "text"
    text.mkdir()
    (text / "test.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    asked = {"texts": [str(text)], "targets": ["0.6"], "test_targets": ["0.5", "2:4"], "budget": 8,
             "population": 4, "grid_steps": 2, "repeats": 2, "kinds": ["modern", "grid"], "calibration": 4,
             "gradient": 4, "search": 8, "select": 4, "seqlen": 32, "test": 8, "documents": 3,
             "tasks": ["embedded_reference", "embedded_ending"], "task_targets": ["0.5"], "draws": 2,
             "progress": False}
    names = {"journal-modern": "seed 0", "journal-modern-1": "seed 1"}
    output, folder, chosen_on = tmp_path / "found", tmp_path / "kept", []
    monkeypatch.setattr("recipes.study.lowest", lambda history, unseen: chosen_on.append(
        unseen.benches[0].search) or lowest(history, unseen))
    table = study("embedded/llama", "embedded", folder, output, **asked)
    monkeypatch.setattr(recorded, "FOLDER", tmp_path)
    assert recorded.studies() == ["found"]
    finalists, result, history = (recorded.recorded(name, "found")
                                  for name in ("finalists", "result", "history"))
    assert set(history["journal"]) == {*names, "journal-grid"}
    assert list(recorded.recorded("seeds", "found")["seeds"]) == [2, 1]
    today = time.strftime("%Y-%m-%d")
    assert recorded.recorded_by("found").startswith(f"recorded on {today} with python -m recipes.study on ")
    assert "Wanda" in recorded.answer("found").sentence
    model, tokenizer = pk.load_model("embedded/llama")
    read, test = (pk.token_windows("embedded", tokenizer, role, n, 32)
                  for role, n in (("calibration", 4), ("test", 8)))
    texts = {"embedded": test, "text": pk.token_windows(text, tokenizer, "test", 8, 32)}
    measured = {}
    for name, tree in (("winner", finalists.loc[0, "tree"]), ("wanda", "wanda")):
        with pk.models.as_it_was(model):
            pk.prune(model, read, tree, 0.5, "2:4", gradients=pk.Gradients.load(folder / "G.safetensors"),
                     progress=False)
            measured |= {(name, text): pk.perplexity(model, ids, 32, progress=False)
                         for text, ids in texts.items()}
    lines = {(line["tree"], line["target"]): line
             for line in map(json.loads, (folder / "tested.jsonl").read_text().splitlines())}
    found = result.set_index(["method", "target", "text"])["ppl"]
    for text in texts:
        pair = pk.compare(measured["winner", text], measured["wanda", text])
        row = table.set_index(["rival", "target", "text"]).loc[("wanda", "2:4", text)]
        assert row["ratio"] == pytest.approx(pair.ratio, rel=1e-4)
        assert found["winner", "2:4", text] == pytest.approx(measured["winner", text].value, rel=1e-4)
    ratios = []
    for again in range(2):
        drawn = {role: pk.token_windows("embedded", tokenizer, role, 4, 32, again)
                 for role in ("calibration", "gradient")}
        settings = [{"method": method, "sparsity": 0.6} for method in (finalists.loc[0, "tree"], "wanda")]
        G = pk.collect_gradients(model, drawn["gradient"], progress=False)
        own, wanda = pk.prune_and_measure(model, drawn["calibration"], test, settings, gradients=G,
                                          progress=False)
        ratios.append(own.perplexity.value / wanda.perplexity.value)
    row = recorded.recorded("redrawn", "found").set_index(["target", "text"]).loc[("0.6", "embedded")]
    assert row["ratio"] == pytest.approx(np.prod(ratios) ** 0.5, rel=1e-4)
    assert (row["draws"], row["n"]) == (2, 8)
    assert row["first"] / row["second"] == pytest.approx(row["ratio"], rel=1e-4)
    assert ("(2 draws of the statistics, the first that of the search, each tested on 8 test windows"
            in recorded.answer("found").sentence)
    [select] = chosen_on  # rivals are chosen as the winner is
    assert torch.equal(select, pk.token_windows("embedded", tokenizer, "select", 4, 32))
    for search, rows in recorded.recorded("by_seed", "found").groupby("search"):
        tree = finalists[finalists["journal"].map(names) == search]["tree"].iloc[0]
        for row in rows.itertuples():
            own, wanda = (Perplexity(np.array(lines[each, row.target]["nll"][row.text]))
                          for each in (tree, str(pk.METHODS["wanda"].tree)))
            assert row.ratio == pytest.approx(pk.compare(own, wanda).ratio, rel=1e-4)
    others = set(names.values()) - {names[finalists.loc[0, "journal"]]}
    assert set(recorded.recorded("by_seed", "found")["search"]) == others
    tasks = load_tasks(asked["tasks"])
    right = []
    for method in (finalists.loc[0, "tree"], "wanda"):
        with pk.models.as_it_was(model):
            pk.prune(model, read, method, 0.5, gradients=pk.Gradients.load(folder / "G.safetensors"),
                     progress=False)
            frame = pk.zero_shot(model, tokenizer, tasks, limit=3, progress=False)
            right.append(pk.mean_over(frame, "acc")["value"])
    said = " ".join(each.sentence for each in recorded.sentences("found"))
    assert "what each other search found **" in said and "the zero-shot tasks with the metric" in said
    row = recorded.recorded("zero_shot", "found").set_index(["rival", "target"]).loc[("wanda", "0.5")]
    assert row["difference"] == pytest.approx(right[0] - right[1], abs=1e-6) and row["n"] == 6
    assert recorded.recorded("accuracy", "found").groupby("method").size().to_dict() == dict.fromkeys(
        ("dense", "magnitude (rows)", "pruner-zero", "sparsegpt", "wanda", "winner"), len(frame))
    with pytest.raises(UsageError, match=r"was computed with another test \(8\): ask for the same"):
        study("embedded/llama", "embedded", folder, output, **asked | {"test": 6})
    first = (tmp_path / "text/test.txt").read_text()
    (tmp_path / "text/test.txt").write_text("Another text under the same name. " * 60)
    with pytest.raises(UsageError, match=r"was computed with another content of text \("):
        study("embedded/llama", "embedded", folder, output, **asked)
    (tmp_path / "text/test.txt").write_text(first)
    kept = (folder / "tested.jsonl").read_text().splitlines(keepends=True)
    (folder / "tested.jsonl").write_text("".join(kept[:3]) + kept[3][:40])  # as if killed while writing
    again = study("embedded/llama", "embedded", folder, output, **asked)
    pd.testing.assert_frame_equal(again, table)
    whole = [json.loads(line) for line in (folder / "tested.jsonl").read_text().splitlines()]
    assert {(line["tree"], line["target"]) for line in whole} == {
        *lines} and len(whole) == len(kept)


def test_a_recipes_parameters_are_its_command_line(capsys):
    called = []

    def recipe(model: str, output: Path, *, targets: Sequence[str] = ("0.6",), test_seqlen: int = 512,
               progress: bool = True) -> None:
        if model == "none":
            raise UsageError("no such model.")
        if model == "large":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has")
        called.append((model, output, targets, test_seqlen))

    common.command(recipe, 1, ["--model", "m", "--output", "o.csv"])
    common.command(recipe, 1, ["--model", "m", "--output", "o.csv", "--targets", "0.5", "2:4",
                               "--test-seqlen", "64"])
    assert called == [("m", Path("o.csv"), ("0.6",), 512), ("m", Path("o.csv"), ["0.5", "2:4"], 64)]
    for wrong, told in ((["--output", "o.csv"], "the following arguments are required: --model"),
                        (["--model", "none", "--output", "o.csv"], "error: no such model."),
                        (["--model", "large", "--output", "o.csv"], "left (CUDA out of memory): let fewer"),
                        (["--model", "m", "--output", "o.csv", "--progress", "x"], "unrecognized arguments")):
        with pytest.raises(SystemExit):
            common.command(recipe, 1, wrong)
        assert told in capsys.readouterr().err
    with pytest.raises(SystemExit):
        common.command(study, 1, ["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert told.startswith("usage: python -m recipes.study") and "(default: 200)" in told
    assert "--model MODEL a name or directory, as for load_model --corpus" in told


@pytest.mark.parametrize("wrong, sentence", [
    ({"kinds": ["modren"]}, "no search is called 'modren'"), ({"kinds": ["grid"]}, "preset modern"),
    ({"test_targets": ["60"]}, "60"), ({"texts": ["a/news.txt", "b/news.txt"]}, "two texts called 'news'"),
    ({"tasks": ["embedded_recall"], "test_targets": ["0.6"], "task_targets": ["0.5"]}, "not tested"),
    ({"grid_steps": 16}, "1 to 15")])
def test_what_a_study_cannot_do_is_said_before_anything_is_kept(tmp_path, wrong, sentence):
    with pytest.raises(UsageError, match=sentence):
        study("embedded/llama", "embedded", tmp_path / "kept", tmp_path / "found", **wrong)
    assert not (tmp_path / "kept").exists()
