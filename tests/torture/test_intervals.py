"""How often intervals over windows hold the truth: 93 to 97 of 100, from eight windows on."""
from __future__ import annotations

import numpy as np
import pytest

import prunekit as pk
from prunekit.evaluate.perplexity import Perplexity
from tests.evaluate.test_intervals import coverage, losses


@pytest.mark.torture
@pytest.mark.parametrize("n", [8, 12, 16, 32, 64, 256])
@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("correlation", [0, 0.25, 0.5])
def test_intervals_hold_the_mean(n, skewed, correlation):
    assert 0.93 <= coverage(n, correlation, skewed, 20_000) <= 0.9725  # two standard errors above 97


@pytest.mark.torture
@pytest.mark.parametrize("n", [8, 32, 64])
def test_a_comparison_raises_few_alarms_and_finds_what_is_detectable(n):
    noise = losses(np.random.default_rng(1), n, 0, True, 4000) * 0.05
    base = Perplexity(np.full(n, 3.0))
    found = [pk.compare(Perplexity(3.0 + y), base) for y in noise]
    assert 0.02 <= np.mean([one.p < 0.05 for one in found]) <= 0.06
    shift = np.log(np.median([one.detectable for one in found]))  # what half of them say at most
    power = np.mean([pk.compare(Perplexity(3.0 + y + by), base).p < 0.05
                     for y in noise for by in (shift, -shift)])
    assert power == pytest.approx(0.8, abs=0.03)
