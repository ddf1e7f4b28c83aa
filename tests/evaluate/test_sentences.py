"""Sentences turn with the numbers that they rest on, and compare nowhere else."""
from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from prunekit.errors import UsageError
from prunekit.evaluate.compare import compare_many
from prunekit.evaluate.perplexity import Perplexity
from prunekit.evaluate.sentences import claim, comparing, effects

ROWS = pd.DataFrame({"rival": ["a", "a", "b"], "target": ["0.5", "2:4", "0.5"], "ratio": [0.9, 0.95, 0.98],
                     "low": [0.8, 0.9, 0.96], "high": [0.97, 0.99, 0.995], "p_holm": [0.001, 0.01, 0.04]})


def said(template, rows=ROWS, **how):
    return claim(template, rows, "paired", **{"name": ["rival", "target"]} | how).sentence


def test_a_sentence_turns_with_its_rows():
    template, turned = "X {is lower} here: {verdicts} ({counts}).", ROWS.copy()
    assert said(template) == ("X is lower here: **is lower than that of** a at 50 % and 2:4, and b at 50 % "
                              "(is lower in **3**, is higher in **0** and cannot be told in **0**).")
    turned.loc[2, "p_holm"] = 0.3
    assert said(template, turned) == (
        "X cannot be told to be lower here: **is lower than that of** a at 50 % and 2:4; **cannot be told "
        "from that of** b at 50 % (is lower in **2**, is higher in **0** and cannot be told in **1**).")
    turned.loc[1, ["ratio", "low", "high"]] = 1.05, 1.01, 1.1
    assert said(template, turned) == (
        "X is not lower here: **is lower than that of** a at 50 %; **is higher than that of** a at 2:4; "
        "**cannot be told from that of** b at 50 % (is lower in **1**, is higher in **1** and cannot be told "
        "in **1**).")


def test_a_row_of_one_of_several_texts_says_which():
    rows = pd.concat([ROWS.assign(text="ptb"), ROWS[:1].assign(text="c4"), ROWS[2:].assign(text=None)],
                     ignore_index=True)
    assert said("X: {verdicts}.", rows, name=["rival", "target", "text"]) == (
        "X: **is lower than that of** a at 50 % (ptb, c4) and 2:4 (ptb), and b at 50 % (ptb).")
    two = ROWS[["rival", "target"]].assign(text="ptb").assign(**ROWS.drop(columns=["rival", "target"]))
    alike = pd.concat([two, two.assign(text="c4")], ignore_index=True)
    assert said("X: {verdicts}.", alike, name=["target", "text"], words=["is lower at", "", ""]) == (
        "X: **is lower at** 50 % and 2:4 on ptb and c4.")


@pytest.mark.parametrize(("change", "low", "high", "verdict"), [
    (0.2, 0.1, 0.3, "Wanda erred"), (-0.2, -0.3, -0.1, "the winner erred"), (0.2, -0.1, 0.5, "nobody knows")])
def test_one_row_is_decided_by_its_interval(change, low, high, verdict):
    rows = pd.DataFrame({"change": [change], "low": [low], "high": [high]}, index=[4])
    found = claim("The change is {values}: {verdict}.", rows, "flips", effect="change", form="+.1f",
                  words=("the winner erred", "Wanda erred", "nobody knows"))
    assert found.sentence.endswith(f": {verdict}.") and (found.table, found.rows) == ("flips", [4])


def test_values_are_printed_on_their_own_side_of_no_difference():
    rows = ROWS.iloc[:1].assign(ratio=0.99996, low=0.9998, high=0.99999)
    assert said("{values}", rows) == "a at 50 % 0.99996 (0.99980 to 0.99999), lower"
    assert said("{values}", rows, name=[], form=".2f") == "1.00 (1.00 to 1.00), lower"


def test_an_effect_is_said_with_an_interval_that_has_two_ends():
    rows = ROWS.assign(low=[0.8, 0.9498, 0.96], high=[0.97, 0.9501, 1.2], p_holm=[0.001, 0.01, 0.3])
    words = ["is lower at", "is higher at", "is open at"]
    assert said("It {measured}.", rows, name=["target"], words=words) == (
        "It **is lower at** 50 % (0.900, 0.800 to 0.970) and 2:4 (0.9500, 0.9498 to 0.9501); "
        "**is open at** 50 % (0.980, 0.960 to 1.200).")


@pytest.mark.parametrize("name", ["best", "my{model}", "fast-most"])
def test_a_name_that_reads_as_a_word_or_a_field_is_a_name(name):
    told = claim("On {subject} it {verdicts}.", ROWS, "paired", name=["rival"], about={"subject": name})
    assert told.sentence.startswith(f"On {name} it **is lower than that of** a")
    assert claim(told.template, ROWS, told.table, **told.how) == told


def test_an_effect_of_one_window_is_said_to_have_no_interval():
    two = [Perplexity(np.array([nll])) for nll in (3.0, 3.2)]
    one = compare_many({"wanda": tuple(two)}, ["rival"])
    assert said("It {measured}.", one, name=["rival"]) == (
        "It **cannot be told from that of** wanda (0.82, no interval).")
    assert effects(one) == ["0.82 (no interval)"]


def test_effects_that_stand_together_have_as_many_decimals_as_each_other():
    rows = ROWS.assign(ratio=[0.974, 0.93, 1.0], low=[0.952, 0.91, 1.0], high=[0.997, 0.95, 1.0])
    assert effects(rows) == ["0.974 (0.952 to 0.997)", "0.930 (0.910 to 0.950)", "1.000 (1.000 to 1.000)"]
    assert effects(rows[1:]) == ["0.93 (0.91 to 0.95)", "1.00 (1.00 to 1.00)"]


def test_holms_bounds_are_read_where_every_row_has_them():
    one = ROWS.iloc[:1].assign(holm_low=0.75, holm_high=0.99)
    assert said("{values}", one, name=[], form=".2f") == "0.90 (0.75 to 0.99), lower"
    alone = one.drop(columns=["low", "high"])
    assert said("{values}", alone, name=[], form=".2f") == "0.90 (0.75 to 0.99), lower"
    none = ROWS.iloc[:1].assign(holm_low=float("nan"), holm_high=float("nan"))  # beside some
    assert said("{values}", none, name=[], form=".2f") == "0.90 (0.80 to 0.97), lower"


def test_nothing_is_compared_without_a_test():
    with pytest.raises(UsageError, match="3 rows of table paired are compared without Holm's correction"):
        claim("{counts}", ROWS.drop(columns="p_holm"), "paired")
    with pytest.raises(UsageError, match="says 'ahead' itself"):
        claim("The winner is ahead: {counts}", ROWS, "paired")
    assert claim("{counts}", ROWS.iloc[:0], "paired") is None
    assert claim("{counts}", ROWS.assign(ratio=float("nan")), "paired") is None


def test_words_that_compare_are_known():
    assert comparing("It is lower, and the best; more than half.") == ["lower", "best", "more"]
    assert not comparing("At most 3 of at least 4 in `best_of`; perplexity (lower is better).")
