"""What a search learned, and whether it is real: tests that allow for their number and for kinship.

    pk.findings(pk.traits(pk.history(paths)))     every test, Holm-corrected; "no signal" is an answer

Two things would make chance look like knowledge here. Candidates are relatives: a lucky tree leaves many
children that share all its traits, so every interval is from resampling whole families (all descendants of
one random tree through first parents), and is never narrower than for independent trees; operators are
compared on the same parent. And there are a hundred questions, so a finding must survive Holm's correction
over all of them. What is left is an association: traits that travel together are not told apart.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from prunekit.analysis.traits import SHAPE, counted, first_parents
from prunekit.errors import UsageError
from prunekit.evaluate.intervals import LEVEL, Mean, holm

LEAST = 10  # distinct metrics with a trait, and without it, before it is asked about
FEWEST = 50  # distinct metrics before anything is asked
_RESAMPLES = 500
_INFORMATION = 2.5  # variance of the hits among siblings, from which on they are about normal

_COLUMNS = ["kind", "name", "effect", "low", "high", "n", "with", "families", "p", "p_holm", "verdict"]
_WORDS = {"correlation": ("higher loss", "lower loss"),  # of an effect above 0, and below
          "best tenth": ("more among the best", "fewer among the best"),
          "operator": ("improves more often", "improves less often"), "model": ("predicts", "")}


def findings(frame: pd.DataFrame, model: bool = True) -> pd.DataFrame:
    """All questions about `traits`, each with its 95 % interval, and verdicts that hold for all together.

    kind "correlation": Spearman's between a trait (of a pair: whether it occurs) and the loss, ranks taken
    within each journal; "best tenth": log odds of a symbol or pair in the best tenth of its journal against
    the rest (Haldane: 1/2 added to every count); "operator": log odds that its children beat their first
    parent, against other children of the same parent; "model" (needs scikit-learn): `skill`. Intervals and p
    are from a standard error, that of whole families resampled or of independent metrics, whichever is
    larger, and Student's t with families - 1 degrees of freedom; p of odds also never below Fisher's exact
    one; an operator's are those of Peto and of Cochran, Mantel and Haenszel. verdict: "no signal" unless
    p_holm, over all rows, is below 0.05. with: metrics that have the trait; families: theirs (of an operator:
    first parents that it and others made children of).

    Rows are sorted by p. Fewer than 50 distinct metrics answer nothing: no rows.
    """
    rows = []
    if len(frame) >= FEWEST:
        frame = frame.reset_index(drop=True)
        pairs = _pairs(frame)
        rows = [*_correlations(frame, pairs), *_best_tenth(frame, pairs), *_operators(frame)]
        if model and frame["family"].nunique() >= 10:
            rows.append(skill(frame)[0])
    answers = pd.DataFrame(rows, columns=_COLUMNS).sort_values(["p", "kind", "name"], ignore_index=True)
    answers["p_holm"] = holm(answers["p"])
    answers["verdict"] = [_WORDS[row.kind][int(row.effect < 0)] if row.p_holm < LEVEL else "no signal"
                          for row in answers.itertuples()]
    return answers


def replicated(found: pd.DataFrame, elsewhere: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The ten strongest correlations of `findings`, and whether they are found among other metrics, too.

    elsewhere: name -> `findings` of those. Columns name, effect, low, high, and for each of elsewhere: "yes"
    (its own 95 % interval lies on the same side of 0), "not shown" (it does not), "not asked" (too few
    metrics have the trait, or lack it).
    """
    chosen = found[(found["verdict"] != "no signal") & (found["kind"] == "correlation")].head(10)
    table = chosen[["name", "effect", "low", "high"]].set_index("name")
    for name, other in elsewhere.items():
        theirs = other[other["kind"] == "correlation"].set_index("name").reindex(table.index)[["low", "high"]]
        same = np.sign(theirs).eq(np.sign(table["effect"]), axis=0).all(axis=1)
        table[name] = same.map({True: "yes", False: "not shown"}).where(theirs["low"].notna(), "not asked")
    return table.reset_index()


def _numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """The traits as numbers, those that vary."""
    table = frame[[*SHAPE, *counted(frame)]].astype(float)
    return table[[name for name in table if table[name].nunique() > 1]]


def _correlations(frame: pd.DataFrame, pairs: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for name, values in _numbers(frame).join(pairs.astype(float)).items():
        known = values.notna()
        if min(known.sum(), (values[known] != values[known].mode()[0]).sum()) < LEAST:
            continue
        part = frame[known]
        x, y = (_centred_ranks(column, part["journal"]) for column in (values[known], part["fitness"]))
        if x.any() and y.any():
            answer = _correlated(x, y, part["family"], (values[known] != 0).to_numpy())
            within = {"low": max(answer["low"], -1.0), "high": min(answer["high"], 1.0)}
            rows.append({"kind": "correlation", "name": name, **answer, **within})
    return rows


def _pairs(frame: pd.DataFrame) -> pd.DataFrame:
    """Which metric has which pair, of those that enough have and enough have not: bool, a column per pair."""
    held = frame["pairs"].str.split().explode().dropna()
    table = pd.crosstab(held.index, held).reindex(frame.index, fill_value=0) > 0
    return table.loc[:, table.sum().between(LEAST, len(frame) - LEAST)]


def _centred_ranks(values: pd.Series, journal: pd.Series) -> np.ndarray:
    ranks = values.groupby(journal).rank(pct=True)
    return (ranks - ranks.groupby(journal).transform("mean")).to_numpy()


def _correlated(x: np.ndarray, y: np.ndarray, family: pd.Series, has: np.ndarray) -> dict[str, Any]:
    values = np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y])
    return _tested(values, family, _correlation, 1 / math.sqrt(len(x) - 2), has)


def _correlation(sums: np.ndarray) -> np.ndarray:
    """From the sums (…, 6) of 1, x, y, x², y², xy. Of families without any spread in x it is 0: a resample
    that misses the only carriers of a trait knows nothing about it."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    return (xy - x * y / n) / np.sqrt(np.maximum(xx - x * x / n, 1e-9) * np.maximum(yy - y * y / n, 1e-9))


def _best_tenth(frame: pd.DataFrame, pairs: pd.DataFrame) -> list[dict[str, Any]]:
    best = (frame.groupby("journal")["fitness"].rank(pct=True) <= 0.1).to_numpy()
    rows = []
    for name, has in (frame[counted(frame)] > 0).join(pairs).items():
        has = has.to_numpy()
        if LEAST <= has.sum() <= len(has) - LEAST:
            rows.append({"kind": "best tenth", "name": name, **_odds(has, best, frame["family"])})
    return rows


def _operators(frame: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    bred = frame[frame["gain"].notna()]
    bred = bred.assign(parent=first_parents(bred))
    for preset, part in bred.groupby("preset"):  # which differ in how often anything improves
        for name in sorted(part["operator"].unique()):
            by = part["operator"] == name
            enough = LEAST <= by.sum() <= len(by) - LEAST
            if enough and (answer := _siblings(by, part["gain"] > 0, [part["journal"], part["parent"]])):
                rows.append({"kind": "operator", "name": f"{name} ({preset})", **answer})
    return rows


def _siblings(has: pd.Series, hit: pd.Series, parent: pd.Series | list[pd.Series]) -> dict[str, Any] | None:
    """Log odds of a hit among the children of the same parent, or None if too few parents tell.

    Per parent, of n children m have it and h hit: hits beyond the expected, U = hits - m h / n, and their
    variance V = m (n-m) h (n-h) / (n² (n-1)); log odds = ΣU / ΣV with standard error 1/√ΣV (Peto), p that of
    Cochran, Mantel and Haenszel. A parent with a high loss is improved on by any operator, and not every
    operator suits every parent, so children of different parents do not compare.
    """
    cells = pd.DataFrame({"n": 1, "m": has, "h": hit, "both": has & hit}).groupby(parent).sum().astype(float)
    n, m, h, both = (cells[name] for name in ("n", "m", "h", "both"))
    V = m * (n - m) * h * (n - h) / (n**2 * (n - 1).clip(lower=1))
    if V.sum() < _INFORMATION:
        return None
    odds, tell = Mean((both - m * h / n).sum() / V.sum(), V.sum() ** -0.5, math.inf), V > 0
    return _answer(odds, n=int(n[tell].sum()), has=int(m[tell].sum()), families=int(tell.sum()))


def _answer(mean: Mean, n: int, has: int, families: int) -> dict[str, Any]:
    low, high = mean.interval()
    return {"effect": mean.value, "low": low, "high": high, "n": n, "with": has, "families": families,
            "p": mean.p}


def _odds(has: np.ndarray, hit: np.ndarray, family: pd.Series) -> dict[str, Any]:
    """Log odds, and the larger p of two: families may be few (clustered), and counts small (exact)."""
    cells = np.stack([has & hit, has & ~hit, ~has & hit, ~has & ~hit]).astype(float)  # (4, metrics)
    table = cells.sum(1)
    clustered = _correlated(has - has.mean(), hit - hit.mean(), family, has)["p"]
    exact = float(stats.fisher_exact(table.reshape(2, 2)).pvalue)
    answer = _tested(cells, family, _log_odds, math.sqrt((1 / (table + 0.5)).sum()), has)
    return answer | {"p": max(clustered, exact)}


def _log_odds(sums: np.ndarray) -> np.ndarray:
    a, b, c, d = np.moveaxis(sums, -1, 0)
    known = np.minimum.reduce([a + b, c + d, a + c, b + d]) > 0  # else 0, as of a correlation
    return np.where(known, np.log((a + 0.5) * (d + 0.5) / (b + 0.5) / (c + 0.5)), 0.0)


def _tested(values: np.ndarray, family: pd.Series, statistic: Callable[[np.ndarray], np.ndarray],
            alone: float, has: np.ndarray) -> dict[str, Any]:
    """A statistic of sums over metrics; values: (sums, metrics); alone: its error were they independent."""
    code, names = pd.factorize(family)
    sums = np.stack([np.bincount(code, weights=row, minlength=len(names)) for row in values], axis=1)
    error = max(float(np.std(statistic(_draws(len(names)) @ sums))), alone)  # sums: (families, sums)
    mean = Mean(float(statistic(sums.sum(0))), error, max(len(names) - 1, 1))
    return _answer(mean, n=len(has), has=int(has.sum()), families=len(set(code[has])))


@lru_cache(maxsize=4)
def _draws(families: int) -> np.ndarray:
    """How often each family is in each resample, float64 (resamples, families); the same at every call."""
    even = np.full(families, 1 / families)
    return np.random.default_rng(0).multinomial(families, even, size=_RESAMPLES).astype(float)


def skill(frame: pd.DataFrame) -> tuple[dict[str, Any], str]:
    """How well a small decision tree predicts the rank of a loss from the traits, and that tree as text.

    Skill = 1 - (squared error of the tree) / (squared error of the training mean), cross-validated by
    families, so that a metric is never predicted from its relatives; 0 is no skill, and below 0 is worse than
    knowing nothing. The returned row is as in `findings` (p one-sided). Source: scikit-learn's
    DecisionTreeRegressor, three levels.

    Raises UsageError without scikit-learn, and with fewer than five families.
    """
    try:
        from sklearn.dummy import DummyRegressor
        from sklearn.model_selection import GroupKFold, cross_val_predict
        from sklearn.tree import DecisionTreeRegressor, export_text
    except ImportError as error:
        raise UsageError("the model of loss from traits needs scikit-learn: pip install "
                         "'prunekit[analysis]', or ask for findings(frame, model=False).") from error
    if (families := frame["family"].nunique()) < 5:
        raise UsageError(f"{families} families do not make 5 folds: give a longer journal.")
    X, y = _numbers(frame).fillna(-1.0), _centred_ranks(frame["fitness"], frame["journal"])
    tree = DecisionTreeRegressor(max_depth=3, min_samples_leaf=max(5, len(frame) // 50), random_state=0)
    split = list(GroupKFold(5).split(X, y, frame["family"]))
    errors = np.stack([(y - cross_val_predict(model, X.to_numpy(), y, cv=split)) ** 2
                       for model in (tree, DummyRegressor())])
    explained = lambda sums: 1 - sums[..., 0] / np.maximum(sums[..., 1], 1e-300)
    answer = _tested(errors, frame["family"], explained, 1e-9, np.ones(len(y), bool))
    answer["p"] = answer["p"] / 2 if answer["effect"] > 0 else 1.0
    rules = export_text(tree.fit(X.to_numpy(), y), feature_names=list(X), decimals=2)
    return {"kind": "model", "name": "decision tree", **answer}, rules
