"""Figures with nothing, little and too much to show (that they come back: workbook/test_display.py)."""
from __future__ import annotations

import sys
from types import SimpleNamespace

import matplotlib as mpl
import pandas as pd
import pytest
import torch
from matplotlib.text import Text

import prunekit as pk
from prunekit import figures
from prunekit.figures import style
from prunekit.workbook import display

mpl.use("agg")
FOUND = pd.DataFrame({
    "kind": ["correlation", "best tenth", "operator"], "name": ["mul>W", "sqrt", "hoist"],
    "effect": [0.4, -1.0, 2.0], "low": [0.2, -2.0, 1.0], "high": [0.6, 0.5, 3.0],
    "verdict": ["higher loss", "no signal", "improves more often"]})
LONG = "W * sqrt(W * G + sqr(X - mms((W + X) * (G / X - sqr(W * sqrt(G + X)))))) + tanh(exp(W * X - mms(W)))"


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.mark.parametrize("frame", [FOUND.iloc[:0], FOUND[FOUND["kind"] == "operator"]])
def test_nothing_to_show_is_said(frame):
    assert texts(figures.findings(frame)) == ["nothing to show: the table is empty"]


def test_the_legend_of_findings_names_only_what_is_drawn():
    display = texts(figures.findings(FOUND))
    assert {"signal", "no signal", "mul>W", "sqrt"} <= set(display) and "hoist" not in display
    assert "signal" not in texts(figures.findings(FOUND[FOUND["verdict"] == "no signal"]))


def test_long_formulas_go_on_and_stay_within_the_figure():
    figure = figures.pareto(pd.DataFrame({
        "size": [1, 31], "fitness": [0.5, 0.3], "front": True, "formula": ["W", LONG]}))
    assert LONG.replace(" ", "") in "".join(texts(figure)).replace(" ", "")
    figure.draw_without_rendering()
    for text in figure.findobj(Text):
        if text.get_family() == ["monospace"]:
            assert text.get_window_extent().x1 <= figure.bbox.width


def test_a_legend_never_lies_on_data():
    names = [f"a long name, number {i // 2}" for i in range(10)]
    frame = pd.DataFrame({"x": [0, 1] * 5, "y": range(10), "by": names})
    figure = figures.lines(frame, "x", "y", "by", "x", "y")
    figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().y0 >= figure.axes[0].get_window_extent().y1


@pytest.mark.parametrize("values, ticks", [
    ([0.16, 3.5], ["0.2", "0.5", "1", "2"]), ([2.7, 23], ["3", "5", "7", "10", "15", "20"]),
    ([1, 5e4], ["1", "10", "100", "1,000", "10,000"])])
def test_logarithmic_axes_have_round_numbers(values, ticks):
    frame = pd.DataFrame({"x": [0, 1], "y": values, "by": "a"})
    ax = figures.lines(frame, "x", "y", "by", "x", "y", ylog=True).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ticks


def test_a_small_p_is_no_zero():
    frame = pd.DataFrame({"p": [1e-9, 0.04], "ratio": [1e-9, 0.04]})
    assert [cells for _, cells, _ in display.readable(frame)] == [["under 0.001", "0.040"], ["0.00", "0.04"]]


def test_menus_draw_again_or_say_how_to_do_without(monkeypatch):
    def look(metric):
        return figures.lines(pd.DataFrame({"x": [0, 1], "y": [1, 2], "by": metric}), "x", "y", "by", "x", "y")

    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert "look(metric='W')" in pk.choose_from(look, metric=["W", "G"]).text
    drawn = {}

    def interact(draw, metric):
        drawn.update({value: draw(metric=value) for value in metric})

    fake = SimpleNamespace(interact=interact, SelectionSlider=lambda options, value: [value, *options])
    monkeypatch.setitem(sys.modules, "ipywidgets", fake)
    assert pk.choose_from(look, metric=["W", "G"]) is None
    assert "image/svg+xml" in drawn["G"].html and drawn["G"].html != drawn["W"].html
    assert pk.choose_from(look, metric=[0.1, 0.2, 0.3]) is None and next(iter(list(drawn)[2:])) == 0.2
    monkeypatch.setenv("PRUNEKIT_LOG", "runs/x.log")   # under papermill nobody chooses
    assert "look(metric='W')" in pk.choose_from(look, metric=["W", "G"]).text


def test_trees_stand_side_by_side_with_some_nodes_marked():
    frame = pd.DataFrame([("a", "mul(W, sqrt(X))", 2, 4), ("b", "W", 0, 0)],
                         columns=["name", "tree", "first", "last"])
    left, right = figures.trees(frame).axes
    marked = [[line for line in ax.lines if line.get_marker() == "s"] for ax in (left, right)]
    assert [len(lines) for lines in marked] == [2, 0] and left.get_ylim() == right.get_ylim()
    assert {text.get_text() for text in left.texts} == {"mul", "W", "sqrt", "X"}


def drawn(figure, axis=0):
    return {line.get_label(): line for line in figure.axes[axis].lines}


def test_a_name_has_one_look_in_every_figure_and_no_other_name_takes_it():
    both = style.looks(["wanda", "mine", "gblm"]), style.looks(["gblm", "yours", "sparsegpt", "wanda"])
    assert both[0]["wanda"] == both[1]["wanda"] and both[0]["gblm"] == both[1]["gblm"]
    for looks in (*both, style.looks(["magnitude", "wanda", "ria", "gblm", "pruner-zero", "sparsegpt", "admm",
                                      "search winner"]), style.looks(["modern", "paper", "random", "grid"])):
        for part in ("color", "marker"):
            assert len({look[part] for look in looks.values()}) == len(looks), (part, looks)
    assert style.looks(["winner"])["winner"] == style.looks(["search winner"])["search winner"]
    masked, plain = style.looks(["wanda, masked", "wanda, plain"]).values()
    assert masked["color"] == plain["color"] and masked["linestyle"] != plain["linestyle"]
    assert (masked["markerfacecolor"], plain["markerfacecolor"]) == (masked["color"], "none")
    assert len(style.looks(range(20))) == 20   # more names than colours


def test_a_ratio_is_hollow_where_its_interval_holds_one():
    nan = float("nan")  # of one window there is no interval
    frame = pd.DataFrame([("wanda++", 0.5, "unstructured", 0.9, 0.8, 1.1),
                          ("ria", 0.5, "unstructured", 0.7, 0.6, 0.8), ("ria", 0.5, "2:4", 3.0, 2.0, 4.0),
                          ("wanda++", 0.5, "2:4", 0.9, nan, nan)],
                         columns=["method", "sparsity", "pattern", "ratio", "low", "high"])
    made = figures.ratios(frame)
    assert [ax.get_title(loc="left") for ax in made.axes] == ["50 %", "2:4"]
    assert [tick.get_text() for tick in made.axes[0].get_yticklabels()] == ["Wanda++", "RIA"]   # from above
    assert "axes differ" in made.get_supxlabel()
    assert "axes differ" not in figures.ratios(frame[:2]).get_supxlabel()
    targets = frame.assign(target=["0.5", "0.5", "2:4", "2:4"]).drop(columns=["sparsity", "pattern"])
    assert texts(figures.ratios(targets)) == texts(figures.ratios(frame))
    assert list(made.axes[0].get_yticks()) == [1, 0]
    for ax in made.axes:
        faces = {line.get_ydata()[0]: line.get_markerfacecolor() for line in ax.lines
                 if len(line.get_xdata()) == 1}
        assert faces == {1: "white", 0: style.looks(["ria"])["ria"]["color"]}
    assert [ax.get_xscale() for ax in made.axes] == ["linear", "log"]


def test_shares_kept_by_hand():
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)
    lines = [drawn(figures.kept_shares({"wanda": mask}, bins=2), side)["Wanda"] for side in (0, 1)]
    assert [line.get_ydata().tolist() for line in lines] == [[0.75, 0.25], [0.75, 0.25]]
    assert lines[0].get_xdata().tolist() == [0.25, 0.75]


@pytest.mark.parametrize("worst, scale", [(9.0, "linear"), (90.0, "log")])
def test_recovery_is_logarithmic_over_a_decade(worst, scale):
    rows = pd.DataFrame({"setting": "2:4", "method": ["magnitude", "wanda"], "ppl": [worst, 3.0],
                         "tuned": 2.9, "recovered": 0.5, "recovered_low": 0.4, "recovered_high": 0.6})
    made = figures.recovery(rows, 2.5)
    assert made.axes[0].get_xscale() == scale and "50 % (40 % to 60 %)" in texts(made)


def test_labels_have_their_space_and_their_comma():
    curves = pd.DataFrame({"method": "wanda", "sparsity": [0.5, 0.7], "ppl": [3, 4], "low": 2, "high": 5})
    tokens = pd.DataFrame({"tokens": [0, 40_000], "loss": [2, 1], "by": "wanda, masked"})
    for figure, label in ((figures.perplexity_curves(curves), "60 %"),
                          (figures.lines(tokens, "tokens", "loss", "by", "tokens", "loss"), "20,000")):
        figure.draw_without_rendering()
        assert label in texts(figure)
