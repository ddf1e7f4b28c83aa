"""The share of a lead that is text, on factorials whose answer is known."""
from __future__ import annotations

import itertools

import numpy as np
import pytest

import prunekit as pk
from prunekit.evaluate.leakage import leakage

CORPORA = ("a", "b")


def factorial(lead, of_gradients, of_calibration, *, seeds=4, windows=60, noise=0.0, generator=None):
    """Windows differ by far more than methods do; reading the test corpus lowers the loss by a known
    amount."""
    generator = generator or np.random.default_rng(3)
    hard = {corpus: generator.normal(2, 0.5, windows) for corpus in CORPORA}
    moved = {key: generator.normal(0, noise, 2) for key in itertools.product(CORPORA, CORPORA, range(seeds))}
    wobble = {key: generator.normal(0, noise, windows)
              for key in itertools.product((0, 1), CORPORA, CORPORA, range(seeds))}
    return {(g, c, t, seed): (hard[t] - lead - of_gradients * (g == t) + moved[g, t, seed][0]
                              + wobble[0, g, t, seed],
                              hard[t] - of_calibration * (c == t) + moved[c, t, seed][1]
                              + wobble[1, c, t, seed])
            for g, c, t, seed in itertools.product(CORPORA, CORPORA, CORPORA, range(seeds))}


@pytest.mark.parametrize(("lead", "of_gradients", "of_calibration", "share"), [
    (0.02, 0.02, 0.02, 0.5),    # half of 0.04 goes when both read alike
    (0.0, 0.03, 0.03, 1.0),     # all of it is text
    (0.05, 0.0, 0.0, 0.0),      # none is
    (0.03, 0.01, 0.03, 0.5),    # what both gain by reading counts half each: 0.02 of 0.04
    (-0.01, 0.03, 0.03, 1.5),   # read alike, the leader is behind
])
def test_a_known_share_is_found_exactly_without_noise(lead, of_gradients, of_calibration, share):
    found = leakage(factorial(lead, of_gradients, of_calibration))
    assert found.share == pytest.approx((share, share, share), abs=1e-9)
    assert found.lead[0] == pytest.approx(lead + of_gradients) and found.clean[0] == pytest.approx(lead)
    assert found.read[0] == pytest.approx(lead + of_gradients - of_calibration)
    assert (found.seeds, found.windows) == (4, 120)


def test_corpora_count_alike_however_many_windows_they_have():
    cells = {cell: tuple(values[:30] - 0.02 * (values is nll[0]) for values in nll) if cell[2] == "b" else nll
             for cell, nll in factorial(0.02, 0.02, 0.02).items()}  # on b the leader is further ahead
    found = leakage(cells)
    assert found.lead == pytest.approx((0.05,) * 3) and found.clean == pytest.approx((0.03,) * 3)
    assert found.share == pytest.approx((1 - 0.06 / 0.1,) * 3) and found.windows == 90


@pytest.mark.parametrize(("seeds", "wide"), [(3, 9), (8, 5)])  # 7.6 and 4.6 spreads would be exact
def test_intervals_hold_lead_and_share_about_as_often_as_they_say(seeds, wide):
    found = [leakage(factorial(0.02, 0.02, 0.02, seeds=seeds, noise=0.01,
                               generator=np.random.default_rng(repetition))) for repetition in range(200)]
    for values, truth in (([each.lead for each in found], 0.04), ([each.share for each in found], 0.5)):
        values, lows, highs = np.array([each for each in values if np.isfinite(each[0])]).T
        assert 0.9 <= ((lows <= truth) & (truth <= highs)).mean() <= 0.99 and len(values) > 180
        assert (highs - lows).mean() < wide * values.std(ddof=1)


def test_of_one_seed_the_interval_is_for_new_windows():
    cells = factorial(0.02, 0.02, 0.02, seeds=1, noise=0.01)
    found = leakage(cells)
    assert found.seeds == 1 and found.lead[1] < found.lead[0] < found.lead[2]


def test_a_lead_that_is_none_has_no_share():
    found = leakage(factorial(-0.03, 0.01, 0.01, noise=0.001))
    assert found.lead[2] < 0 and np.isnan(found.share).all()
    assert np.isnan(leakage(factorial(0.0, 0.0, 0.0, noise=0.05)).share).all()


def test_an_incomplete_factorial_is_refused():
    cells = factorial(0.02, 0.02, 0.02)
    with pytest.raises(pk.UsageError, match="31 cells are not the factorial"):
        leakage({cell: values for cell, values in cells.items() if cell != ("a", "b", "a", 2)})
    with pytest.raises(pk.UsageError, match="at least two corpora"):
        leakage({cell: values for cell, values in cells.items() if set(cell[:3]) == {"a"}})
    with pytest.raises(pk.UsageError, match="tested on b hold different windows"):
        leakage(cells | {("a", "a", "b", 0): (np.zeros(5), np.zeros(5))})
