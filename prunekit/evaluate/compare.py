"""Comparisons with error bars: paired over windows and documents; "indistinguishable" where that is so.

    pk.compare(a, b)                    two perplexities on the same windows -> Comparison
    pk.compare_many({name: (a, b)})     several of them at once, Holm-corrected -> DataFrame
    pk.compare_documents(a, b, "acc")   two models' answers to the same questions -> DataFrame, a row per task
    pk.sources(differences)             how much of a difference is seeds, how much items -> Sources
    pk.holm(p)                          p-values corrected for their number

The statistics are those of `evaluate/intervals.py`.
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from prunekit.errors import UsageError
from prunekit.evaluate.intervals import (
    LEVEL,
    Mean,
    corrected,
    decimals,
    holm,
    holm_levels,
    mean_of,
    neighbours,
    pooled,
    sources,
    verdict,
    within,
)

if TYPE_CHECKING:
    import pandas as pd

    from prunekit.evaluate.measure import Measured
    from prunekit.evaluate.perplexity import Perplexity


# --- perplexities -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Of two models on the same n windows.

    ratio: ppl(a) / ppl(b); interval: its 95 % interval; p: of a ratio of 1, from the same test of the
    windows' differences in nll, so below 0.05 exactly where the interval excludes 1; detectable: the smallest
    ratio above 1 that these windows would find with probability 0.8; correlation: of neighbouring windows'
    differences, which the interval allows for (NaN below three windows).
    """

    ratio: float
    interval: tuple[float, float]
    n: int
    p: float
    detectable: float
    correlation: float

    @property
    def verdict(self) -> str:
        """`lower`, `higher` or `indistinguishable` (one comparison; for several see `compare_many`)."""
        return verdict(self.p, self.ratio - 1)

    def __str__(self) -> str:
        low, high = self.interval
        places = decimals((self.ratio, low, high), 1)
        ratio, low, high = (f"{value:.{places}f}" for value in (self.ratio, low, high))
        return f"{self.verdict} (ratio {ratio}, 95 % interval {low} to {high}, {self.n} windows)"


def compare(a: Perplexity, b: Perplexity) -> Comparison:
    """Perplexity of a against b: exp(mean of the windows' differences in nll).

    a, b: `Perplexity` on the same windows, in the order of the text. Raises UsageError if they are not
    paired.
    """
    differences = loss_differences(a, b)
    return _comparison(differences, mean_of(differences, running=True))


def _comparison(differences: np.ndarray, mean: Mean) -> Comparison:
    with np.errstate(over="ignore"):  # of few windows far apart: infinity is right
        ratio, low, high, least = np.exp([mean.value, *mean.interval(), mean.detectable]).tolist()
    return Comparison(ratio, (low, high), len(differences), mean.p, least, neighbours(differences))


COMPARED = ["ratio", "holm_low", "holm_high", "p_holm", "verdict"]  # what people read of `compare_many`


def compare_many(pairs: Mapping[Any, tuple[Perplexity, Perplexity]], names: Sequence[str] = ()
                 ) -> pd.DataFrame:
    """`compare` for every pair: columns name, ratio, low, high, n, correlation, p, p_holm, holm_low,
    holm_high, detectable, verdict (by p_holm).

    names: of columns, for the parts of a key that is a tuple; they stand last, in the place of name.
    low, high: 95 %, of this pair alone; holm_low, holm_high: at the level that Holm's correction leaves it,
    so that they exclude 1 exactly where p_holm is below 0.05.
    """
    import pandas as pd

    differences = [loss_differences(*pair) for pair in pairs.values()]
    means = [mean_of(values, running=True) for values in differences]
    found = map(_comparison, differences, means)
    with np.errstate(over="ignore"):
        tested = [(p, *np.exp(interval)) for p, *interval in corrected(means)]
    rows = [(name, c.ratio, *c.interval, c.n, c.correlation, c.p, *by_holm, c.detectable,
             verdict(by_holm[0], c.ratio - 1)) for name, c, by_holm in zip(pairs, found, tested, strict=True)]
    columns = ["name", "ratio", "low", "high", "n", "correlation", "p", "p_holm", "holm_low", "holm_high",
               "detectable", "verdict"]
    return _named(pd.DataFrame(rows, columns=columns), names)


def _named(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    if names:
        frame[list(names)] = frame.pop("name").tolist() or np.empty((0, len(names)), dtype=str)
    return frame


def compare_targets(measured: Mapping[tuple[str, str], Measured], pairs: Iterable[tuple[str, str]],
                    names: tuple[str, str] = ("first", "second")) -> pd.DataFrame:
    """`compare_many` of pairs of names at every target and on every text of `measure_targets`: its columns
    but name, and `names` (those of a pair), target, text (where there are several)."""
    compared = compare_many({(first, second, target, text): (ppl, measured[second, target].perplexities[text])
                             for first, second in pairs
                             for (name, target), result in measured.items() if name == first
                             for text, ppl in result.perplexities.items()},
                            [*names, "target", "text"])
    return compared if compared["text"].any() else compared.drop(columns="text")


def leaders(measured: Mapping[tuple[str, str], Perplexity]) -> pd.DataFrame:
    """Of every setting the name whose perplexity is lowest, against every other name there.

    measured: (name, setting) -> perplexity on the same windows. Columns: setting, first, second, and those of
    `compare_many` but name. Who is first was read off the same windows: so the correction is over all pairs
    of names of all settings, any of which could have been the one that is looked at.
    """
    everyone: dict[str, list[str]] = {}
    for name, setting in measured:
        everyone.setdefault(setting, []).append(name)
    ranked = {setting: sorted(names, key=lambda name: measured[name, setting].value)
              for setting, names in everyone.items()}
    pairs = [(setting, *pair) for setting, names in ranked.items() for pair in combinations(names, 2)]
    columns = ["setting", "first", "second"]
    frame = compare_many({(setting, first, second): (measured[first, setting], measured[second, setting])
                          for setting, first, second in pairs}, columns)
    first = [ranked[setting][0] == name for setting, name, _ in pairs]
    return frame.loc[first, [*columns, *frame.columns.drop(columns)]].reset_index(drop=True)


def compare_draws(draws: Sequence[Mapping[Any, Perplexity | Measured]], first: str) -> pd.DataFrame:
    """Perplexity of `first` divided by every other name's, for new draws of statistics and of test windows.

    draws: by (name, target) what `measure_targets` gives, or by that or (name, target, text) perplexities,
    each of its own calibration windows (those that `first` was chosen by are not new); names are the last's.
    Columns rival, target, text (of several), draws, n (windows of each), first and second (perplexities over
    all draws), ratio, low, high (95 %), holm_low, holm_high, p_holm, verdict; see `sources`.
    """
    import pandas as pd

    every = [{(*key, text)[:3]: ppl for key, found in drawn.items()
              for text, ppl in getattr(found, "perplexities", {"": found}).items()} for drawn in draws]
    nll = {key: np.array([drawn[key].nll for drawn in every]) for key in every[-1]}
    pairs = {key: (nll[first, *key[1:]], values) for key, values in nll.items() if key[0] != first}
    over = [sources(ours - theirs, running=True).whole for ours, theirs in pairs.values()]
    rows = [(*key, len(draws), ours.shape[1], *np.exp([ours.mean(), theirs.mean(), mean.value]),
             *np.exp([*mean.interval(), *interval]), p, verdict(p, mean.value))
            for (key, (ours, theirs)), mean, (p, *interval) in zip(pairs.items(), over, corrected(over),
                                                                    strict=True)]
    frame = pd.DataFrame(rows, columns=["rival", "target", "text", "draws", "n", "first", "second", "ratio",
                                        "low", "high", "holm_low", "holm_high", "p_holm", "verdict"])
    return frame if frame["text"].any() else frame.drop(columns="text")


def loss_differences(a: Perplexity, b: Perplexity) -> np.ndarray:
    """a's loss minus b's, window by window. Raises UsageError if they are not of the same windows."""
    if (one := a.meta.get("begins_with")) != (other := b.meta.get("begins_with")):
        told = ["anywhere in a text" if token is None else f"with token {token}" for token in (one, other)]
        raise UsageError(f"perplexities over windows that begin {told[0]} and windows that begin {told[1]} "
                         "are not paired; evaluate both on the same.")
    unlike = len(a.nll) != len(b.nll) or a.meta.get("seqlen") != b.meta.get("seqlen")
    if unlike or a.text and b.text and a.text != b.text:
        raise UsageError(f"perplexities over {len(a.nll)} and {len(b.nll)} windows that are not the same are "
                         "not paired; evaluate both on the same.")
    return a.nll - b.nll


# --- documents ----------------------------------------------------------------------------------------------


def compare_documents(first: pd.DataFrame, second: pd.DataFrame, metric: str = "acc", *,
                      level: float = LEVEL) -> pd.DataFrame:
    """Two models' answers to the same questions, in pairs: a row per task, and one for the mean over tasks.

    first, second: documents as `zero_shot(…, return_documents=True)` gives them. Columns: task, metric, n,
    first, second (mean values), difference = first - second with its interval (low, high; 95 % unless `level`
    is another), only_first and only_second (documents that one alone gets right), p, p_holm (over the tasks),
    holm_low and holm_high (the interval that excludes 0 where p_holm is below 0.05), detectable, verdict (by
    p_holm).

    p is McNemar's exact test where values are right or wrong, a paired t-test elsewhere. Fewer than six
    disagreements are never significant in McNemar's test, so what it can detect has a floor, however alike
    the two are. Its interval is the wider, at each end, of what the test leaves of the disagreements (Clopper
    and Pearson) and of Bonett's and Price's (2012), but excludes 0 exactly where p is below `level`. The row
    `mean` gives every task the same weight; its p is of its own single question, so it is not corrected.

    Raises UsageError if the two hold other documents, one of them twice, or none with that metric.
    """
    import pandas as pd

    pairs = _paired(first, second, metric)
    tasks = dict(list(pairs.groupby("task", sort=False)))
    differences = {task: (rows["first"] - rows["second"]).to_numpy() for task, rows in tasks.items()}
    frame = pd.DataFrame([_task_row(task, metric, rows, level) for task, rows in tasks.items()])
    frame["p_holm"] = holm(frame["p"])
    frame[["holm_low", "holm_high"]] = [_interval(values, at) for values, at in
                                        zip(differences.values(), holm_levels(frame["p"]), strict=True)]
    if len(differences) > 1:
        mean = pd.DataFrame([_mean_row(frame, metric, differences, level)])
        frame = pd.concat([frame, mean], ignore_index=True)
    frame["verdict"] = [verdict(row.p_holm, row.difference) for row in frame.itertuples()]
    return frame[["task", "metric", "n", "first", "second", "difference", "low", "high", "only_first",
                  "only_second", "p", "p_holm", "holm_low", "holm_high", "detectable", "verdict"]]


def _paired(first: pd.DataFrame, second: pd.DataFrame, metric: str) -> pd.DataFrame:
    keys = ["task", "document"]
    a, b = (frame.loc[frame["metric"] == metric, [*keys, "value"]] for frame in (first, second))
    if a.empty or b.empty:
        known = sorted(set(first["metric"]) | set(second["metric"]))
        raise UsageError(f"there are no documents with the metric '{metric}' (known: {', '.join(known)}).")
    for frame in (a, b):
        if (again := frame.duplicated(keys)).any():
            task, document = frame.loc[again, keys].iloc[0]
            raise UsageError(f"document '{document}' of task '{task}' occurs more than once; give those of "
                             "one model.")
    pairs = a.rename(columns={"value": "first"}).merge(b.rename(columns={"value": "second"}), on=keys)
    if len(pairs) != len(a) or len(pairs) != len(b):
        raise UsageError(f"{len(a)} and {len(b)} documents are not the same ones ({len(pairs)} in common); "
                         "evaluate both models on the same tasks with the same limit.")
    return pairs


def _task_row(task: str, metric: str, rows: pd.DataFrame, level: float) -> dict[str, Any]:
    difference = (rows["first"] - rows["second"]).to_numpy()
    low, high = _interval(difference, level)
    only_first, only_second = int((difference > 0).sum()), int((difference < 0).sum())
    binary, mean = _binary(difference), _mean(difference)
    return {"task": task, "metric": metric, "n": len(rows), "first": rows["first"].mean(),
            "second": rows["second"].mean(), "difference": mean.value, "low": low, "high": high,
            "only_first": only_first, "only_second": only_second,
            "p": _mcnemar(only_first, only_second) if binary else mean.p,
            "detectable": max(mean.detectable, _mcnemar_floor(len(rows)) if binary else 0.0)}


def _mean_row(frame: pd.DataFrame, metric: str, differences: Mapping[str, np.ndarray], level: float
              ) -> dict[str, Any]:
    mean = pooled([_mean(values) for values in differences.values()])
    shares = all(map(_binary, differences.values()))
    low, high = within(mean.interval(level), -1, 1) if shares else mean.interval(level)
    return {"task": "mean", "metric": metric, "n": frame["n"].sum(), "first": frame["first"].mean(),
            "second": frame["second"].mean(), "difference": mean.value, "low": low, "high": high,
            "only_first": frame["only_first"].sum(), "only_second": frame["only_second"].sum(), "p": mean.p,
            "p_holm": mean.p, "holm_low": low, "holm_high": high, "detectable": mean.detectable}


def _binary(differences: np.ndarray) -> bool:
    return bool(np.isin(differences, (-1, 0, 1)).all())


def _mean(differences: np.ndarray) -> Mean:
    """Of right or wrong answers with Bonett's and Price's error, as if each model had won once more."""
    if not _binary(differences):
        return mean_of(differences, running=False)
    n, more = len(differences), differences.sum()
    return Mean(more / n, math.sqrt(np.abs(differences).sum() + 2 - more ** 2 / (n + 2)) / (n + 2), n - 1)


def _interval(differences: np.ndarray, level: float) -> tuple[float, float]:
    interval = _mean(differences).interval(level)
    if not _binary(differences):
        return interval
    low, high = within(interval, -1, 1)
    if not (unlike := int(np.abs(differences).sum())):
        return low, high
    found = stats.binomtest(int((differences > 0).sum()), unlike).proportion_ci(1 - level, method="exact")
    bottom, top = ((2 * share - 1) * unlike / len(differences) for share in found)
    return bottom if low <= 0 < bottom else min(low, bottom), top if top < 0 <= high else max(high, top)


def _mcnemar(only_first: int, only_second: int) -> float:
    """Exact: among the documents on which the two disagree, each is as likely to be the one that is right."""
    disagreeing = only_first + only_second
    return float(stats.binomtest(only_first, disagreeing).pvalue) if disagreeing else 1.0


def _mcnemar_floor(n: int) -> float:
    """The difference at which n documents, disagreeing one way only, are significant four times in five."""
    fewest = math.ceil(1 - math.log2(LEVEL))  # 2 / 2^6 < 0.05
    return float(stats.beta.ppf(0.8, fewest, n - fewest + 1)) if n >= fewest else math.inf


def compare_means(pairs: Mapping[Any, tuple[pd.DataFrame, pd.DataFrame]], metric: str = "acc", *,
                  names: Sequence[str] = ()) -> pd.DataFrame:
    """The mean over tasks of `compare_documents` for every pair, as `compare_many` does for perplexities.

    A row per pair: name, and the columns of `compare_documents` without task; p_holm, holm_low, holm_high and
    verdict are corrected over the pairs. Raises UsageError as `compare_documents` does.
    """
    import pandas as pd

    def mean(pair: tuple[pd.DataFrame, pd.DataFrame], level: float = LEVEL) -> pd.Series:
        return compare_documents(*pair, metric, level=level).iloc[-1].drop("task")

    if not pairs:
        raise UsageError("there are no pairs of answers to compare; give at least one.")
    frame = pd.DataFrame([{"name": name, **mean(pair)} for name, pair in pairs.items()])
    frame["p_holm"] = holm(frame["p"])
    corrected = [mean(*at) for at in zip(pairs.values(), holm_levels(frame["p"]), strict=True)]
    frame[["holm_low", "holm_high"]] = [(row["low"], row["high"]) for row in corrected]
    frame["verdict"] = [verdict(row.p_holm, row.difference) for row in frame.itertuples()]
    return _named(frame, names)
