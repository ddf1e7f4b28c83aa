"""Evolution as a fold over a journal: propose, evaluate, insert. Nothing here knows what an evaluation is.

Candidate i draws from its own generator, seeded by (seed, i), and sees the results of candidates up to i - lag only, so
the journal does not depend on how many evaluations run at once. An evaluator is any callable
`evaluator(tree, race, seen, raw)` that returns an `Outcome`, or simply `evaluator(tree)` that returns a loss.
"""
from __future__ import annotations

import inspect
import math
import random
import statistics
import time
from array import array
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from prunekit.errors import UsageError
from prunekit.metric.rank import rank_key
from prunekit.metric.simplify import simplify
from prunekit.metric.tree import Tree
from prunekit.search import journal as journals
from prunekit.search.breed import breed, crossover, point
from prunekit.search.executors import Serial, Task, Workers
from prunekit.search.presets import Preset
from prunekit.search.presets import preset as find_preset
from prunekit.search.rivals import grid
from prunekit.search.sample import half_and_half, smallest_first

RACE_RANK = 10  # whoever is clearly worse than the one of this rank need not be measured to the end
RACE_FEWEST = 5  # measured to the end before anybody races; while they are fewer than RACE_RANK, against the last of them
RACE_BOUND = 3.0  # standard errors
AUDIT = 0.05  # share of candidates that are measured to the end whatever they look like
_LEADERS = 5  # near whom a preset with `local` looks closer
_DRAWS = 500  # tries for one candidate before sampling afresh


class Race(NamedTuple):
    """When to stop: a mean paired difference to `reference` (losses per window) of more than `bound` standard errors."""

    reference: tuple[float, ...]
    bound: float = RACE_BOUND
    audit: bool = False


class Outcome(NamedTuple):
    """losses: mean over tasks of nll(pruned) - nll(dense), per window, as far as measured. complete: to the last window.
    stopped: windows after which the race stopped it, or, of an audited one, would have. masks: hash of its masks.
    same: the earlier candidate with these masks, whose losses hold. defect: why it is no metric here. by_task: mean loss
    over those windows of each task (and model), by name."""

    losses: Sequence[float] = ()
    complete: bool = True
    stopped: int = 0
    masks: str = ""
    same: int | None = None
    defect: str = ""
    by_task: Mapping[str, float] = {}


@dataclass(frozen=True, eq=False)
class Candidate:
    """One evaluated tree. fitness: mean loss (of an incomplete one, estimated from the windows it has). by_task: mean loss
    of each task on the windows that were measured; empty where nothing told tasks apart."""

    index: int
    tree: Tree
    raw: Tree
    parents: tuple[int, ...]
    operator: str
    fitness: float
    losses: array
    complete: bool
    stopped: int
    audited: bool
    same: int | None
    by_task: Mapping[str, float]

    @property
    def order(self) -> tuple[float, int, int]:
        """Better first; of equal loss the smaller tree, then the older."""
        return self.fitness, self.tree.size, self.index


@dataclass(frozen=True)
class Generation:
    """What the search yields: after the first population, and then after every `lag` candidates.

    evaluated: distinct evaluations so far; saved: how often what spared one (or a part of one); best: lowest loss among
    the completely measured; front: those on the Pareto front of size against loss.
    """

    number: int
    proposed: int
    evaluated: int
    saved: Mapping[str, int]
    best: Candidate | None
    median: float
    front: tuple[Candidate, ...]
    population: tuple[Candidate, ...]
    seconds: float

    def row(self) -> dict[str, Any]:
        """Flat, for a table."""
        best = self.best
        return {"generation": self.number, "proposed": self.proposed, "evaluated": self.evaluated,
                "best": best.fitness if best else math.nan, "tree": str(best.tree) if best else "",
                "median": self.median, "seconds": round(self.seconds, 3), **{f"saved_{k}": v for k, v in self.saved.items()}}


def pareto(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that no other beats in both size and loss, best loss first."""
    found: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda one: one.order):
        if not found or candidate.tree.size < found[-1].tree.size:
            found.append(candidate)
    return found


def _monomials(preset: Preset) -> list[Tree]:
    """The first candidates of a preset with `start`, as far as its alphabet can write them."""
    found = [tree for (w, *_), tree in grid(preset.start).items() if w] if preset.start else []
    return [tree for tree in found if not set(tree) & set(preset.alphabet.without)]


class Search:
    """The state after a number of events. `apply` is the only thing that changes it."""

    def __init__(self, preset: Preset, seed: int, group: str = "row", seeds: Sequence[Tree] = ()):
        self.preset, self.seed, self.group, self.seeds = preset, seed, group, tuple(seeds)
        self.first = [*((tree, "given") for tree in seeds), *((tree, "monomial") for tree in _monomials(preset))]
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
        self._forms: set[Tree] = set()
        self._measured: dict[Tree, int] = {}
        self._smaller = smallest_first(preset.alphabet, preset.max_size)  # those that it has passed were tried, or are refused

    # What happened --------------------------------------------------------------------------------------------------

    def apply(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "propose":
            self.proposed.append(dict(event))
            self.saved["form"] += sum(event["refused"].get(why, 0) for why in ("duplicate", "parent"))
            self._forms.add(Tree.parse(event["tree"]))
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
        candidate = Candidate(index, Tree.parse(proposal["tree"]), Tree.parse(proposal["raw"]), tuple(proposal["parents"]),
                              proposal["operator"], event["fitness"], losses, event["complete"], event["stopped"],
                              event["audit"], same, source.by_task if source else event.get("by_task", {}))
        self.settled += 1
        self.candidates[index] = candidate
        if source is None:
            self.evaluated += 1
            self.saved["race"] += not candidate.complete
            self._measured.setdefault(candidate.tree, index)
            if event["masks"]:
                self.masks.setdefault(event["masks"], index)
        else:
            self.saved["masks"] += 1
        if candidate.complete:
            insort(self.ranked, candidate, key=lambda one: one.order)
            if candidate is self.best:
                self.improved = self.settled
            self._front = pareto([*self._front, candidate])
        if source is None or not self.preset.unique:
            self._insert(candidate)

    def _insert(self, candidate: Candidate) -> None:
        self.population.append(candidate)
        if len(self.population) > self.preset.population:
            if self.preset.replace == "worst":
                leaver = max(self.population, key=lambda one: one.order)
            else:
                leaver = next((one for one in self.population if one not in self._front), self.population[0])
            self.population.remove(leaver)

    # What follows from it -------------------------------------------------------------------------------------------

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

    def known(self, tree: Tree) -> int | None:
        """The candidate that was measured with exactly this tree."""
        return self._measured.get(tree)

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
            raw, parents, operator = self._draw(rng, index, fresh=draw >= _DRAWS)
            key = rank_key(raw, self.group)
            tree = self._formed(raw, key)
            why = self._refusal(key, tree, parents) if index >= len(self.first) else ""
            if not why:
                return {"event": "propose", "i": index, "tree": str(tree), "raw": str(raw), "operator": operator,
                        "parents": [parent.index for parent in parents], "refused": dict(sorted(refused.items()))}
            refused[why] += 1
        raise UsageError(f"no new tree was found in {2 * _DRAWS} draws for candidate {index}: the space is used up; allow "
                         "larger trees, or a smaller budget.")

    def _draw(self, rng: random.Random, index: int, fresh: bool) -> tuple[Tree, tuple[Candidate, ...], str]:
        preset = self.preset
        if index < len(self.first):
            tree, why = self.first[index]
            return tree, (), why
        stalled = preset.patience and self.settled - self.improved >= preset.patience
        if stalled and index % 2 and not fresh and (tree := next(filter(self._untried, self._smaller), None)):
            return tree, (), "smallest"
        coming = index - self.settled
        if fresh or preset.random or len(self.population) < 2 or len(self.population) + coming < preset.population:
            return half_and_half(rng, preset.depths, preset.alphabet), (), "random"
        if preset.weights:
            first = rng.choice(self.ranked[:_LEADERS]) if self.ranked and rng.random() < preset.local else self._tournament(rng)
            pair = first, self._tournament(rng)
            child, operator = breed(rng, preset.alphabet, (pair[0].tree, pair[1].tree), preset.weights)
            return child, pair if operator == "crossover" else pair[:1], operator
        return self._published_draw(rng)

    def _published_draw(self, rng: random.Random) -> tuple[Tree, tuple[Candidate, ...], str]:
        """Sample, take its best, cross two of them, mutate; if neither happens, mutate."""
        preset = self.preset
        drawn = rng.sample(self.population, max(2, round(preset.sample * len(self.population))))
        a, b = rng.sample(sorted(drawn, key=lambda one: one.order)[:preset.top], 2)
        crossed, mutated = rng.random() < preset.crossover, rng.random() < preset.mutation
        child = crossover(rng, preset.alphabet, a.tree, b.tree) if crossed else a.tree
        if mutated or not crossed:
            child = point(rng, preset.alphabet, child)
        name = "crossover+point" if crossed and mutated else "crossover" if crossed else "point"
        return child, (a, b) if crossed else (a,), name

    def _tournament(self, rng: random.Random) -> Candidate:
        """The best of a sample, where frequent sizes count as worse."""
        preset = self.preset
        drawn = rng.sample(self.population, min(len(self.population), max(2, round(preset.sample * preset.population))))
        sizes = Counter(one.tree.size for one in self.population)
        share = preset.crowding / len(self.population)
        return min(drawn, key=lambda one: (one.fitness + share * sizes[one.tree.size], *one.order[1:]))

    def _formed(self, raw: Tree, key: tuple) -> Tree:
        if self.preset.form in ("raw", "rank"):
            return raw if self.preset.form == "raw" else Tree(key[1])
        return simplify(raw, self.preset.form)

    def _untried(self, tree: Tree) -> bool:
        """Is this the smallest way to write a metric that has not been proposed?"""
        if tree in self._forms:
            return False
        key = rank_key(tree, self.group)
        return key[0] != "invalid" and Tree(key[1]) == tree and not self._refusal(key, tree, ())

    def _refusal(self, key: tuple, tree: Tree, parents: tuple[Candidate, ...]) -> str:
        """Why a drawn tree is not worth an evaluation, or ""."""
        if tree.size > self.preset.max_size or tree.depth > self.preset.max_depth:
            return "size"
        if key[0] == "invalid":
            return "invalid"
        if key[1][0] == "neg" and Tree(key[1]).sign == -1:
            return "inverted"  # a positive score turned round: it would prune the largest
        if any(tree == parent.tree for parent in parents):
            return "parent"
        return "duplicate" if self.preset.unique and tree in self._forms else ""


def evolve(evaluator: Callable[..., Any], preset: str | Preset = "modern", budget: int | None = None, seed: int = 0,
           journal: str | Path | None = None, executor: Any = None, *, seeds: Sequence[Tree] = (), restart: bool = False,
           progress: bool = True, **changes: Any) -> Iterator[Generation]:
    """Search for metrics; yields a `Generation` after the first population and after every few candidates.

    evaluator: `Evaluator`, or a function from a tree to a loss (lower is better; not finite: no metric). budget:
    distinct evaluations (default: the preset's). journal: a file that the search is written to and resumed from.
    executor: None (here, one after the other), any concurrent.futures.Executor, or `open_executor(...)`. seeds: trees
    to try first. restart: put a journal of another search aside (as …~) and begin anew instead of refusing. changes:
    fields of the preset. Same arguments, same generations, however many workers there are.
    Source: Algorithm 1 of arXiv 2406.02924, whose code was not published; see `presets.py` for what is assumed.

    Raises UsageError for an unknown preset or field, values that cannot be, a loss that is no number, a
    journal of another search, in use, or damaged, and a disk that is full.
    """
    chosen = find_preset(preset, **changes)
    budget = chosen.budget if budget is None else budget
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise UsageError(f"budget {budget!r} is no number of evaluations; give 1 or more.")
    evaluator = _Adapter.around(evaluator)
    search = Search(chosen, seed, evaluator.group, seeds)
    return _evolve(search, evaluator, budget, _Log(journal, restart), executor, progress)


class _Log(NamedTuple):
    path: str | Path | None
    restart: bool

    def open(self, header: Mapping[str, Any]) -> journals.Journal:
        return journals.Journal(self.path, header, restart=self.restart)


def _evolve(search: Search, evaluator: Any, budget: int, file: _Log, executor: Any, progress: bool) -> Iterator[Generation]:
    chosen = search.preset
    with ExitStack() as stack:
        log = stack.enter_context(file.open(_header(search, evaluator))) if file.path else None
        bar = stack.enter_context(tqdm(total=budget, desc=f"search ({chosen.name})", unit="tree", disable=not progress))
        workers = stack.enter_context(Workers(executor or Serial()))
        loop = _Loop(search, evaluator, log, workers, budget)
        number, shown = 0, 0
        while loop.step():
            bar.update(search.counted - bar.n)
            if search.settled >= max(chosen.population, shown + chosen.lag):
                yield loop.generation(number)
                number, shown = number + 1, search.settled
                bar.set_postfix_str(_status_line(search))
        if search.settled > shown or not number:
            yield loop.generation(number)


class _Loop:
    """Keeps `lag` evaluations under way and settles them in order; first replays what the journal holds."""

    def __init__(self, search: Search, evaluator: Any, log: journals.Journal | None, workers: Workers, budget: int):
        self.search, self.evaluator, self.log, self.workers, self.budget = search, evaluator, log, workers, budget
        self.replay = list(log.events[1:]) if log else []
        self.replay.reverse()
        self.recorded = {event["i"] for event in self.replay if event["event"] != "propose"}
        self.pending: dict[int, Task | int] = {}
        self.races: dict[int, Race | None] = {}
        self.started = time.perf_counter()

    def step(self) -> bool:
        """Propose what may be proposed, then settle one candidate; False when the budget is used up."""
        search = self.search
        if search.counted >= self.budget:
            self.workers.forget(self.pending.values())
            return False
        while len(search.proposed) - search.settled < search.preset.lag:
            self._propose()
        self._settle(search.settled)
        return True

    def _propose(self) -> None:
        search = self.search
        if self.replay:
            event = self.replay.pop()
            if event["event"] != "propose" or event["i"] != len(search.proposed):
                raise UsageError(f"the journal is out of order at candidate {len(search.proposed)}: it was not written by "
                                 "this version of the search; give another journal.")
        else:
            event = self._write(search.propose())
        search.apply(event)
        index = event["i"]
        self.races[index] = search.race(index)
        if index in self.recorded:
            return
        tree, raw = Tree.parse(event["tree"]), Tree.parse(event["raw"])
        same = search.known(tree)
        if same is not None:
            self.pending[index] = same
            return
        seen = dict(search.masks) if search.preset.share else {}
        self.pending[index] = self.workers.submit(self.evaluator, tree, self.races[index], seen, raw)

    def _settle(self, index: int) -> None:
        if self.replay:
            event = self.replay.pop()
        else:
            found = self.pending.pop(index)
            started = time.perf_counter()
            outcome = Outcome(same=found) if isinstance(found, int) else self.workers.result(found)
            if not isinstance(outcome, Outcome):
                raise UsageError(f"the evaluator returned {outcome!r:.60} where an Outcome was asked for.")
            event = self._write(_event(index, outcome, self.races[index], self.search.candidates)
                                | {"seconds": round(time.perf_counter() - started, 3), "host": self.workers.host})
        self.races.pop(index, None)
        self.search.apply(event)

    def _write(self, event: dict[str, Any]) -> dict[str, Any]:
        return self.log.append(event) if self.log else event

    def generation(self, number: int) -> Generation:
        search = self.search
        losses = [one.fitness for one in search.population]
        return Generation(number, len(search.proposed), search.evaluated, dict(search.saved), search.best,
                          statistics.median(losses) if losses else math.nan, search.front, tuple(search.population),
                          time.perf_counter() - self.started)


def _event(index: int, outcome: Outcome, race: Race | None, candidates: Mapping[int, Candidate]) -> dict[str, Any]:
    losses = journals.unpack(journals.pack(outcome.losses))
    finite = losses and math.isfinite(sum(losses))  # as float32, which is what is kept
    if outcome.defect or outcome.same is None and not finite:
        return {"event": "reject", "i": index, "why": outcome.defect or "not finite"}
    base = {"event": "evaluate", "i": index}
    if outcome.same is not None:
        source = candidates[outcome.same]
        return base | {"same": source.index, "fitness": source.fitness, "complete": source.complete,
                       "stopped": source.stopped, "audit": False, "masks": outcome.masks}
    return base | {"fitness": _fitness(losses, outcome.complete, race), "complete": outcome.complete,
                   "stopped": outcome.stopped, "audit": bool(race and race.audit), "masks": outcome.masks,
                   "losses": journals.pack(losses),
                   "by_task": {name: round(loss, 6) for name, loss in outcome.by_task.items()}}


def _fitness(losses: Sequence[float], complete: bool, race: Race | None) -> float:
    """Mean loss; of a part of the windows, the reference's mean plus the mean paired difference."""
    if complete:
        return math.fsum(losses) / len(losses)
    difference = math.fsum(a - b for a, b in zip(losses, race.reference, strict=False)) / len(losses)
    return math.fsum(race.reference) / len(race.reference) + difference


def behind(losses: Sequence[float], race: Race) -> bool:
    """Is the mean paired difference to the reference more than `bound` standard errors above 0?

    With few windows the standard error is itself uncertain, so the bound is Student's quantile instead of the normal one
    (expanded in 1/(n - 1)): of 3 standard errors, 3.6 for 16 windows. A plain 3 stopped leaders too often.
    """
    differences = [a - b for a, b in zip(losses, race.reference, strict=False)]
    n = len(differences)
    if n < 2:
        return False
    mean = math.fsum(differences) / n
    variance = math.fsum((d - mean) ** 2 for d in differences) / (n - 1)
    bound = race.bound * (1 + (race.bound**2 + 1) / (4 * (n - 1)))
    return mean > bound * math.sqrt(variance / n)


def _header(search: Search, evaluator: Any) -> dict[str, Any]:
    return {"preset": search.preset.as_dict(), "seed": search.seed, "group": search.group,
            "seeds": [str(tree) for tree in search.seeds], "code": code_version(), "evaluator": evaluator.identity,
            "file": str(getattr(evaluator, "home", None) or ""), "started": time.strftime("%Y-%m-%d %H:%M:%S")}


def code_version() -> str:
    """Hash of the code that decides what is proposed: a search resumes only under the code that began it."""
    import hashlib

    package = Path(__file__).resolve().parents[1]
    files = [*sorted((package / "metric").glob("*.py")), *(package / "search" / f"{name}.py"
             for name in ("breed", "engine", "presets", "rivals", "sample"))]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


@dataclass(frozen=True)
class _Adapter:
    """A plain function from a tree to a loss, made an evaluator."""

    function: Callable[..., Any]
    group: str = "row"
    identity: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def around(cls, evaluator: Any) -> Any:
        if hasattr(evaluator, "identity") and hasattr(evaluator, "group"):
            return evaluator
        if not callable(evaluator) or len(inspect.signature(evaluator).parameters) != 1:
            raise UsageError("an evaluator is a function of one tree that returns a loss, or an Evaluator.")
        return cls(evaluator, identity={"function": getattr(evaluator, "__qualname__", type(evaluator).__qualname__)})

    def __call__(self, tree: Tree, race: Race | None, seen: Mapping[str, int], raw: Tree) -> Outcome:
        found = self.function(tree)
        try:
            return Outcome((float(found),))
        except (TypeError, ValueError, OverflowError):
            raise UsageError(f"the evaluator returned {found!r:.60} for {tree}: a loss is a number, lower is "
                             "better.") from None


def _status_line(search: Search) -> str:
    saved, best = search.saved, search.best
    losses = [one.fitness for one in search.population]
    return (f"best {best.fitness:.4f}" if best else "no metric yet") + \
        (f", median {statistics.median(losses):.4f}" if losses else "") + \
        f"; spared: {saved['form']} same form, {saved['masks']} same masks, {saved['race']} stopped, {saved['rejected']} rejected"
