"""Evolution as a fold over a journal: propose, evaluate, insert. Nothing here knows what an evaluation is.

Candidate i draws from its own generator, seeded by (seed, i), and sees the results of candidates up to i -
lag only, so the journal does not depend on how many evaluations run at once. An evaluator is any callable
`evaluator(tree, race, seen, raw)` that returns an `Outcome`, or simply `evaluator(tree)` that returns a loss.
"""
from __future__ import annotations

import hashlib
import inspect
import math
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunekit.errors import UsageError
from prunekit.metric.tree import Tree
from prunekit.parallel import Serial
from prunekit.progress import tqdm
from prunekit.search import journal as journals
from prunekit.search.budgets import Budget, Places
from prunekit.search.presets import Preset
from prunekit.search.presets import preset as find_preset
from prunekit.search.records import Candidate, Generation, Outcome, Race
from prunekit.search.state import Search
from prunekit.search.workers import Task, Workers

# The sources that decide a search's result, besides what the header states (preset, seed, first trees and the
# evaluator's identity): a search is resumed only under the code that began it. First what is proposed and who
# is kept, then what a loss is: masks, weight updates, the mean over windows. Not here are journal.py, whose
# FORMAT is in the header too, and workers.py and parallel.py, which say where an evaluation runs and not what
# it gives, so that a fault of theirs can be mended while a search stands still.
DECIDING = ("metric/*.py", "search/engine.py", "search/operators.py", "search/presets.py",
            "search/budgets.py", "search/random_trees.py", "search/records.py", "search/state.py",
            "search/bench.py", "search/evaluator.py", "pruning/*.py", "evaluate/perplexity.py",
            "choices.py", "models.py")
_HOPELESS = 1000  # candidates, all of which were refused


# Algorithm 1 of the paper, and where it is:
#   population = random trees with their losses                   Search._draw, random_trees.half_and_half
#   until the budget is used up: parents = two of the best of a sample                Search._published_draw
#     child = simplify(mutate(crossover(parents)))                          operators.py, metric/simplify.py
#     draw again while the child is a parent of its own, no metric, or known                Search._refusal
#     loss = evaluator(child); the child comes in, the worst goes            _Loop._settle, Search._insert
def evolve(evaluator: Callable[..., Any], preset: str | Preset = "modern", budget: int | None = None,
           seed: int = 0, journal: str | Path | None = None, executor: Any = None, *,
           seeds: Iterable[Tree | str] = (), budgets: Iterable[Budget] = (), restart: bool = False,
           progress: bool = True, **changes: Any) -> Iterator[Generation]:
    """Search for metrics or budgets; yields a `Generation` after the first population and then every few.

    evaluator: `Evaluator`, or a function from a tree to a loss (lower is better; not finite: no metric). Of
    one a journal knows the name alone; of a callable object the repr, which a dataclass writes in full.
    budget: distinct evaluations (default: the preset's); with a preset that is not `unique`, as Algorithm 1,
    candidates, trees that come again among them. journal: a file that the search is written to and resumed
    from. executor: None (here, one after the other), any concurrent.futures.Executor, or
    `open_executor(...)`. seeds, budgets: trees, as such or as text, and budgets of the first tree
    (`evaluator.budget(…)`), to try first, as they are written. restart: put a journal of another search aside
    (as …~) and begin anew instead of refusing, and of this search, with a larger budget, keep just what this
    one uses. changes: fields of the preset, such as evolve="budget". Same arguments, same generations,
    however many workers there are. Source: Algorithm 1 of arXiv 2406.02924, whose code was not published;
    see `presets.py` for what is assumed.

    Raises UsageError for an unknown preset or field, values that cannot be, text that is no tree, a loss that
    is no number, a journal of another search, in use, or damaged, a disk that is full, and where the first
    thousand candidates are all refused.
    """
    chosen = find_preset(preset, **changes)
    budget = chosen.budget if budget is None else budget
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise UsageError(f"budget {budget!r} is no number of evaluations; give 1 or more.")
    asked = _Adapter.around(evaluator)
    places = getattr(asked, "places", None) if chosen.evolve != "metric" else None
    if chosen.evolve != "metric" and places is None:
        raise UsageError("this evaluator names no places that a budget could be moved between: give an "
                         "Evaluator, or a preset that evolves metrics.")
    search = Search(chosen, seed, asked.group, seeds, places, budgets)
    if search.budgets and not places or chosen.evolve == "budget" and len(search.seeds) > 1:
        raise UsageError(f"preset '{chosen.name}' evolves {chosen.evolve}: give budgets where it evolves "
                         "budgets, and one tree where it evolves nothing else.")
    return _evolve(search, asked, budget, journal, restart, executor, progress)


def _evolve(search: Search, evaluator: Any, budget: int, journal: str | Path | None, restart: bool,
            executor: Any, progress: bool) -> Iterator[Generation]:
    chosen = search.preset
    with ExitStack() as stack:
        header = _header(search, evaluator) if journal else {}
        log = stack.enter_context(journals.Journal(journal, header, restart=restart)) if journal else None
        title = f"search ({chosen.name})"
        bar = stack.enter_context(tqdm(total=budget, desc=title, unit="tree", disable=not progress))
        workers = stack.enter_context(Workers(executor or Serial()))
        loop = _Loop(search, evaluator, log, workers, budget)
        number, shown = 0, 0
        while loop.step():
            bar.update(search.counted - bar.n)
            if search.settled >= max(chosen.population, shown + chosen.lag):
                yield loop.generation(number)
                number, shown = number + 1, search.settled
                bar.set_postfix_str(_status_line(search))
        if log and restart and loop.replay:
            log.cut(len(log.events) - len(loop.replay))  # whoever reads it reads a search of this budget
        if search.settled > shown or not number:
            yield loop.generation(number)


class _Loop:
    """Keeps `lag` evaluations under way and settles them in order; first replays what the journal holds."""

    def __init__(self, search: Search, evaluator: Any, log: journals.Journal | None, workers: Workers,
                 budget: int):
        self.search, self.evaluator, self.log, self.workers = search, evaluator, log, workers
        self.budget = budget
        self.replay = log.events[:0:-1] if log else []  # all but the header, the last first
        self.recorded = {event["i"] for event in self.replay if event["event"] != "propose"}
        self.pending: dict[int, Task | int] = {}
        self.races: dict[int, Race | None] = {}
        self.refused = ""
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
        if search.settled >= _HOPELESS and not search.counted:
            raise UsageError(f"all of the first {search.settled} candidates were refused, the last one since "
                             f"{self.refused}; look at the evaluator.")
        return True

    def _propose(self) -> None:
        search = self.search
        if self.replay:
            event = self.replay.pop()
            if event["event"] != "propose" or event["i"] != len(search.proposed):
                raise UsageError(f"the journal is out of order at candidate {len(search.proposed)}: it was "
                                 "not written by this version of the search; give another journal.")
        else:
            event = self._write(search.propose())
        search.apply(event)
        index = event["i"]
        self.races[index] = search.race(index)
        if index in self.recorded:
            return
        tree, raw = Tree.parse(event["tree"]), Tree.parse(event["raw"])
        budget = search.budget_in(event)
        same = search.known(tree, budget)
        if same is not None:
            self.pending[index] = same
            return
        seen = dict(search.masks) if search.preset.share else {}
        given = (tree, self.races[index], seen, raw) + (() if budget is None else (budget,))
        self.pending[index] = self.workers.submit(self.evaluator, *given)

    def _settle(self, index: int) -> None:
        if self.replay:
            event = self.replay.pop()
        else:
            pending, started = self.pending.pop(index), time.perf_counter()
            known = isinstance(pending, int)
            outcome = Outcome(same=pending) if known else self.workers.result(pending)
            if not isinstance(outcome, Outcome):
                raise UsageError(f"the evaluator returned {outcome!r:.60} where an Outcome was asked for.")
            event = self._write({**_event(index, outcome, self.races[index], self.search.candidates),
                                 "seconds": round(time.perf_counter() - started, 3),
                                 "host": self.workers.host})
        self.races.pop(index, None)
        self.refused = event.get("why", self.refused)
        self.search.apply(event)

    def _write(self, event: dict[str, Any]) -> dict[str, Any]:
        return self.log.append(event) if self.log else event

    def generation(self, number: int) -> Generation:
        search = self.search
        return Generation(number, len(search.proposed), search.evaluated, dict(search.saved), search.best,
                          _median(search), search.front, tuple(search.population),
                          time.perf_counter() - self.started)


def _median(search: Search) -> float:
    return statistics.median([member.fitness for member in search.population] or [math.nan])


def _status_line(search: Search) -> str:
    saved, best = search.saved, search.best
    losses = f"best {best.fitness:.4f}, median {_median(search):.4f}" if best else "no metric yet"
    return (f"{losses}; spared: {saved['form']} same form, {saved['masks']} same masks, "
            f"{saved['race']} stopped, {saved['rejected']} rejected")


def _event(index: int, outcome: Outcome, race: Race | None,
           candidates: Mapping[int, Candidate]) -> dict[str, Any]:
    """What the journal keeps of an outcome."""
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


def _header(search: Search, evaluator: Any) -> dict[str, Any]:
    budgets = {} if search.places is None else search.places.plain() | {
        "budgets": [list(budget.moved) for budget in search.budgets]}
    return {"preset": search.preset.as_dict(), **budgets, "seed": search.seed, "group": search.group,
            "seeds": [str(tree) for tree in search.seeds], "code": code_version(),
            "evaluator": evaluator.identity, "file": str(getattr(evaluator, "home", None) or ""),
            "started": time.strftime("%Y-%m-%d %H:%M:%S")}


def code_version() -> str:
    """Hash of the sources that decide a search's result."""
    package = Path(__file__).resolve().parents[1]
    files = [file for pattern in DECIDING for file in sorted(package.glob(pattern))]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


@dataclass(frozen=True)
class _Adapter:
    """A plain function from a tree (or a tree and a budget) to a loss, made an evaluator."""

    function: Callable[..., Any]
    group: str = "row"
    identity: Mapping[str, Any] = field(default_factory=dict)
    places: Places | None = None

    @classmethod
    def around(cls, evaluator: Any) -> Any:
        if hasattr(evaluator, "identity") and hasattr(evaluator, "group"):
            return evaluator
        parameters = inspect.signature(evaluator).parameters.values() if callable(evaluator) else ()
        if [each.name == "budget" for each in parameters] not in ([False], [False, True]):
            raise UsageError("an evaluator is a function of one tree that returns a loss, or an Evaluator.")
        identity = {"function": getattr(evaluator, "__qualname__", type(evaluator).__qualname__)}
        if not hasattr(evaluator, "__qualname__"):  # an object: how it is written, but not where it lies
            written = re.sub(r" at 0x\w+", "", repr(evaluator))
            identity["state"] = hashlib.sha256(written.encode()).hexdigest()[:16]
        return cls(evaluator, identity=identity, places=getattr(evaluator, "places", None))

    def __call__(self, tree: Tree, race: Race | None, seen: Mapping[str, int], raw: Tree,
                 budget: Budget | None = None) -> Outcome:
        loss = self.function(tree) if budget is None else self.function(tree, budget)
        try:
            return Outcome((float(loss),))
        except (TypeError, ValueError, OverflowError):
            raise UsageError(f"the evaluator returned {loss!r:.60} for {tree}: a loss is a number, lower is "
                             "better.") from None
