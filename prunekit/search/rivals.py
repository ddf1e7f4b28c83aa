"""Preset `modern` and what it is held against, with one evaluator and at an equal budget."""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prunekit.search.parametric import parametric
from prunekit.search.random_trees import GRID_STEPS, grid


def planned(names: Iterable[str], budget: int, population: int, seed: int = 0, repeats: int = 1,
            steps: int = GRID_STEPS) -> dict[str, dict[str, Any]]:
    """Arguments of `evolve` by the name of a journal: `journal-KIND`, of further seeds `journal-KIND-SEED`.

    names: `modern`, `paper` (Algorithm 1), `random` (expressions that are provably different), and, drawing
    nothing and so once each, `grid` (monomials whose exponents add up to `steps`) and `parametric`.
    """
    points = {"grid": [*grid(steps).values()], "parametric": [*parametric().values()]}
    asked: dict[str, dict[str, Any]] = {
        "modern": {"preset": "modern", "population": population}, "random": {"preset": "random-distinct"},
        "paper": {"preset": "paper", "population": min(50, budget // 3)},
        **{name: {"preset": "random-distinct", "seeds": given[:budget]}
           for name, given in points.items()}}
    return {f"journal-{name}" + f"-{own}" * (own > seed): {
        "budget": len(asked[name].get("seeds", ())) or budget, "seed": own, **asked[name]}
        for name in names for own in range(seed, seed + (1 if name in points else repeats))}
