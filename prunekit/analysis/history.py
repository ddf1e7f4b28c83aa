"""What a journal holds, as tables; and which of the finalists to choose."""
from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_left
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from prunekit.evaluate.intervals import corrected, mean_of, verdict
from prunekit.metric.rank import rank_key
from prunekit.metric.tree import Tree
from prunekit.search import journal as journals
from prunekit.search.budgets import Budget, Places
from prunekit.search.presets import Preset
from prunekit.search.records import Candidate, pareto
from prunekit.search.state import Search

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.search.evaluator import Evaluator

_COLUMNS = ["journal", "preset", "seed", "i", "tree", "raw", "operator", "parents", "size", "depth",
            "terminals", "fitness", "complete", "stopped", "audited", "same", "evaluated", "best", "seconds",
            "windows", "rung", "group", "grammar", "measured"]
_AS_THEY_ARE = ("operator", "fitness", "complete", "stopped", "audited", "same")  # of a candidate
_NOT_MEASURED = ("file", "rungs", "threads", "torch")  # of an evaluator's identity: how, not what


def replay(path: str | Path) -> Search:
    """The state of a search, from its journal alone (also while it runs). Raises UsageError as
    `journal.read`."""
    return replayed(*journals.read(path))


def replayed(header: Mapping[str, Any], *events: Mapping[str, Any]) -> Search:
    """The state of a search after some events of its journal; after none, as it began."""
    places = Places.from_plain(header) if "places" in header else None
    budgets = [Budget(places, tuple(moved)) for moved in header.get("budgets", ())]
    preset = Preset.from_dict(header["preset"])
    search = Search(preset, header["seed"], header["group"], header["seeds"], places, budgets)
    for event in events:
        search.apply(event)
    return search


def history(paths: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """One row per evaluated candidate of one or several journals, in the order of evaluation.

    Columns: journal (the file's name; where several share it, with as much of the folder as tells them
    apart), preset, seed, i, tree, raw, operator, parents, size, depth, terminals, fitness, complete, stopped,
    audited, same (the earlier candidate with these masks), evaluated (distinct evaluations so far), best
    (lowest loss of a completely measured one so far), seconds, windows (that its loss was measured on), rung
    (1: stopped after the first), group, grammar, measured (hash of what was measured: models, targets,
    update, windows; losses compare where it is equal); and, where the journal tells targets apart,
    `loss[0.7]`, `loss[embedded/opt 2:4]`, …: mean loss of each on those windows, whose mean is fitness where
    `complete`. A journal without candidates gives no rows.
    """
    files = list(dict.fromkeys(map(Path, [paths] if isinstance(paths, (str, Path)) else paths)))
    rows = [row for path, name in zip(files, _names(files), strict=True) for row in _rows(path, name)]
    columns = list(dict.fromkeys([*_COLUMNS, *(name for row in rows for name in row)]))
    return pd.DataFrame(rows, columns=columns).astype({"fitness": float, "complete": bool})  # also of no rows


def _names(files: Sequence[Path]) -> list[str]:
    names: list[str] = []
    for length in range(1, max((len(path.parts) for path in files), default=0) + 1):
        names = ["/".join(path.with_suffix("").parts[-length:]) for path in files]
        if len(set(names)) == len(names):
            break
    return names


def _rows(path: Path, name: str) -> list[dict[str, Any]]:
    header, *events = journals.read(path)
    search, identity = replayed(header, *events), header["evaluator"]
    seconds = {event["i"]: event.get("seconds") for event in events if event["event"] == "evaluate"}
    what = json.dumps({key: identity[key] for key in identity if key not in _NOT_MEASURED}, sort_keys=True)
    measured = hashlib.sha256(what.encode()).hexdigest()[:8]
    shared = {"journal": name, "preset": search.preset.name, "seed": search.seed, "group": search.group,
              "grammar": search.preset.alphabet.grammar, "measured": measured}
    rows, evaluated, best = [], 0, math.nan
    for candidate in search.candidates.values():
        tree, windows = candidate.tree, len(candidate.losses)
        evaluated += candidate.same is None
        if candidate.complete and not candidate.fitness >= best:
            best = candidate.fitness
        rows.append({**shared, **{field: getattr(candidate, field) for field in _AS_THEY_ARE},
                     "i": candidate.index, "tree": str(tree), "raw": str(candidate.raw),
                     "parents": " ".join(map(str, candidate.parents)), "size": tree.size, "depth": tree.depth,
                     "terminals": "".join(sorted(tree.terminals)), "evaluated": evaluated, "best": best,
                     "seconds": seconds[candidate.index], "windows": windows,
                     "rung": 1 + bisect_left(identity.get("rungs", []), windows),
                     **({} if candidate.budget is None else {"budget": str(candidate.budget)}),
                     **{f"loss[{target}]": loss for target, loss in candidate.by_task.items()}})
    return rows


def finalists(candidates: Iterable[Candidate] | str | Path, count: int = 10) -> list[Candidate]:
    """The Pareto front of size against loss and the `count` lowest losses, of the completely measured, also
    of several searches with one evaluator (the same tree once), or of a journal; best first."""
    if isinstance(candidates, (str, Path)):
        candidates = replay(candidates).candidates.values()
    measured = (candidate for candidate in candidates if candidate.complete and candidate.same is None)
    best: dict[tuple[Tree, Budget | None], Candidate] = {}
    for candidate in sorted(measured, key=lambda candidate: candidate.order):
        best.setdefault((candidate.tree, candidate.budget), candidate)
    chosen = {*list(best.values())[:count], *pareto(best.values())}
    return [candidate for candidate in best.values() if candidate in chosen]


def choose(evaluator: Evaluator, finalists: Sequence[Candidate], select: Sequence[Tensor]) -> pd.DataFrame:
    """The finalists measured on windows that no search saw (one tensor per model), lowest loss first.

    Columns: i, tree, size, search (loss on the search windows), select (loss here), optimism (select -
    search), of a search for budgets `budget` (as JSON, for `prune`), and of several targets or models each
    one's loss here, as `select[2:4]`. The first row is the winner; report it on test windows, once.
    """
    rows, unseen = [], evaluator.on(select)
    for candidate in finalists:
        losses = unseen.losses(candidate.tree, candidate.budget)  # (models, targets, windows)
        losses = losses.mean(-1).flatten()  # (parts,)
        loss = float(losses.mean())
        parts = dict(zip(evaluator.parts, losses, strict=True)) if len(losses) > 1 else {}
        rows.append({"i": candidate.index, "tree": str(candidate.tree), "size": candidate.tree.size,
                     **({} if candidate.budget is None else {"budget": str(candidate.budget)}),
                     "search": candidate.fitness, "select": loss, "optimism": loss - candidate.fitness,
                     **{f"select[{part}]": value for part, value in parts.items()}})
    return pd.DataFrame(rows).sort_values(["select", "size", "i"], ignore_index=True)


# Several searches, several seeds of each --------------------------------------------------------------------


def searches(history: pd.DataFrame) -> pd.DataFrame:
    """With a column `search`, from the names that notebook 04 gives its journals: `journal-KIND`, and of
    further seeds `journal-KIND-SEED`. Of a search that was given its points and draws nothing only these
    are kept, not what replaced refused ones.
    """
    named = history.assign(search=history["journal"].str.split("-").str[1])
    given, bred = named["operator"] == "given", named["parents"] != ""
    listed, bred = (which.groupby(named["journal"]).transform("any") for which in (given, bred))
    return named[given | bred | ~listed]


def lowest(history: pd.DataFrame, unseen: Evaluator | None = None) -> dict[str, Tree]:
    """The metrics of lowest loss of `searches`: of each but `modern`; of all, those without G, without X.

    unseen: an evaluator on select windows; of each the one of its `finalists` is taken that is lowest there.
    """
    ranked = history[history["complete"]].sort_values("fitness", kind="stable")
    names = {"grid": "the grid", "parametric": "the parametric form"}
    parts = {f"best of {names.get(search, search)}": rows for search, rows in ranked.groupby("search")
             if search != "modern"}
    parts |= {f"best without {read}": ranked[~ranked["terminals"].str.contains(read)] for read in "GX"}
    loss = cache(lambda tree: unseen.losses(tree).mean() if unseen else 0)
    return {name: min(_leading(rows["tree"]), key=loss) for name, rows in parts.items() if len(rows)}


def _leading(texts: Iterable[str], count: int = 10) -> list[Tree]:
    """The finalists among metrics in the order of their losses; spellings of one metric count once."""
    found: dict[Hashable, Tree] = {}
    for tree in map(Tree.parse, texts):
        if len(found) < count or tree.size < min(other.size for other in found.values()):
            found.setdefault(rank_key(tree), tree)
    return list(found.values())


def convergence(history: pd.DataFrame) -> pd.DataFrame:
    """Best loss so far against distinct evaluations, over the seeds of each of `searches`.

    Columns: search, evaluated, loss (median), low, high (range). A curve starts where every seed has a loss,
    and where breeding starts, if anything is bred, since what was planted or drawn before is no find of it;
    it ends with the longest of its seeds; one that has ended keeps its last loss until then.
    """
    curves = []
    for search, rows in history[history["same"].isna()].groupby("search", sort=False):
        bred = (rows["parents"] != "").groupby(rows["journal"]).cummax()
        rows = rows[bred] if bred.any() else rows
        best = rows.pivot_table(index="evaluated", columns="seed", values="best", aggfunc="last")
        over_seeds = best.ffill().dropna().agg(["median", "min", "max"], axis=1)
        over_seeds.columns = ["loss", "low", "high"]
        curves.append(over_seeds.reset_index().assign(search=search))
    return pd.concat(curves, ignore_index=True)


def ends(history: pd.DataFrame) -> pd.DataFrame:
    """What each of `searches` has ended with: columns search, seeds, evaluated (distinct; median over seeds),
    planted (lowest loss of what was given or put into the first population), drawn (of what was drawn at
    random), bred (of what has parents; medians over seeds), equal (best loss after as many evaluations as the
    shortest of all had), and of the best losses median, lowest, highest."""
    loss, bred = history["fitness"].where(history["complete"]), history["parents"] != ""
    planted = ~bred & history["operator"].isin(["given", "monomial"])
    equal = history.groupby(["search", "seed"])["evaluated"].max().min()
    parts = {"planted": planted, "drawn": ~bred & ~planted, "bred": bred,
             "equal": history["evaluated"] <= equal}
    known = history.assign(best=loss, **{part: loss.where(those) for part, those in parts.items()})
    each = known.groupby(["search", "seed"], sort=False).agg(
        evaluated=("evaluated", "max"), best=("best", "min"), **{part: (part, "min") for part in parts})
    medians = {part: (part, "median") for part in ("evaluated", *parts)}
    return each.groupby("search", sort=False).agg(
        seeds=("best", "size"), **medians, median=("best", "median"), lowest=("best", "min"),
        highest=("best", "max")).reset_index()


def leads(history: pd.DataFrame, first: str) -> pd.DataFrame:
    """The best loss of one of `searches` minus that of each other one at equal budgets, over seeds: columns
    search, evaluated (by either of the two, at most), change, holm_low, holm_high, n (seeds), p_holm and
    verdict.

    Seeds are paired in their order, which loses freedom but no validity, as they have nothing in common; a
    search that draws nothing has one, which stands for itself. Student's t; of one seed nothing can be told.
    """
    ended = history.groupby(["search", "seed"])["evaluated"].max().groupby("search").min()

    def best(search: str, budget: int) -> pd.Series:
        within = (history["search"] == search) & history["complete"] & (history["evaluated"] <= budget)
        return history[within].groupby("seed")["fitness"].min().reset_index(drop=True)

    drawing, found = history["operator"].ne("given").groupby(history["search"]).any(), []
    for search in ended.index.drop(first):
        budget = min(ended[first], ended[search])
        ours, theirs = best(first, budget), best(search, budget)
        theirs = theirs if drawing[search] else pd.Series(theirs.min(), ours.index)
        pair = pd.DataFrame({"ours": ours, "theirs": theirs}).dropna()
        change = (pair["ours"] - pair["theirs"]).to_numpy()
        found.append((search, budget, mean_of(change, running=False), len(change)))
    told = corrected(mean for *_, mean, _ in found)
    rows = [(search, budget, mean.value, *interval, n, p, verdict(p, mean.value))
            for (search, budget, mean, n), (p, *interval) in zip(found, told, strict=True)]
    columns = ["search", "evaluated", "change", "holm_low", "holm_high", "n", "p_holm", "verdict"]
    return pd.DataFrame(rows, columns=columns)
