"""The state of a search: what its events make of it, and what it proposes next."""
from __future__ import annotations

import random
from bisect import insort
from collections import Counter
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any

from prunekit.errors import UsageError
from prunekit.metric.rank import rank_key
from prunekit.metric.simplify import simplify
from prunekit.metric.tree import Tree
from prunekit.search import journal as journals
from prunekit.search.budgets import Budget, Places, probes, random_budget, varied
from prunekit.search.operators import breed, crossover, point
from prunekit.search.presets import Preset
from prunekit.search.random_trees import grid, half_and_half, smallest_first
from prunekit.search.records import RACE_BOUND, Candidate, Race, pareto

RACE_RANK = 10  # whoever is clearly worse than the one of this rank need not be measured to the end
RACE_FEWEST = 5  # measured to the end before anybody races, against the last of them while they are so few
AUDIT = 0.05  # share of candidates that are measured to the end whatever they look like
_LEADERS = 5  # near whom a preset with `local` looks closer
_DRAWS = 500  # tries for one candidate before sampling afresh, and as many again before giving up
_ORDER = attrgetter("order")
_WANDA = Tree.parse("mul(W, sqrt(X))")


def _monomials(preset: Preset) -> list[Tree]:
    """The first candidates of a preset with `start`, as far as its alphabet can write them."""
    reading_w = [tree for (w, *_), tree in grid(preset.start).items() if w] if preset.start else []
    return [tree for tree in reading_w if not set(tree) & set(preset.alphabet.without)]


class Search:
    """The state after a number of events. `apply` is the only thing that changes it."""

    def __init__(self, preset: Preset, seed: int, group: str = "row", seeds: Iterable[Tree | str] = (),
                 places: Places | None = None, budgets: Iterable[Budget] = ()):
        self.preset, self.seed, self.group = preset, seed, group
        self.seeds = tuple(tree if isinstance(tree, Tree) else Tree.parse(tree) for tree in seeds)
        self._given = {tree: self._formed(tree, rank_key(tree, group)) for tree in self.seeds}
        self.places, self.budgets = places, tuple(budgets)
        self.uniform = None if preset.evolve == "metric" else places.uniform
        leading = self.seeds[0] if self.seeds else _WANDA
        if preset.evolve == "budget":
            metrics = [(leading, "given")]
        else:
            metrics = [(tree, "given") for tree in self.seeds]
            metrics += [(tree, "monomial") for tree in _monomials(preset)]
        self.first = [(tree, self.uniform, why) for tree, why in metrics]
        self.first += [(leading, budget, "given") for budget in self.budgets]
        if preset.evolve == "budget" and not preset.random:
            self.first += [(leading, budget, "probe") for budget in probes(places)]
        self.proposed: list[dict[str, Any]] = []
        self.candidates: dict[int, Candidate] = {}
        self.population: list[Candidate] = []  # oldest first
        self.ranked: list[Candidate] = []  # complete ones, best first
        self.settled = 0
        self.improved = 0  # `settled` when the best one came
        self.evaluated = 0
        self.saved: Counter[str] = Counter(form=0, masks=0, race=0, rejected=0)
        self.masks: dict[str, int] = {}
        self._front: list[Candidate] = []  # best loss first
        self._forms: set[tuple[Tree, Budget | None]] = set()
        self._measured: dict[tuple[Tree, Budget | None], int] = {}
        # those that it has passed were tried, or are refused
        self._smaller = smallest_first(preset.alphabet, preset.max_size)

    # What happened ------------------------------------------------------------------------------------------

    def apply(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "propose":
            self.proposed.append(dict(event))
            self.saved["form"] += sum(event["refused"].get(why, 0) for why in ("duplicate", "parent"))
            self._forms.add(self._key(Tree.parse(event["tree"]), self.budget_in(event)))
        elif kind == "reject":
            self.settled += 1
            self.saved["rejected"] += 1
        elif kind == "evaluate":
            self._settle(event)

    def _settle(self, event: Mapping[str, Any]) -> None:
        index, same = event["i"], event.get("same")
        proposal = self.proposed[index]
        source = self.candidates.get(same) if same is not None else None
        losses = source.losses if source else journals.unpack(event["losses"])
        by_task = source.by_task if source else event["by_task"]
        tree, raw = Tree.parse(proposal["tree"]), Tree.parse(proposal["raw"])
        candidate = Candidate(index, tree, raw, tuple(proposal["parents"]), proposal["operator"],
                              event["fitness"], losses, event["complete"], event["stopped"], event["audit"],
                              same, by_task, self.budget_in(proposal))
        self.settled += 1
        self.candidates[index] = candidate
        if source is None:
            self.evaluated += 1
            self.saved["race"] += not candidate.complete
            self._measured.setdefault(self._key(candidate.tree, candidate.budget), index)
            if event["masks"]:
                self.masks.setdefault(event["masks"], index)
        else:
            self.saved["masks"] += 1
        if candidate.complete:
            insort(self.ranked, candidate, key=_ORDER)
            if candidate is self.best:
                self.improved = self.settled
            self._front = pareto([*self._front, candidate])
        if source is None or not self.preset.unique:
            self._insert(candidate)

    def _insert(self, candidate: Candidate) -> None:
        self.population.append(candidate)
        if len(self.population) > self.preset.population:
            if self.preset.replace == "worst":
                leaver = max(self.population, key=_ORDER)
            else:
                behind = (member for member in self.population if member not in self._front)
                leaver = next(behind, self.population[0])
            self.population.remove(leaver)

    # What follows from it -----------------------------------------------------------------------------------

    @property
    def best(self) -> Candidate | None:
        return self.ranked[0] if self.ranked else None

    @property
    def front(self) -> tuple[Candidate, ...]:
        """The Pareto front of size against loss among the completely measured, best loss first."""
        return tuple(self._front)

    @property
    def counted(self) -> int:
        """What the budget limits: distinct evaluations, or (as published) candidates."""
        return self.evaluated if self.preset.unique else len(self.candidates)

    def budget_in(self, event: Mapping[str, Any]) -> Budget | None:
        """The budget that an event proposes."""
        return Budget(self.places, tuple(event["budget"])) if "budget" in event else None

    def known(self, tree: Tree, budget: Budget | None = None) -> int | None:
        """The candidate that was measured with exactly this form and budget."""
        return self._measured.get(self._key(tree, budget))

    def _key(self, tree: Tree, budget: Budget | None) -> tuple[Tree, Budget | None]:
        """What is measured once: of a given tree, which is measured as it is written, the form."""
        return self._given.get(tree, tree), budget

    def race(self, index: int) -> Race | None:
        """The race that candidate `index` runs, from what is settled now."""
        audit = random.Random(f"{self.seed}/{index}/audit").random() < AUDIT
        if not self.preset.racing or len(self.ranked) < RACE_FEWEST:
            return None
        return Race(tuple(self.ranked[:RACE_RANK][-1].losses), RACE_BOUND, audit)

    def propose(self) -> dict[str, Any]:
        """The next candidate, as an event."""
        index, refused = len(self.proposed), Counter()
        rng = random.Random(f"{self.seed}/{index}")
        for draw in range(2 * _DRAWS):
            raw, budget, parents, operator = self._draw(rng, index, fresh=draw >= _DRAWS)
            key = rank_key(raw, self.group)
            form = self._formed(raw, key)
            why = self._refusal(key, form, parents, budget) if index >= len(self.first) else ""
            if not why:
                tree = raw if raw in self._given else form  # whose powers may leave float32
                moved = {} if budget is None else {"budget": list(budget.moved)}
                return {"event": "propose", "i": index, "tree": str(tree), "raw": str(raw), **moved,
                        "operator": operator, "parents": [parent.index for parent in parents],
                        "refused": dict(sorted(refused.items()))}
            refused[why] += 1
        raise UsageError(f"no new tree was found in {2 * _DRAWS} draws for candidate {index}: the space is "
                         "used up; allow larger trees, or a smaller budget.")

    def _draw(self, rng: random.Random, index: int, fresh: bool
              ) -> tuple[Tree, Budget | None, tuple[Candidate, ...], str]:
        """A tree, its budget, their parents, and how it was made; fresh: nothing but random ones."""
        if index < len(self.first):
            tree, budget, why = self.first[index]
            return tree, budget, (), why
        if self.preset.evolve == "metric":
            tree, parents, operator = self._draw_tree(rng, index, fresh)
            return tree, None, parents, operator
        if fresh or self.preset.random or not self.ranked:  # one is enough to breed from: steps are small
            tree = self.first[0][0] if self.preset.evolve == "budget" else \
                half_and_half(rng, self.preset.depths, self.preset.alphabet)
            return tree, random_budget(rng, self.places), (), "random"
        if self.preset.evolve == "both" and rng.random() < 0.5:
            tree, parents, operator = self._draw_tree(rng, index, fresh)
            return tree, parents[0].budget if parents else self.uniform, parents, operator
        leaders = self.ranked[:_LEADERS]
        first, second = (leaders[int(rng.random()**2 * len(leaders))] for _ in range(2))
        before = self.candidates.get(first.parents[0]) if first.parents else None
        alone = self.preset.evolve == "budget"  # only then it is the budget that makes losses differ
        measured = [(one.budget, one.fitness) for one in self.candidates.values()] if alone else []
        budget, operator = varied(rng, first.budget, second.budget, before and before.budget, measured)
        return first.tree, budget, (first, second) if operator == "join" else (first,), operator

    def _draw_tree(self, rng: random.Random, index: int, fresh: bool
                   ) -> tuple[Tree, tuple[Candidate, ...], str]:
        preset = self.preset
        stalled = preset.patience and self.settled - self.improved >= preset.patience
        if stalled and index % 2 and not fresh and (tree := next(filter(self._untried, self._smaller), None)):
            return tree, (), "smallest"
        few = len(self.population) < 2 or len(self.population) + index - self.settled < preset.population
        if fresh or preset.random or few:
            return half_and_half(rng, preset.depths, preset.alphabet), (), "random"
        if not preset.weights:
            return self._published_draw(rng)
        leading = self.ranked and rng.random() < preset.local
        first = rng.choice(self.ranked[:_LEADERS]) if leading else self._tournament(rng)
        pair = first, self._tournament(rng)
        child, operator = breed(rng, preset.alphabet, (pair[0].tree, pair[1].tree), preset.weights)
        return child, pair if operator == "crossover" else pair[:1], operator

    def _published_draw(self, rng: random.Random) -> tuple[Tree, tuple[Candidate, ...], str]:
        """Sample, take its best, cross two of them, mutate; if neither happens, mutate."""
        preset = self.preset
        drawn = rng.sample(self.population, max(2, round(preset.sample * len(self.population))))
        a, b = rng.sample(sorted(drawn, key=_ORDER)[:preset.top], 2)
        crossed, mutated = rng.random() < preset.crossover, rng.random() < preset.mutation
        child = crossover(rng, preset.alphabet, a.tree, b.tree) if crossed else a.tree
        if mutated or not crossed:
            child = point(rng, preset.alphabet, child)
        name = "+".join(["crossover"] * crossed + ["point"] * (mutated or not crossed))
        return child, (a, b) if crossed else (a,), name

    def _tournament(self, rng: random.Random) -> Candidate:
        """The best of a sample, where frequent sizes count as worse."""
        preset = self.preset
        count = min(len(self.population), max(2, round(preset.sample * preset.population)))
        drawn = rng.sample(self.population, count)
        sizes = Counter(member.tree.size for member in self.population)
        crowded = {size: preset.crowding / len(self.population) * often for size, often in sizes.items()}
        return min(drawn, key=lambda member: (member.fitness + crowded[member.tree.size], *member.order[1:]))

    def _formed(self, raw: Tree, key: tuple) -> Tree:
        if self.preset.form == "rank":
            return Tree(key[1])
        return raw if self.preset.form == "raw" else simplify(raw, self.preset.form)

    def _untried(self, tree: Tree) -> bool:
        """Is this the smallest way to write a metric that has not been proposed?"""
        if (tree, self.uniform) in self._forms:
            return False
        key = rank_key(tree, self.group)
        return key[0] != "invalid" and Tree(key[1]) == tree and not self._refusal(key, tree, (), self.uniform)

    def _refusal(self, key: tuple, tree: Tree, parents: tuple[Candidate, ...], budget: Budget | None) -> str:
        """Why a drawn tree is not worth an evaluation, or ""."""
        if budget is None and self.uniform is not None:
            return "budget"
        if tree.size > self.preset.max_size or tree.depth > self.preset.max_depth:
            return "size"
        if key[0] == "invalid":
            return "invalid"
        if key[1][0] == "neg" and Tree(key[1]).sign == -1:
            return "inverted"  # a positive score turned round: it would prune the largest
        if any((tree, budget) == self._key(parent.tree, parent.budget) for parent in parents):
            return "parent"
        return "duplicate" if self.preset.unique and (tree, budget) in self._forms else ""
