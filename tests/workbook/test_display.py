"""Every figure comes back from its CSV byte for byte."""
from __future__ import annotations

import json

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch

import prunekit as pk
from prunekit import figures
from prunekit.batch import schedule
from prunekit.cli import main
from prunekit.workbook import display, manifest

mpl.use("agg")
RNG = np.random.default_rng(0)
PARAMETERS = {"profile": "tiny", "rows": 4, "seqlen": 8, "seed": 0}
POINTS = pd.DataFrame({"x": [1, 2, 4, 1, 2, 4], "y": RNG.normal(size=6) / 3, "by": list("aaabbb")})
TREES = pd.DataFrame({"i": [0, 3, 7], "formula": ["W", "W * G", "sqrt(W * $G)"],
                      "operator": ["random", "random", "crossover"],
                      "parents": ["", "", "0 3"], "fitness": [3.0, 1 / 3, 0.1], "main": [True, False, True]})


def test_people_read_other_names_than_parameters_hold():
    assert display.typeset("wanda, wanda++ and the magnitude, by `wanda`, of gblm at 70%: found/ria") == (
        "Wanda, Wanda++ and the magnitude, by `wanda`, of GBLM-Pruner at 70 %: found/ria")
    assert display.typeset("at 0.7, targets 0.65, at 0.125 of `at 0.5`; p 0.05") == (
        "at 70 %, targets 65 %, at 0.125 of `at 0.5`; p 0.05")
    frame = pd.DataFrame({"method": ["wanda-variant", "ria + obs"], "target": ["0.5", "2:4"],
                          "0.7": [1.5, 2.0], "first": [0.5, 0.25]})
    assert [(heading, cells) for heading, cells, _ in display.readable(frame)] == [
        ("method", ["Wanda, variant", "RIA + obs"]), ("target", ["50 %", "2:4"]), ("70 %", ["1.5", "2.0"]),
        ("first", ["0.50", "0.25"])]
    shown = display.show_table(frame, "tables/a.csv", "Made by `prunekit run`.")
    assert "<figcaption>Made by <code>prunekit run</code>.</figcaption>" in shown.html


def interval(frame, value):
    return frame.assign(low=frame[value] - 0.1, high=frame[value] + 0.1)


DRAWN = {
    "perplexity_curves": lambda: figures.perplexity_curves(interval(pd.DataFrame(
        {"method": ["a", "a", "b", "b"], "sparsity": [0.1, 0.5] * 2, "ppl": [11 / 3, 20.0, 12.0, 23.0]}),
        "ppl"), 10 / 3),
    "intervals": lambda: figures.intervals(interval(POINTS.rename(columns={"y": "value"}), "value"), "by",
                                           "u", np.float64(1 / 7)),
    "rank_frequency": lambda: figures.rank_frequency({"a": RNG.integers(0, 9, 50).astype(float),
                                                      "b": np.arange(5)}),
    "lines": lambda: figures.lines(interval(POINTS, "y"), "x", "y", "by", "x", "y", xlog=True),
    "matrices": lambda: figures.matrices({"$G$": torch.randn(60, 70), "keep": torch.randn(60, 70) > 0}),
    "tails": lambda: figures.tails({"q": RNG.lognormal(size=90_000), "k": RNG.lognormal(size=500)}, "G"),
    "tails of float32": lambda: figures.tails({"q": RNG.lognormal(size=9_000).astype(np.float32)}, "G"),
    "an empty table": lambda: figures.pareto(pd.DataFrame(columns=["size", "fitness", "front", "formula"])),
    "table_map": lambda: figures.table_map(pd.DataFrame([[0.1, np.nan], [1 / 3, 2]], index=["a", "b"],
                                                        columns=[0.5, 0.7]), "u"),
    "table_map by number": lambda: figures.table_map(pd.DataFrame([[0.1, 1 / 3]],
                                                                  index=pd.Index([3], name="block")), "u"),
    "findings": lambda: figures.findings(pd.DataFrame({
        "kind": ["correlation", "best tenth"], "name": ["mul>W", "hoist"], "effect": [0.1, -1],
        "low": [0.0, -2], "high": [0.2, 1],
        "verdict": ["lower loss", "no signal"]})),
    "simplex": lambda: figures.simplex(pd.DataFrame({"a": [1, 0.5, 0.0], "b": [0, 0.5, 1 / 3],
                                                     "c": [0, 0, 2 / 3], "fitness": [1, 2, 3.5],
                                                     "label": ["magnitude", "", "other"]})),
    "pareto": lambda: figures.pareto(pd.DataFrame({"size": [1, 3, 9], "fitness": [1 / 3, 0.2, 0.9],
                                                   "front": [True, True, False],
                                                   "formula": ["W", "W * G", ""]})),
    "family_tree": lambda: figures.family_tree(TREES),
    "anatomy": lambda: figures.anatomy(pd.DataFrame({"row": [0, 0, 1, 1], "column": [0, 1, 0, 1],
                                                     "score": RNG.normal(size=4),
                                                     "kept": [True, False, False, True]}), "mul(W, sqrt(X))"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_comes_back_from_its_table(name, tmp_path):
    drawn = DRAWN[name]()
    made, frame = display.recipe(drawn)
    frame.to_csv(tmp_path / "x.csv", index=False)
    again = display.draw(json.loads(json.dumps(made, default=display.as_plain)), tmp_path / "x.csv")
    assert display.figure_files(again) == display.figure_files(drawn)
    other = figures.lines(POINTS, "x", "y", "by", "x", "y")
    assert display.figure_files(other) != display.figure_files(drawn)


def test_what_is_too_large_or_drawn_by_hand_has_no_recipe():
    assert display.recipe(mpl.figure.Figure()) is None
    assert display.recipe(figures.rank_frequency({"a": np.arange(50_000.0)})) is None


def test_the_command_draws_again_and_the_run_stays_fresh(home, capsys):
    run = pk.start_run("01_data", PARAMETERS)
    run.figure(DRAWN["lines"](), "curve", "A curve.")
    run.figure(mpl.figure.Figure(figsize=(1, 1)), "by-hand", "Nothing.")
    run.finish()
    assert set(run.artifacts["figures/curve"]["files"]) == {
        "figures/curve.svg", "figures/curve.pdf", "figures/curve.csv"}
    before = (run.folder / "figures/curve.svg").read_bytes()
    (run.folder / "figures/curve.svg").write_bytes(b"broken")
    (run.folder / "figures/curve.pdf").unlink()
    outcomes = []
    for _ in range(2):
        assert main(["figures", "tiny"]) == 0
        outcomes.append([line.split()[1:] for line in capsys.readouterr().out.splitlines()[:2]])
    assert outcomes == [[["curve", "changed"], ["by-hand", "kept"]], [["curve", "same"], ["by-hand", "kept"]]]
    assert (run.folder / "figures/curve.svg").read_bytes() == before
    assert manifest.state("tiny", "01_data", PARAMETERS).fresh
    table = run.folder / "figures/curve.csv"
    text = table.read_text()
    for damaged in ("".join(text.splitlines(keepends=True)[:-1]), text.replace("\n4,", "\n5,")):
        table.write_text(damaged)  # a row is lost, a digit is another
        assert main(["figures", "tiny"]) == 1
        assert capsys.readouterr().out.splitlines()[0].split()[1:] == ["curve", "damaged"]
        assert (run.folder / "figures/curve.svg").read_bytes() == before
        assert not manifest.state("tiny", "01_data", PARAMETERS).fresh
    with schedule.only_one(home / "runs/tiny", "prunekit run tiny"):
        assert main(["figures", "tiny"]) == 2
    assert "`prunekit run tiny` is under way already" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "shown"), [
    ("70% and 2.5 % of 3545", "70 % and 2.5 % of 3,545"), ("in 2024, arXiv 2406.02924, run 1234a", None),
    ("`x%1000` and $6144$ stay", None), ("0.12345, 1,500 and 2:4096", None),
    ("16384, 6144.", "16,384, 6,144.")])
def test_numbers_of_a_sentence_are_set_by_one_rule(text, shown):
    assert display.typeset(text) == (shown or text) == display.typeset(shown or text)


def test_one_thread_two_threads():
    assert [display.counted(number, "thread") for number in (0, 1, 2, 4096)] == [
        "0 threads", "1 thread", "2 threads", "4,096 threads"]
