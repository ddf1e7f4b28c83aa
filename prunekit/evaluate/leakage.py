"""How much of one method's lead is text: the factorial of gradient, calibration and test corpus."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from prunekit.errors import UsageError
from prunekit.evaluate.intervals import mean_of, sources


@dataclass(frozen=True)
class Leakage:
    """Leads are differences in nll (nats per token), averaged over test corpora; each is (value, low, high),
    95 % for new seeds and new windows, by `intervals.sources`.

    lead: where only the leader has read the test corpus, as in the published comparison. clean: neither has;
    read: both have. share: what of `lead` is gone when both have read alike, 1 - (clean + read) / (2 lead);
    NaN where `lead` cannot be told from zero or is negative, since there is nothing to explain then. seeds,
    windows: how many of each.
    """

    lead: tuple[float, float, float]
    clean: tuple[float, float, float]
    read: tuple[float, float, float]
    share: tuple[float, float, float]
    seeds: int
    windows: int


def leakage(cells: Mapping[tuple[str, str, str, int], tuple[np.ndarray, np.ndarray]]) -> Leakage:
    """What leakage explains of the leader's lead over its rival (Pruner-Zero's over Wanda's).

    cells: (gradient corpus, calibration corpus, test corpus, seed) -> (nll of the leader, nll of the rival),
    each one value per test window, float (windows,). The leader reads gradients, the rival calibration text.
    All combinations of the same corpora in the three places and of the seeds must be there, and windows of
    one test corpus must be the same ones.

    Intervals are those of `sources` with running windows, of one seed for new windows alone (`mean_of`); the
    share's is of its first order in the leads (delta method). Raises UsageError for an incomplete factorial.
    """
    corpora = sorted({cell[2] for cell in cells})
    seeds = sorted({cell[3] for cell in cells})
    wanted = [(g, c, t, seed) for t in corpora for g in corpora for c in corpora for seed in seeds]
    if len(corpora) < 2 or set(wanted) != set(cells):
        raise UsageError(f"{len(cells)} cells are not the factorial of {len(corpora)} corpora in three "
                         f"places and {len(seeds)} seeds: give every combination of at least two corpora.")
    parts = []
    for test in corpora:
        of_test = {cell: np.asarray(values, dtype=float) for cell, values in cells.items() if cell[2] == test}
        if len({values.shape for values in of_test.values()}) != 1:
            raise UsageError(f"the cells tested on {test} hold different windows: evaluate all on the same.")
        parts.append(np.array([[np.mean([v[reader] for cell, v in of_test.items() if cell[3] == seed
                                         and (cell[reader] == test) == inside], axis=0) for seed in seeds]
                               for reader, inside in product((1, 0), (False, True))]))
    rival_out, rival_in, leader_out, leader_in = joined = _joined(parts)
    lead, clean, read = rival_out - leader_in, rival_out - leader_out, rival_in - leader_in
    found, share = _interval(lead), (np.nan,) * 3
    if found[1] > 0:
        value = 1 - (clean + read).mean() / (2 * found[0])
        share = _interval(((1 - value) * lead - (clean + read) / 2) / found[0] + value)
    return Leakage(found, _interval(clean), _interval(read), share, len(seeds), joined.shape[2])


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Values (…, windows) of several corpora as one series around the mean over corpora, each of which has
    the same weight in it, whatever the number of its windows."""
    total = sum(part.shape[-1] for part in parts)
    means = [part.mean((-2, -1), keepdims=True) for part in parts]
    apart = [(part - mean) * total / (len(parts) * part.shape[-1])
             for part, mean in zip(parts, means, strict=True)]
    return np.concatenate(apart, axis=-1) + np.mean(means, axis=0)


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    """Of the mean of values (seeds, windows): value, low, high."""
    mean = sources(values, running=True).whole if len(values) > 1 else mean_of(values[0], running=True)
    return mean.value, *mean.interval()
