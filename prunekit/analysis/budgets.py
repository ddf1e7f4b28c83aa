"""What it is worth to search for the place of the zeros."""
from __future__ import annotations

import pandas as pd
from torch import Tensor, nn

from prunekit.evaluate.compare import compare_many
from prunekit.evaluate.measure import prune_and_measure
from prunekit.pruning.budgets import owl_budget
from prunekit.search.budgets import Budget
from prunekit.search.engine import evolve
from prunekit.search.evaluator import Evaluator


def worth(evaluator: Evaluator, model: nn.Module, calibration: Tensor, test: Tensor, evaluations: int,
          seed: int = 0) -> tuple[dict[str, Budget], pd.DataFrame]:
    """Budgets of the evaluator's first target; `compare_many` of Wanda's metric under them on test windows.

    uniform; of a share of zeros OWL's, which takes no search; the best of so many random ones; the evolved
    one. Each is compared with the uniform one, and the evolved one with the best of random.
    """
    target = evaluator.targets[0]
    evaluator = evaluator.on(targets=[str(target)])
    budgets = {"uniform": evaluator.places.uniform}
    if target.pattern == "unstructured":
        budgets["OWL"] = evaluator.budget(owl_budget(model, calibration, target.sparsity, progress=False))
    for name, drawn in (("best of random", True), ("evolved", False)):
        how = {"evolve": "budget", "random": drawn, "progress": False}
        *_, last = evolve(evaluator, "modern", evaluations, seed, **how)
        budgets[name] = last.best.budget
    settings = [{"method": "wanda", "sparsity": budget} for budget in budgets.values()]
    results = prune_and_measure(model, calibration, test, settings, progress=False)
    ppl = {name: result.perplexity for name, result in zip(budgets, results, strict=True)}
    pairs = [*((name, "uniform") for name in budgets if name != "uniform"), ("evolved", "best of random")]
    return budgets, compare_many({f"{one} by {other}": (ppl[one], ppl[other]) for one, other in pairs})
