"""Recipes that make recorded tables."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kurtosis, spearmanr

import prunekit as pk
from prunekit.errors import UsageError
from recipes import common
from recipes.first_search import first_search
from recipes.monomials import EXPONENTS, monomials

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
    with pytest.raises(UsageError, match="8 windows cannot be 3 groups"):
        monomials("embedded/llama", "embedded", file, **ASKED | {"groups": 3})

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


def test_one_search_is_tested_as_prune_and_perplexity_say_and_goes_on_after_a_kill(tmp_path):
    asked = {"targets": ["0.6"], "test_targets": ["0.5", "2:4"], "budget": 16, "population": 6,
             "finalists": 2, "calibration": 4, "gradient": 4, "search": 8, "select": 4, "seqlen": 32,
             "test": 8, "test_seqlen": 48, "progress": False}
    file, folder = tmp_path / "found.csv", tmp_path / "kept"
    asked["rivals"] = ["wanda", "mine=mul(W, G)"]
    table = first_search("embedded/llama", "embedded", folder, file, **asked)
    assert table[["rival", "target"]].to_numpy().tolist() == [
        [rival, target] for rival in ("wanda", "mine") for target in ("0.5", "2:4")]
    model, tokenizer = pk.load_model("embedded/llama")
    read, test = (pk.token_windows("embedded", tokenizer, role, n, seqlen)
                  for role, n, seqlen in (("calibration", 4, 32), ("test", 8, 48)))
    dense = {layer.name: layer.weight.clone() for layer in pk.models.layers(model)}
    measured = {}
    for name, tree in (("winner", table["tree"].iloc[0]), ("wanda", "wanda")):
        for layer in pk.models.layers(model):
            layer.weight.data.copy_(dense[layer.name])
        pk.prune(model, read, tree, 0.5, "2:4", gradients=pk.Gradients.load(folder / "G.safetensors"),
                 one_shot=True, progress=False)
        measured[name] = pk.perplexity(model, test, 48, progress=False)
    pair = pk.compare(measured["winner"], measured["wanda"])
    row = table.set_index(["rival", "target"]).loc[("wanda", "2:4")]
    assert row[["ppl", "winner_ppl", "ratio"]].to_numpy(float) == pytest.approx(
        [measured["wanda"].value, measured["winner"].value, pair.ratio], rel=1e-4)
    with pytest.raises(UsageError, match=r"was computed with another test \(8\): ask for the same"):
        first_search("embedded/llama", "embedded", folder, file, **asked | {"test": 6})
    other = first_search("embedded/llama", "embedded", folder, file, **asked | {"rivals": ["mine=W"]})
    assert other["ppl"].iloc[0] != table["ppl"].iloc[2]  # another line under the same name
    (folder / "losses.npz").unlink()
    again = first_search("embedded/llama", "embedded", folder, file, **asked)
    pd.testing.assert_frame_equal(again, table)


def test_a_recipes_parameters_are_its_command_line(capsys):
    called = []

    def recipe(model: str, output: Path, *, targets: Sequence[str] = ("0.6",), test_seqlen: int = 512,
               progress: bool = True) -> None:
        if model == "none":
            raise UsageError("no such model.")
        called.append((model, output, targets, test_seqlen))

    common.command(recipe, 1, ["--model", "m", "--output", "o.csv"])
    common.command(recipe, 1, ["--model", "m", "--output", "o.csv", "--targets", "0.5", "2:4",
                               "--test-seqlen", "64"])
    assert called == [("m", Path("o.csv"), ("0.6",), 512), ("m", Path("o.csv"), ["0.5", "2:4"], 64)]
    for wrong, told in ((["--output", "o.csv"], "the following arguments are required: --model"),
                        (["--model", "none", "--output", "o.csv"], "error: no such model."),
                        (["--model", "m", "--output", "o.csv", "--progress", "x"], "unrecognized arguments")):
        with pytest.raises(SystemExit):
            common.command(recipe, 1, wrong)
        assert told in capsys.readouterr().err
    with pytest.raises(SystemExit):
        common.command(first_search, 1, ["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert told.startswith("usage: python -m recipes.first_search") and "(default: 150)" in told
    assert "--model MODEL a name or directory, as for load_model --corpus" in told
