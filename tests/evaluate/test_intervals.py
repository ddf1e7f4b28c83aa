"""Means over windows that resemble their neighbours: against Student's test, by hand, in simulations."""
from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from prunekit.evaluate import intervals
from prunekit.workbook.display import readable

RNG = np.random.default_rng


def losses(generator, n, correlation, skewed, repetitions):
    """Series (repetitions, n) of mean 0 and variance 1, normal or chi-squared (4), with that correlation."""
    steps = generator.chisquare(4, (repetitions, n + 50)) / math.sqrt(8) - math.sqrt(2) if skewed else \
        generator.normal(size=(repetitions, n + 50))
    for t in range(1, n + 50):
        steps[:, t] = correlation * steps[:, t - 1] + math.sqrt(1 - correlation ** 2) * steps[:, t]
    return steps[:, 50:]


def coverage(n, correlation, skewed, repetitions, seed=0):
    drawn = losses(RNG(seed), n, correlation, skewed, repetitions)
    means = [intervals.mean_of(y, running=True) for y in drawn]
    return np.mean([low <= 0 <= high for low, high in (mean.interval() for mean in means)])


@pytest.mark.parametrize(("correlation", "skewed"), [(0, False), (0.5, False), (0, True), (0.5, True)])
@pytest.mark.parametrize("n", [8, 48])
def test_intervals_hold_the_mean(n, correlation, skewed):
    assert 0.92 <= coverage(n, correlation, skewed, 2000) <= 0.98  # closer in tests/torture


def test_independent_values_get_students_test():
    y = RNG(1).gamma(9, 0.4, 12) - 3
    mean, reference = intervals.mean_of(y, running=False), stats.ttest_1samp(y, 0)
    assert mean.p == pytest.approx(reference.pvalue)
    for level in (0.05, 0.003):
        assert mean.interval(level) == pytest.approx(tuple(reference.confidence_interval(1 - level)))


def test_what_a_mean_can_detect_allows_for_the_error_being_found_too_small():
    """Of eight values 3.2698 true errors are found four times in five (noncentral t), and half of all errors
    are estimated below sqrt(6.3458 / 7) of the true one (the median of chi-squared)."""
    assert intervals.detectable(1, freedom=7) == pytest.approx(3.2698, rel=1e-4)
    assert intervals.Mean(0, 1, 7).detectable == pytest.approx(3.2698 * math.sqrt(7 / 6.3458), rel=1e-4)
    assert intervals.Mean(0, 1, 0).detectable == math.inf


def test_eight_windows_by_hand():
    """Two cosines. If neighbours correlate at 0.45, their mean square is 1.45, n times the mean's 2.27."""
    y = np.array([3, 1, 4, 1, 5, 9, 2, 6.0])
    c = np.array([[math.cos(math.pi * j * (t + 0.5) / 8) / 2 for t in range(8)] for j in (1, 2)])
    correlations = 0.45 ** np.abs(np.subtract.outer(np.arange(8), np.arange(8)))
    excess = (correlations.sum() / 8) / np.mean([row @ correlations @ row for row in c])
    mean = intervals.mean_of(y, running=True)
    assert excess == pytest.approx(2.27 / 1.45, abs=0.01) and mean.freedom == 2
    assert mean.error == pytest.approx(math.sqrt(excess * ((c @ y) ** 2).mean() / 8))
    reach = 4.3027 * mean.error
    assert mean.interval() == pytest.approx((3.875 - reach, 3.875 + reach), rel=1e-4)


def test_many_independent_windows_are_as_with_scipys_bootstrap():
    nll = RNG(1).gamma(9.0, 0.4, size=2000)
    reference = stats.bootstrap((nll,), np.mean, n_resamples=2000, rng=RNG(2)).confidence_interval  # BCa
    value, low, high = intervals.exp_mean(nll)
    assert value == math.exp(nll.mean())
    assert math.log(high / low) == pytest.approx(reference.high - reference.low, rel=0.2)


def test_neighbours_that_resemble_each_other_are_seen():
    alike, apart = losses(RNG(0), 400, 0.5, False, 1)[0], RNG(0).normal(size=400)
    assert intervals.neighbours(alike) == pytest.approx(0.5, abs=0.1)
    assert intervals.neighbours(apart) == pytest.approx(0, abs=0.1)
    assert np.isnan([intervals.neighbours(np.ones(5)), intervals.neighbours(np.arange(2.0))]).all()
    widths = [intervals.mean_of(y, running=True).error / (y.std(ddof=1) / 20) for y in (alike, apart)]
    assert widths[0] > 1.3 and widths[1] < 1.2


@pytest.mark.parametrize(("freedom", "power"), [(1, 0.8), (2, 0.8), (7, 0.99), (20, 0.5)])
def test_what_is_detectable_is_found_that_often(freedom, power):
    shift = intervals.detectable(1.0, power=power, freedom=freedom)
    t = (RNG(0).normal(size=100_000) + shift) / np.sqrt(RNG(1).chisquare(freedom, 100_000) / freedom)
    assert (t > stats.t.isf(0.025, freedom)).mean() == pytest.approx(power, abs=0.005)


def test_pooled_means_are_welchs():
    a, b = RNG(0).normal(1, 1, 9), RNG(1).normal(0, 3, 14)
    reference = stats.ttest_ind(a, -b, equal_var=False)
    pooled = intervals.pooled([intervals.mean_of(values, running=False) for values in (a, b)])
    assert (pooled.freedom, pooled.p) == pytest.approx((reference.df, reference.pvalue))


@pytest.mark.parametrize("n", [8, 64, 500])
def test_resampled_means_are_spread_as_the_mean_is(n):
    weights, y = intervals.resampled(n, 0), RNG(3).gamma(2, 1, n)
    assert weights.shape == (intervals.RESAMPLES, n) and np.allclose(weights.sum(1), 1)
    low, high = intervals.mean_of(y, running=True).interval()
    assert intervals.percentiles(weights @ y) == pytest.approx((low, high), abs=0.06 * (high - low))
    assert np.isnan(intervals.percentiles([math.nan])).all()


# ------------------------------------------------------------ in print

@pytest.mark.parametrize(("low", "high", "verdict", "printed"), [
    (0.9987, 0.99996, "lower", "0.999 to 0.99996"),
    (0.9987, 1.00002, "indistinguishable", "0.999 to 1.00002"),
    (0.9987, 1.0, "indistinguishable", "0.999 to 1.000"), (1.00049, 1.2, "higher", "1.0005 to 1.200")])
def test_printed_ends_carry_the_verdict(low, high, verdict, printed):
    frame = pd.DataFrame({"ratio": [0.99952, 2.012], "holm_low": [low, 1.512], "holm_high": [high, 2.512],
                          "verdict": [verdict, "higher"]})
    columns = {heading: cells for heading, cells, _ in readable(frame)}
    assert columns["interval (Holm)"] == [printed, "1.512 to 2.512"]
    assert columns["ratio"] == ["0.9995", "2.012"]
    assert readable(frame[["ratio"]])[0][1] == ["1.000", "2.012"]  # alone it claims nothing
    renamed = frame.rename(columns={"ratio": "difference"})
    assert readable(renamed)[1][1] == [f"{low:.3f} to {high:.3f}", "1.512 to 2.512"]
