"""Figures: DataFrame (or tensors) in, matplotlib Figure out; safe for colour blindness and for print.

Every line also has its own marker and dash, every colour map is perceptually even, and text is embedded.
"""
from prunekit.figures.curves import (
    accuracy_panels,
    lines,
    log_curves,
    perplexity_curves,
    rank_frequency,
    tails,
)
from prunekit.figures.dots import findings, intervals, recovery, seen_and_unseen
from prunekit.figures.maps import corners, matrices, simplex, table_map
from prunekit.figures.style import COLOURS, DASHES, MARKERS, STYLE
from prunekit.figures.trees import anatomy, family_tree, pareto, trees

__all__ = [
    "COLOURS", "DASHES", "MARKERS", "STYLE", "accuracy_panels", "anatomy", "corners", "family_tree",
    "findings", "intervals", "lines", "log_curves", "matrices", "pareto",
    "perplexity_curves", "rank_frequency", "recovery", "seen_and_unseen", "simplex", "table_map", "tails",
    "trees",
]
