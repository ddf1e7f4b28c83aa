"""Evolution as a fold over a journal: propose, evaluate, insert. Nothing here knows what an evaluation is.

Candidate i draws from its own generator, seeded by (seed, i), and sees the results of candidates up to i -
lag only, so the journal does not depend on how many evaluations run at once. An evaluator is any callable
`evaluator(tree, race, seen, raw)` that returns an `Outcome`, or simply `evaluator(tree)` that returns a loss.
"""
from __future__ import annotations

import inspect
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from prunekit.errors import UsageError
from prunekit.metric.tree import Tree
from prunekit.parallel import Serial
from prunekit.search import journal as journals
from prunekit.search.presets import Preset
from prunekit.search.presets import preset as find_preset
from prunekit.search.records import Candidate, Generation, Outcome, Race
from prunekit.search.state import Search
from prunekit.search.workers import Task, Workers


def evolve(evaluator: Callable[..., Any], preset: str | Preset = "modern", budget: int | None = None, seed: int = 0,
           journal: str | Path | None = None, executor: Any = None, *, seeds: Sequence[Tree] = (), restart: bool = False,
           progress: bool = True, **changes: Any) -> Iterator[Generation]:
    """Search for metrics; yields a `Generation` after the first population and after every few candidates.

    evaluator: `Evaluator`, or a function from a tree to a loss (lower is better; not finite: no metric).
    budget: distinct evaluations (default: the preset's). journal: a file that the search is written to and
    resumed from. executor: None (here, one after the other), any concurrent.futures.Executor, or
    `open_executor(...)`. seeds: trees to try first. restart: put a journal of another search aside (as …~)
    and begin anew instead of refusing. changes: fields of the preset. Same arguments, same generations,
    however many workers there are. Source: Algorithm 1 of arXiv 2406.02924, whose code was not published; see
    `presets.py` for what is assumed.

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

# The sources that decide a search's result, together with its seed and its evaluator.
DECIDING = ("metric/*.py", "search/controls.py", "search/engine.py", "search/operators.py", "search/presets.py",
            "search/random_trees.py", "search/records.py", "search/state.py")


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


def _header(search: Search, evaluator: Any) -> dict[str, Any]:
    return {"preset": search.preset.as_dict(), "seed": search.seed, "group": search.group,
            "seeds": [str(tree) for tree in search.seeds], "code": code_version(), "evaluator": evaluator.identity,
            "file": str(getattr(evaluator, "home", None) or ""), "started": time.strftime("%Y-%m-%d %H:%M:%S")}


def code_version() -> str:
    """Hash of the code that decides what is proposed: a search resumes only under the code that began it."""
    import hashlib

    package = Path(__file__).resolve().parents[1]
    files = [file for pattern in DECIDING for file in sorted(package.glob(pattern))]
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
