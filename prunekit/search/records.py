"""The records of a search: a race and its bound, the outcome of an evaluation, a candidate, a generation."""
from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from prunekit.metric.tree import Tree
from prunekit.search.budgets import Budget

RACE_BOUND = 3.0  # standard errors, see `behind`; benchmarks/search.py counts the leaders that it stops


class Race(NamedTuple):
    """When to stop: a mean paired difference to `reference` of more than `bound` standard errors."""

    reference: tuple[float, ...]  # losses per window
    bound: float = RACE_BOUND
    audit: bool = False  # measure to the end all the same


class Outcome(NamedTuple):
    """What an evaluator says of one tree."""

    losses: Sequence[float] = ()  # nll(pruned) - nll(dense) per window, mean over targets, as far as measured
    complete: bool = True  # to the last window
    stopped: int = 0  # windows after which the race stopped it, or, of an audited one, would have
    masks: str = ""  # a hash of them
    same: int | None = None  # the earlier candidate with these masks, whose losses hold
    defect: str = ""  # why it is no metric here
    by_task: Mapping[str, float] = {}  # mean loss over those windows of each target (and model), by name


@dataclass(frozen=True, eq=False)
class Candidate:
    """One evaluated tree, or tree and budget."""

    index: int
    tree: Tree
    raw: Tree  # as bred, before it was simplified
    parents: tuple[int, ...]
    operator: str
    fitness: float  # mean loss; of an incomplete one, estimated from the windows it has
    losses: array
    complete: bool
    stopped: int
    audited: bool
    same: int | None
    by_task: Mapping[str, float]  # on the windows that were measured; empty where nothing told targets apart
    budget: Budget | None = None  # where the search evolves budgets

    @property
    def order(self) -> tuple[float, int, int]:
        """Better first; of equal loss the smaller tree, then the older."""
        return self.fitness, self.tree.size, self.index


@dataclass(frozen=True)
class Generation:
    """What the search yields: after the first population, and then after every `lag` candidates."""

    number: int
    proposed: int
    evaluated: int  # distinct evaluations so far
    saved: Mapping[str, int]  # how often what spared one, or a part of one
    best: Candidate | None  # lowest loss among the completely measured
    median: float  # of the population
    front: tuple[Candidate, ...]  # of size against loss among the completely measured (Pareto)
    population: tuple[Candidate, ...]
    seconds: float

    def row(self) -> dict[str, Any]:
        """Flat, for a table."""
        best = self.best
        return {"generation": self.number, "proposed": self.proposed, "evaluated": self.evaluated,
                "best": best.fitness if best else math.nan, "tree": str(best.tree) if best else "",
                "median": self.median, "seconds": round(self.seconds, 3),
                **{f"saved_{what}": count for what, count in self.saved.items()}}


def pareto(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that no other beats in both size and loss, best loss first."""
    front: list[Candidate] = []
    for candidate in sorted(candidates, key=attrgetter("order")):
        if not front or candidate.tree.size < front[-1].tree.size:
            front.append(candidate)
    return front


def behind(losses: Sequence[float], race: Race) -> bool:
    """Is the mean paired difference to the reference more than `bound` standard errors above 0?

    With few windows the standard error is itself uncertain, so the bound is Student's quantile instead of the
    normal one (expanded in 1/(n - 1)): of 3 standard errors, 3.5 for 16 windows. A plain 3 stopped leaders
    too often.
    """
    differences = [a - b for a, b in zip(losses, race.reference, strict=False)]
    n = len(differences)
    if n < 2:
        return False
    mean = math.fsum(differences) / n
    variance = math.fsum((d - mean) ** 2 for d in differences) / (n - 1)
    bound = race.bound * (1 + (race.bound**2 + 1) / (4 * (n - 1)))
    return mean > bound * math.sqrt(variance / n)
