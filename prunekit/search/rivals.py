"""What a search is held against, with one evaluator and as many evaluations (Algorithm 1 counts repeats)."""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from torch import Tensor, nn

from prunekit.evaluate.compare import compare_many
from prunekit.evaluate.measure import prune_and_measure
from prunekit.metric.rank import rank_key
from prunekit.metric.tree import Tree
from prunekit.pruning.budgets import owl_budget
from prunekit.search.budgets import Budget
from prunekit.search.engine import evolve
from prunekit.search.evaluator import Evaluator
from prunekit.search.parametric import parametric
from prunekit.search.presets import PRESETS
from prunekit.search.random_trees import GRID_STEPS, grid
from prunekit.search.records import Generation


def planned(names: Iterable[str], budget: int, population: int, seed: int = 0, repeats: int = 1,
            steps: int = GRID_STEPS) -> dict[str, dict[str, Any]]:
    """Arguments of `evolve` by the name of a journal: `journal-KIND`, of further seeds `journal-KIND-SEED`.

    names: `modern`, `paper` (Algorithm 1), `random` (expressions that are provably different), and, drawing
    nothing and so once each, `grid` (monomials whose exponents add up to `steps`) and `parametric`. A budget
    below the number of points cuts: the grid keeps those with most of W, as what `modern` is handed has, the
    parametric form its first.
    """
    points = {"grid": [*grid(steps).values()][::-1], "parametric": [*parametric().values()]}
    asked: dict[str, dict[str, Any]] = {
        "modern": {"preset": "modern", "population": population}, "random": {"preset": "random-distinct"},
        "paper": {"preset": "paper", "population": max(2, min(50, budget // 3))},
        **{name: {"preset": "random-distinct", "seeds": given[:budget]}
           for name, given in points.items()}}
    return {f"journal-{name}" + f"-{own}" * (own > seed): {
        "budget": len(asked[name].get("seeds", ())) or budget, "seed": own, **asked[name]}
        for name in names for own in range(seed, seed + (1 if name in points else repeats))}


def held_against(winner: Tree | str, lines: Mapping[str, Tree | str]) -> list[str]:
    """Of lines (names: trees or their text) those that are not provably the winner's metric, of which a ratio
    of 1 would be one more test to correct for; and always `wanda`, by which every study is told."""
    keys = {name: rank_key(Tree.parse(str(line))) for name, line in {**lines, "": winner}.items()}
    return [name for name in lines if name == "wanda" or keys[name] != keys[""]]


def compared() -> pd.DataFrame:
    """A row per field in which presets differ, as text: of `paper` all, of the others what they change."""
    def said(value: Any) -> str:  # as Python prints it, without its brackets
        text = f"{value:,}" if type(value) is int else re.sub(r"\[\]|\{\}", "none", str(value))
        return re.sub(r"[][{}':]", "", text)

    known = {name: {"budget": preset.budget} | preset.as_dict() for name, preset in PRESETS.items()}
    table = pd.DataFrame(known).map(said).drop("name")
    table = table[table.nunique(axis=1) > 1]
    others = table.drop(columns="paper").where(lambda rows: rows.ne(table["paper"], axis=0), "")
    return table[["paper"]].join(others).reset_index(names="field")


def budgets(evaluator: Evaluator, model: nn.Module, windows: Mapping[str, Tensor], evaluations: int,
            seed: int = 0) -> tuple[dict[str, Budget], pd.DataFrame]:
    """Budgets of the evaluator's first target; `compare_many` of Wanda's metric under them on test windows.

    windows: by role, those of calibration, select and test. The budgets: uniform; of a share of zeros OWL's,
    which takes no search; the best of so many random ones; the evolved one. Each is compared with the uniform
    one, and the evolved one with the best of random.
    """
    target = evaluator.targets[0]
    evaluator = evaluator.on(targets=[str(target)])
    made = {"uniform": evaluator.places.uniform}
    if target.pattern == "unstructured":
        shares = owl_budget(model, windows["calibration"], target.sparsity, progress=False)
        made["OWL"] = evaluator.budget(shares)
    unseen = evaluator.on([windows["select"]])
    for name, drawn in (("best of random", True), ("evolved", False)):
        made[name] = best_unseen(unseen, evolve(evaluator, "modern", evaluations, seed, evolve="budget",
                                                random=drawn, progress=False))
    settings = [{"method": "wanda", "sparsity": budget} for budget in made.values()]
    results = prune_and_measure(model, windows["calibration"], windows["test"], settings, progress=False)
    ppl = {name: result.perplexity for name, result in zip(made, results, strict=True)}
    pairs = [*((name, "uniform") for name in made if name != "uniform"), ("evolved", "best of random")]
    return made, compare_many({f"{one} by {other}": (ppl[one], ppl[other]) for one, other in pairs})


def best_unseen(unseen: Evaluator, generations: Iterable[Generation]) -> Budget:
    """Of all budgets that a search has tried, the best on select windows of the five with the lowest loss on
    search windows. unseen: its evaluator on select windows; generations: every one, since a population
    forgets."""
    known = {one.index: one for each in generations for one in each.population}
    leading = sorted(known.values(), key=lambda one: one.order)[:5]
    return min(leading, key=lambda one: unseen.losses(one.tree, one.budget).mean()).budget
