"""Comparisons with error bars: paired over windows, "indistinguishable" where that is the answer."""
from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..errors import UsageError

_RESAMPLES = 2000


@lru_cache(maxsize=16)
def _resampled(n: int) -> np.ndarray:
    """How often each of n windows is drawn in each resample, as weights (resamples, n) float32; fixed seed."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES).astype(np.float32) / n


def bootstrap_means(values: np.ndarray) -> np.ndarray:
    """Means of bootstrap resamples of values (n,): float64 (2000,), the same for the same n and values."""
    centre = values.mean()
    return centre + _resampled(len(values)) @ (values - centre)


@dataclass(frozen=True)
class Comparison:
    """Of two models on the same windows. ratio: ppl(a) / ppl(b); interval: its 95 % paired bootstrap interval."""

    ratio: float
    interval: tuple[float, float]
    n: int

    @property
    def distinguishable(self) -> bool:
        return not self.interval[0] <= 1 <= self.interval[1]

    def __str__(self) -> str:
        low, high = self.interval
        verdict = "indistinguishable" if not self.distinguishable else "lower" if self.ratio < 1 else "higher"
        return f"{verdict} (ratio {self.ratio:.3f}, 95 % interval {low:.3f} to {high:.3f}, {self.n} windows)"


def compare(a, b) -> Comparison:
    """Perplexity of a against b: exp(mean of the windows' differences in nll), resampling windows as pairs.

    a, b: `Perplexity` on the same windows. Raises UsageError if they are not paired.
    """
    if len(a.nll) != len(b.nll) or a.meta.get("seqlen") != b.meta.get("seqlen"):
        raise UsageError(f"perplexities over {len(a.nll)} and {len(b.nll)} windows are not paired; evaluate both on the same.")
    differences = a.nll - b.nll
    low, high = np.quantile(bootstrap_means(differences), [0.025, 0.975])
    return Comparison(math.exp(differences.mean()), (math.exp(low), math.exp(high)), len(differences))
