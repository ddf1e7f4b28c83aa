"""Preset `modern` and what it is held against, with one evaluator and at an equal budget."""
from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pandas as pd

from prunekit.search.parametric import parametric
from prunekit.search.presets import PRESETS
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


def compared(first: str = "paper") -> pd.DataFrame:
    """A row per field in which presets differ, as text: of one preset all, of the others what they change."""
    def said(value: Any) -> str:  # as Python prints it, without its brackets
        text = f"{value:,}" if type(value) is int else re.sub(r"\[\]|\{\}", "none", str(value))
        return re.sub(r"[][{}':]", "", text)

    known = {name: {"budget": preset.budget} | preset.as_dict() for name, preset in PRESETS.items()}
    table = pd.DataFrame(known).map(said).drop("name")
    table = table[table.nunique(axis=1) > 1]
    others = table.drop(columns=first).where(lambda rows: rows.ne(table[first], axis=0), "")
    return table[[first]].join(others).reset_index(names="field")
