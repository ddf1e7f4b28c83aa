"""Comparisons with error bars: paired over windows, documents and seeds, "indistinguishable" where that is the answer.

    pk.compare(a, b)                    two perplexities on the same windows -> Comparison
    pk.compare_many({name: (a, b)})     several of them at once, Holm-corrected -> DataFrame
    pk.compare_documents(a, b, "acc")   two models' answers to the same questions -> DataFrame, one row per task
    pk.sources(differences)             how much of a difference is seeds, how much is windows or documents -> Sources
    pk.holm(p)                          p-values corrected for their number
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from ..errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from .perplexity import Perplexity

LEVEL = 0.05  # two-sided
_RESAMPLES = 2000


@lru_cache(maxsize=16)
def _resampled(n: int) -> np.ndarray:
    """How often each of n windows is drawn in each resample, as weights (resamples, n) float32; fixed seed."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES).astype(np.float32) / n


def bootstrap_means(values: np.ndarray) -> np.ndarray:
    """Means of bootstrap resamples of values (n,): float64 (2000,), the same for the same n and values."""
    centre = values.mean()
    return centre + _resampled(len(values)) @ (values - centre)


def holm(p: Iterable[float]) -> np.ndarray:
    """Holm's corrected p-values, float64 in the order given: the k-th smallest of m times (m - k + 1), made monotone.

    What stays below 0.05 is distinguishable with at most 5 % risk of a single false alarm among all m (Holm 1979).
    """
    p = np.asarray(list(p), dtype=float)
    order = np.argsort(p, kind="stable")
    raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(raised, 1.0)[np.argsort(order, kind="stable")]


def detectable(error: float, *, power: float = 0.8, level: float = LEVEL) -> float:
    """The smallest true difference that a test at `level` finds with probability `power`: (z_{1-level/2} + z_power) * error.

    error: standard error of the difference. With 5 % and 80 % this is 2.80 standard errors.
    """
    return float((stats.norm.isf(level / 2) + stats.norm.isf(1 - power)) * error)


# --- perplexities --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Of two models on the same n windows.

    ratio: ppl(a) / ppl(b); interval: its 95 % paired bootstrap interval; p: of the paired t-test on the windows'
    differences in nll (a bootstrap's p-value could not become small enough for Holm); detectable: the smallest ratio
    above 1 that these windows would find with probability 0.8.
    """

    ratio: float
    interval: tuple[float, float]
    n: int
    p: float
    detectable: float

    @property
    def distinguishable(self) -> bool:
        return self.n > 1 and not self.interval[0] <= 1 <= self.interval[1]  # one window says nothing about its spread

    @property
    def verdict(self) -> str:
        """`lower`, `higher` or `indistinguishable`, by the interval (one comparison; for several see `compare_many`)."""
        return _verdict(self.distinguishable, self.ratio - 1)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.verdict} (ratio {self.ratio:.3f}, 95 % interval {low:.3f} to {high:.3f}, {self.n} windows)"


def compare(a: Perplexity, b: Perplexity) -> Comparison:
    """Perplexity of a against b: exp(mean of the windows' differences in nll), resampling windows as pairs.

    a, b: `Perplexity` on the same windows. Raises UsageError if they are not paired.
    """
    if len(a.nll) != len(b.nll) or a.meta.get("seqlen") != b.meta.get("seqlen"):
        raise UsageError(f"perplexities over {len(a.nll)} and {len(b.nll)} windows are not paired; evaluate both on the same.")
    differences = a.nll - b.nll
    low, high = np.quantile(bootstrap_means(differences), [0.025, 0.975])
    return Comparison(math.exp(differences.mean()), (math.exp(low), math.exp(high)), len(differences), _t_test(differences),
                      math.exp(detectable(_error(differences))))


def compare_many(pairs: Mapping[Any, tuple[Perplexity, Perplexity]]) -> pd.DataFrame:
    """`compare` for every pair: columns name, ratio, low, high, n, p, p_holm, detectable, verdict (by p_holm)."""
    import pandas as pd

    found = {name: compare(a, b) for name, (a, b) in pairs.items()}
    rows = [{"name": name, "ratio": c.ratio, "low": c.interval[0], "high": c.interval[1], "n": c.n, "p": c.p, "p_holm": p,
             "detectable": c.detectable, "verdict": _verdict(p < LEVEL, c.ratio - 1)}
            for (name, c), p in zip(found.items(), holm(c.p for c in found.values()), strict=True)]
    return pd.DataFrame(rows, columns=["name", "ratio", "low", "high", "n", "p", "p_holm", "detectable", "verdict"])


# --- documents -----------------------------------------------------------------------------------------------------


def compare_documents(first: pd.DataFrame, second: pd.DataFrame, metric: str = "acc") -> pd.DataFrame:
    """Two models' answers to the same questions, compared in pairs: one row per task, and one for the mean over tasks.

    first, second: documents as `zero_shot(…, return_documents=True)` gives them. Columns: task, metric, n, first, second
    (mean values), difference = first - second with its 95 % paired bootstrap interval (low, high), only_first and
    only_second (documents that one alone gets right), p, p_holm (over the tasks), detectable, verdict (by p_holm).
    p is McNemar's exact test where values are right or wrong, a paired t-test elsewhere. Fewer than six disagreements are
    never significant in McNemar's test, so what it can detect has a floor, however alike the two are. The row `mean` gives
    every task the same weight; its p is that of the normal test and its own single question, so it is not corrected.

    Raises UsageError if the two hold other documents, or none with that metric.
    """
    import pandas as pd

    pairs = _paired(first, second, metric)
    differences = {task: (rows["first"] - rows["second"]).to_numpy() for task, rows in pairs.groupby("task", sort=False)}
    frame = pd.DataFrame([_task_row(task, metric, rows) for task, rows in pairs.groupby("task", sort=False)])
    frame["p_holm"] = holm(frame["p"])
    if len(differences) > 1:
        frame = pd.concat([frame, pd.DataFrame([_mean_row(frame, metric, differences)])], ignore_index=True)
    frame["verdict"] = [_verdict(row.p_holm < LEVEL, row.difference) for row in frame.itertuples()]
    return frame[["task", "metric", "n", "first", "second", "difference", "low", "high", "only_first", "only_second", "p",
                  "p_holm", "detectable", "verdict"]]


def _paired(first: pd.DataFrame, second: pd.DataFrame, metric: str) -> pd.DataFrame:
    keys = ["task", "document"]
    a, b = (frame.loc[frame["metric"] == metric, [*keys, "value"]] for frame in (first, second))
    if a.empty or b.empty:
        known = sorted(set(first["metric"]) | set(second["metric"]))
        raise UsageError(f"there are no documents with the metric '{metric}' (known: {', '.join(known)}).")
    pairs = a.rename(columns={"value": "first"}).merge(b.rename(columns={"value": "second"}), on=keys, validate="one_to_one")
    if len(pairs) != len(a) or len(pairs) != len(b):
        raise UsageError(f"{len(a)} and {len(b)} documents are not the same ones ({len(pairs)} in common); evaluate both models "
                         "on the same tasks with the same limit.")
    return pairs


def _task_row(task: str, metric: str, rows: pd.DataFrame) -> dict[str, Any]:
    first, second = rows["first"].to_numpy(float), rows["second"].to_numpy(float)
    difference = first - second
    low, high = np.quantile(_resampled_mean(difference), [0.025, 0.975])
    only_first, only_second = int((difference > 0).sum()), int((difference < 0).sum())
    binary = np.isin(np.concatenate([first, second]), (0, 1)).all()
    p = _mcnemar(only_first, only_second) if binary else _t_test(difference)
    least = _mcnemar_floor(len(rows)) if binary else 0.0
    return {"task": task, "metric": metric, "n": len(rows), "first": first.mean(), "second": second.mean(),
            "difference": difference.mean(), "low": low, "high": high, "only_first": only_first, "only_second": only_second,
            "p": p, "detectable": max(detectable(_error(difference)), least)}


def _mean_row(frame: pd.DataFrame, metric: str, differences: Mapping[str, np.ndarray]) -> dict[str, Any]:
    error = math.sqrt(sum(_error(values) ** 2 for values in differences.values())) / len(differences)
    difference = frame["difference"].mean()
    low, high = np.quantile(np.mean([_resampled_mean(values, place) for place, values in enumerate(differences.values())],
                                    axis=0), [0.025, 0.975])
    p = float(2 * stats.norm.sf(abs(difference) / error)) if error else 1.0
    return {"task": "mean", "metric": metric, "n": frame["n"].sum(), "first": frame["first"].mean(),
            "second": frame["second"].mean(), "difference": difference, "low": low, "high": high,
            "only_first": frame["only_first"].sum(), "only_second": frame["only_second"].sum(), "p": p, "p_holm": p,
            "detectable": detectable(error) if error else math.nan}


def _resampled_mean(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """As `bootstrap_means`, by how often each distinct value is drawn: thousands of documents, but few values."""
    distinct, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=_RESAMPLES)
    return drawn @ distinct / len(values)


def _mcnemar(only_first: int, only_second: int) -> float:
    """Exact: among the documents on which the two disagree, each is as likely to be the one that is right."""
    disagreeing = only_first + only_second
    return float(stats.binomtest(only_first, disagreeing).pvalue) if disagreeing else 1.0


def _mcnemar_floor(n: int, power: float = 0.8) -> float:
    """The difference at which n documents, all disagreements one way, are significant with that probability."""
    fewest = math.ceil(1 - math.log2(LEVEL))  # 2 / 2^6 < 0.05
    return float(stats.beta.ppf(power, fewest, n - fewest + 1)) if n >= fewest else math.inf


# --- seeds ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sources:
    """What a mean over seeds and items (windows, documents) is uncertain about.

    mean; error: its standard error for new seeds and new items; interval: 95 %; p: of the mean being zero; variances:
    of `seeds`, `items` and `rest` (their interaction), each the variance of one value.
    """

    mean: float
    error: float
    interval: tuple[float, float]
    p: float
    variances: dict[str, float]
    shape: tuple[int, int]

    @property
    def shares(self) -> dict[str, float]:
        """The share of the mean's squared error that more seeds, more items, or more of either would remove."""
        seeds, items = self.shape
        parts = {"seeds": self.variances["seeds"] / seeds, "items": self.variances["items"] / items,
                 "rest": self.variances["rest"] / (seeds * items)}
        total = sum(parts.values())
        return {name: part / total if total else 0.0 for name, part in parts.items()}

    @property
    def distinguishable(self) -> bool:
        return self.p < LEVEL


def sources(values: np.ndarray) -> Sources:
    """Two-way analysis of variance, y_si = mu + a_s + b_i + e_si, for values (seeds, items), float.

    values: usually paired differences, as nll of a minus nll of b for every calibration seed (rows) and window (columns),
    or correct(a) - correct(b) per document. Components are those of the mean squares, cut at zero; the interval is Student's
    with Satterthwaite's degrees of freedom, so that three seeds count as three (with three it holds the mean in 92 to 96 of
    100 cases). Raises UsageError below 2 seeds or 2 items.
    """
    y = np.asarray(values, dtype=float)
    if y.ndim != 2 or min(y.shape) < 2:
        raise UsageError(f"values of shape {y.shape} have no two sources of variance; give (seeds, items), at least 2 of each.")
    s, n = y.shape
    rows, columns, mean = y.mean(1, keepdims=True), y.mean(0, keepdims=True), y.mean()
    freedom = np.array([s - 1, n - 1, (s - 1) * (n - 1)])
    squares = np.array([n * ((rows - mean) ** 2).sum(), s * ((columns - mean) ** 2).sum(),
                        ((y - rows - columns + mean) ** 2).sum()]) / freedom
    seeds, items, rest = max(squares[0], squares[2]), max(squares[1], squares[2]), squares[2]
    error = math.sqrt((seeds + items - rest) / y.size)
    within = (seeds + items - rest) ** 2 / (np.array([seeds, items, rest]) ** 2 / freedom).sum() if error else 1.0
    reach = stats.t.ppf(1 - LEVEL / 2, within) * error
    p = float(2 * stats.t.sf(abs(mean) / error, within)) if error else float(mean == 0)
    return Sources(float(mean), error, (mean - reach, mean + reach), p,
                   {"seeds": (seeds - rest) / n, "items": (items - rest) / s, "rest": rest}, (s, n))


# --- small ---------------------------------------------------------------------------------------------------------


def _error(values: np.ndarray) -> float:
    """Standard error of a mean; infinite for a single value, which says nothing about its spread."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf


def _t_test(differences: np.ndarray) -> float:
    if len(differences) < 2 or not differences.std():
        return float(len(differences) < 2 or not differences.any())  # equal everywhere: 1; the same shift everywhere: 0
    return float(stats.ttest_1samp(differences, 0).pvalue)


def _verdict(distinguishable: bool, difference: float) -> str:
    return "indistinguishable" if not distinguishable else "lower" if difference < 0 else "higher"
