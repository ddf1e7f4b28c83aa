"""How much of one method's lead is text: the factorial of gradient, calibration and test corpus."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

from prunekit.errors import UsageError
from prunekit.evaluate.intervals import RESAMPLES


@dataclass(frozen=True)
class Leakage:
    """Leads are differences in nll (nats per token), averaged over test corpora; each is (value, low, high),
    95 %.

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

    The interval is a paired bootstrap: windows (of each test corpus) and seeds are drawn anew, the same for
    all cells. Few seeds say little about seeds: with two it is too narrow. Raises UsageError for an
    incomplete factorial.
    """
    corpora = sorted({cell[2] for cell in cells})
    seeds = sorted({cell[3] for cell in cells})
    wanted = [(g, c, t, seed) for t in corpora for g in corpora for c in corpora for seed in seeds]
    if len(corpora) < 2 or set(wanted) != set(cells):
        raise UsageError(f"{len(cells)} cells are not the factorial of {len(corpora)} corpora in three "
                         f"places and {len(seeds)} seeds: give every combination of at least two corpora.")
    generator = np.random.default_rng(0)
    by_seed = _counts(generator, len(seeds))
    arms = np.zeros((4, 1 + RESAMPLES))  # the rival out, in, the leader out, in
    windows = 0
    for test in corpora:
        of_test = {cell: np.asarray(values, dtype=float) for cell, values in cells.items() if cell[2] == test}
        shapes = {values.shape for values in of_test.values()}
        if len(shapes) != 1:
            raise UsageError(f"the cells tested on {test} hold different windows: evaluate all on the same.")
        by_window = _counts(generator, shapes.pop()[1])
        windows += by_window.shape[1]
        for arm, (reader, inside) in enumerate(product((1, 0), (False, True))):
            values = np.array([np.mean([v[reader] for cell, v in of_test.items() if cell[3] == seed
                                        and (cell[reader] == test) == inside], axis=0) for seed in seeds])
            arms[arm] += np.einsum("rs,sn,rn->r", by_seed, values, by_window) / len(corpora)
    rival_out, rival_in, leader_out, leader_in = arms
    lead, clean, read = rival_out - leader_in, rival_out - leader_out, rival_in - leader_in
    found = _interval(lead)
    share = _interval(1 - (clean + read) / (2 * lead)) if found[1] > 0 else (np.nan,) * 3
    return Leakage(found, _interval(clean), _interval(read), share, len(seeds), windows)


def _counts(generator: np.random.Generator, n: int) -> np.ndarray:
    """How often each of n is drawn, as weights (1 + resamples, n); first of all everything once."""
    drawn = generator.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    return np.vstack([np.ones(n), drawn]) / n


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    return float(values[0]), *map(float, np.quantile(values[1:], [0.025, 0.975]))
