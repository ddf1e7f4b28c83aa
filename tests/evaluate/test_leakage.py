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


def test_the_interval_holds_the_share_about_as_often_as_it_says():
    held, shares = 0, []
    for repetition in range(60):
        cells = factorial(0.02, 0.02, 0.02, seeds=8, noise=0.01, generator=np.random.default_rng(repetition))
        shares.append(leakage(cells).share)
        held += shares[-1][1] <= 0.5 <= shares[-1][2]
    assert 48 <= held <= 60  # 95 of 100 less what a bootstrap over eight seeds gives away
    values, lows, highs = np.array(shares).T
    assert (highs - lows).mean() < 5 * values.std(ddof=1)  # 3.9 would be exact; sixty give the spread to 9 %


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
