"""Figures: DataFrame (or tensors) in, matplotlib Figure out; safe for colour blindness and for print.

A name has its colour, marker and dash, the same in all figures; every colour map is perceptually even, and
text is embedded.
"""
from prunekit.figures.curves import (
    accuracy_panels,
    convergence,
    kept_shares,
    lines,
    log_curves,
    perplexity_curves,
    rank_frequency,
    shares,
    tails,
)
from prunekit.figures.dots import findings, intervals, ratios, recovery
from prunekit.figures.maps import corners, matrices, simplex, table_map
from prunekit.figures.style import COLOURS, DASHES, MARKERS, NAMES, STYLE
from prunekit.figures.trees import anatomy, family_tree, pareto, trees

__all__ = [
    "COLOURS", "DASHES", "MARKERS", "NAMES", "STYLE", "accuracy_panels", "anatomy", "convergence", "corners",
    "family_tree", "findings", "intervals", "kept_shares", "lines", "log_curves", "matrices", "pareto",
    "perplexity_curves", "rank_frequency", "ratios", "recovery", "shares", "simplex",
    "table_map", "tails", "trees",
]
