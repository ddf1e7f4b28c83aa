"""Intervals and p-values: of means over windows, documents and seeds, of shares, of several at once.

A mean, its interval and its p-value are one `Mean`, so that the interval excludes zero exactly where p is
below 0.05.
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, stats

from prunekit.errors import UsageError

LEVEL = 0.05  # two-sided
RESAMPLES = 2000
_LAG = 0.45  # correlation of neighbours for which the error of their mean is without bias: see `mean_of`


# --- means --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mean:
    """(value - truth) / error is Student's with `freedom` degrees of freedom (0: of a single value)."""

    value: float
    error: float
    freedom: float

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        reach = float(stats.t.isf(level / 2, self.freedom)) * self.error
        return self.value - reach, self.value + reach

    @property
    def p(self) -> float:
        """Of the truth being zero; the interval at any level excludes zero where p is below that level."""
        if not self.freedom or not self.error:  # the same everywhere: zero, or certainly not
            return float(not self.freedom or not self.value)
        return float(2 * stats.t.sf(abs(self.value) / self.error, self.freedom))

    @property
    def detectable(self) -> float:
        """By the error's median-unbiased estimate: of few windows the error itself is found too small."""
        middle = math.sqrt(self.freedom / stats.chi2.median(self.freedom)) if self.freedom else 1.0
        return detectable(self.error * middle, freedom=self.freedom)


def mean_of(values: np.ndarray, *, running: bool) -> Mean:
    """The mean of values (n,), float, with its uncertainty.

    running: the values are of windows in the order of a text, where neighbours resemble each other. The error
    is then from the slowest nu = n^(2/3) / 2 cosines of the series alone, error^2 = sum of (y . c_j)^2 / (nu
    n) with c_j(t) = sqrt(2/n) cos(pi j (t + 1/2) / n), and nu degrees of freedom; all n - 1 of them would be
    Student's test, which independent values (documents) get. It is multiplied by what makes it right on
    average for neighbours that correlate at 0.45, so that from n = 8 on 95 to 97 of 100 intervals hold the
    mean of independent normal losses, 93 to 95 that of losses that correlate at 0.5 and are skewed as well
    (tests/torture).

    Source: Mueller 2004; Lazarus, Lewis, Stock and Watson 2018 (equally weighted cosines).
    """
    n, centre = len(values), float(values.mean())
    if n < 2:
        return Mean(centre, math.inf, 0)
    if not running:
        return Mean(centre, float(values.std(ddof=1)) / math.sqrt(n), n - 1)
    cosines = _cosines(n)
    return Mean(centre, math.sqrt(((cosines @ (values - centre)) ** 2).mean() / n), len(cosines))


def exp_mean(values: np.ndarray) -> tuple[float, float, float]:
    """exp(mean) of losses of the windows of a text, with its 95 % interval: value, low, high."""
    mean = mean_of(values, running=True)
    with np.errstate(over="ignore"):  # of few windows far apart: infinity is right
        return tuple(np.exp([mean.value, *mean.interval()]).tolist())


def pooled(means: Sequence[Mean]) -> Mean:
    """The mean of independent means, each with the same weight; Satterthwaite's degrees of freedom."""
    squares = np.array([mean.error for mean in means]) ** 2
    within = np.array([mean.freedom for mean in means])
    known = within.all() and squares.any()
    freedom = squares.sum() ** 2 / (squares ** 2 / within).sum() if known else within.min()
    value = float(np.mean([mean.value for mean in means]))
    return Mean(value, math.sqrt(squares.sum()) / len(means), float(freedom))


def neighbours(values: np.ndarray) -> float:
    """The correlation of neighbouring values; NaN for fewer than three, or if all are the same."""
    apart = values - values.mean()
    return float(apart[1:] @ apart[:-1] / (apart @ apart)) if len(values) > 2 and apart.any() else math.nan


@lru_cache(maxsize=32)
def _cosines(n: int) -> np.ndarray:
    """The slowest cosines over n windows (nu, n), scaled so that their mean square has no bias at `_LAG`."""
    waves = np.arange(1 + max(1, round(n ** (2 / 3) / 2)))[:, None]
    basis = np.sqrt(np.where(waves, 2, 1) / n) * np.cos(np.pi * waves * (np.arange(n) + 0.5) / n)
    products = ((lag, (basis[:, lag:] * basis[:, :-lag]).sum(1)) for lag in range(1, min(n, 50)))
    variances = 1 + 2 * sum(_LAG ** lag * product for lag, product in products)
    return basis[1:] * math.sqrt(variances[0] / variances[1:].mean())  # the wave 0 is the mean


def detectable(error: float, *, power: float = 0.8, level: float = LEVEL, freedom: float = math.inf) -> float:
    """The smallest true difference that Student's test at `level` finds with probability `power`.

    error: standard error of the difference, estimated with `freedom` degrees of freedom. Where these are many
    it is (z_{1-level/2} + z_power) * error: with 5 % and 80 % 2.80 standard errors; with seven 3.27.
    """
    return float(_reach(power, level, freedom) * error) if error else 0.0


@lru_cache(maxsize=256)
def _reach(power: float, level: float, freedom: float) -> float:
    if not freedom:
        return math.inf
    normal = stats.norm.isf(level / 2) + stats.norm.isf(1 - power)
    if freedom > 1e4:
        return normal
    bound = stats.t.isf(level / 2, freedom)
    return optimize.brentq(lambda shift: stats.nct.sf(bound, freedom, shift) - power, 0, 2 * (normal + bound))


# --- shares and p-values ------------------------------------------------------------------------------------


def wilson(count: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; of nothing, NaN."""
    if not n:
        return math.nan, math.nan
    found = stats.binomtest(int(count), int(n)).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def graded(share: float, error: float, n: int) -> Mean:
    """The share of n answers that are right, with its standard error, as a `Mean`.

    Where all are right, or none, their own spread is zero and would claim certainty: the error is then the
    one whose Student's interval reaches Wilson's bound.
    """
    if not error and share in (0, 1) and n > 1:
        low, high = wilson(round(share * n), n)
        error = (high - low) / float(stats.t.isf(LEVEL / 2, n - 1))
    return Mean(share, error, n - 1)


def within(interval: tuple[float, float], least: float, most: float = math.inf) -> tuple[float, float]:
    """An interval without the values that the truth cannot have, which takes nothing from its coverage."""
    return max(interval[0], least), min(interval[1], most)


def holm(p: Iterable[float]) -> np.ndarray:
    """Holm's corrected p-values, float64 in the order given: k-th smallest of m times m - k + 1, monotone.

    What stays below 0.05 is distinguishable with at most 5 % risk of a single false alarm among all m (Holm
    1979).
    """
    p = np.asarray(list(p), dtype=float)
    order = np.argsort(p, kind="stable")
    raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(raised, 1.0)[np.argsort(order, kind="stable")]


def holm_levels(p: Iterable[float]) -> np.ndarray:
    """Levels at which intervals exclude zero just where Holm's corrected p is below 0.05: 0.05 p / p_holm."""
    p = np.asarray(list(p), dtype=float)
    raised = holm(p)
    return LEVEL * np.divide(p, raised, out=np.full(len(p), 1 / max(1, len(p))), where=raised > 0)


def corrected(means: Iterable[Mean]) -> list[tuple[float, float, float]]:
    """Of several means p and interval by Holm's correction: p, low, high; of one without, its own."""
    means = list(means)
    p = [mean.p for mean in means]
    return [(raised, *mean.interval(level))
            for mean, raised, level in zip(means, holm(p), holm_levels(p), strict=True)]


def verdict(p: float, difference: float) -> str:
    """`lower`, `higher` or `indistinguishable`."""
    return "indistinguishable" if p >= LEVEL else "lower" if difference < 0 else "higher"


# --- what is no mean: resampling ----------------------------------------------------------------------------


def resampled(n: int, seed: int) -> np.ndarray:
    """How much each of n neighbouring windows weighs in each resample, float64 (RESAMPLES, n), also negative.

    Weights move along the cosines of `mean_of`, by Student's law with nu degrees of freedom: so weighted, the
    means of any values (n,) lie around their mean as `mean_of` says, and what is computed from several such
    means as it follows.
    """
    cosines, generator = _cosines(n), np.random.default_rng(seed)
    steps = generator.normal(size=(RESAMPLES, len(cosines)))
    steps /= np.sqrt(generator.chisquare(len(cosines), (RESAMPLES, 1)) / len(cosines))
    return 1 / n + steps @ cosines / math.sqrt(n * len(cosines))


def percentiles(values: Iterable[float]) -> tuple[float, float]:
    """The 95 % interval from a statistic's values on resamples; NaN where none is finite."""
    values = np.array([value for value in values if math.isfinite(value)])
    low, high = np.quantile(values, [LEVEL / 2, 1 - LEVEL / 2]) if len(values) else (math.nan, math.nan)
    return float(low), float(high)


# --- seeds --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sources:
    """What a mean over seeds and items (windows, documents) is uncertain about.

    whole: the mean with its standard error for new seeds and new items; variances: of `seeds`, `items` and
    `rest` (their interaction), each the variance of one value; shape: how many seeds and items.
    """

    whole: Mean
    variances: dict[str, float]
    shape: tuple[int, int]

    @property
    def mean(self) -> float:
        return self.whole.value

    @property
    def error(self) -> float:
        return self.whole.error

    @property
    def interval(self) -> tuple[float, float]:
        """95 %."""
        return self.whole.interval()

    @property
    def p(self) -> float:
        """Of the mean being zero."""
        return self.whole.p

    @property
    def shares(self) -> dict[str, float]:
        """The share of the mean's squared error that more seeds, items, or more of either would remove."""
        seeds, items = self.shape
        parts = {"seeds": self.variances["seeds"] / seeds, "items": self.variances["items"] / items,
                 "rest": self.variances["rest"] / (seeds * items)}
        total = sum(parts.values())
        return {name: part / total if total else 0.0 for name, part in parts.items()}


def sources(values: np.ndarray, *, running: bool = False) -> Sources:
    """Two-way analysis of variance, y_si = mu + a_s + b_i + e_si, for values (seeds, items), float.

    values: usually paired differences, as nll of a minus nll of b for every calibration seed (rows) and
    window (columns), or correct(a) - correct(b) per document. running: the items are windows of a running
    text, whose neighbours resemble each other; squares over items are then those of the slow cosines of
    `mean_of`. Components are those of the mean squares, cut at zero; the interval is Student's with
    Satterthwaite's degrees of freedom, so that three seeds count as three (with three it holds the mean in 92
    to 96 of 100 cases). Raises UsageError below 2 seeds or 2 items.
    """
    y = np.asarray(values, dtype=float)
    if y.ndim != 2 or min(y.shape) < 2:
        raise UsageError(f"values of shape {y.shape} have no two sources of variance; give (seeds, items), "
                         "at least 2 of each.")
    s, n = y.shape
    rows, mean = y.mean(1, keepdims=True), y.mean()
    within = (y - rows) @ _cosines(n).T if running else y - rows  # of each seed, what differs between items
    degrees = within.shape[1] if running else n - 1
    columns = within.mean(0)
    freedom = np.array([s - 1, degrees, (s - 1) * degrees])
    squares = np.array([n * ((rows - mean) ** 2).sum(), s * (columns ** 2).sum(),
                        ((within - columns) ** 2).sum()]) / freedom
    seeds, items, rest = max(squares[0], squares[2]), max(squares[1], squares[2]), squares[2]
    whole, parts = seeds + items - rest, np.array([seeds, items, rest])
    error = math.sqrt(whole / y.size)
    satterthwaite = whole ** 2 / (parts ** 2 / freedom).sum() if error else 1.0
    # less: of a difference of squares
    found = Mean(float(mean), error, float(max(satterthwaite, freedom.min())))
    return Sources(found,
                   {"seeds": (seeds - rest) / n, "items": (items - rest) / s, "rest": rest}, (s, n))


# --- in print -----------------------------------------------------------------------------------------------


def decimals(values: Iterable[float], null: float, least: int = 3) -> int:
    """How many decimals, `least` to 9, print every value on its own side of `null` (no difference)."""
    sides = [(value, np.sign(value - null)) for value in values if math.isfinite(value)]
    return next((places for places in range(least, 9) if all(
        np.sign(float(f"{value:.{places}f}") - null) == side for value, side in sides)), 9)
