"""Figures with nothing, little and too much to show (that they come back: workbook/test_display.py)."""
from __future__ import annotations

import sys
from types import SimpleNamespace

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib.text import Text

import prunekit as pk
from prunekit import figures
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
