"""What a search tried, as traits of distinct metrics: symbols, shape, exponents, families, change with time.

    frame = pk.traits(pk.history(paths))     one row per distinct metric (rank key), never per text

What follows from them is counted in `prunekit.analysis.findings`.
"""
from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from prunekit.errors import UsageError
from prunekit.metric.primitives import TERMINALS, symbols
from prunekit.metric.rank import canonical
from prunekit.metric.syntax import fold
from prunekit.metric.tree import Tree

SHAPE = ("size", "depth", "sign", "homogeneous", "a", "b", "c")
_OWN = ["key", "journal", "preset", "seed", "i", "evaluated", "position", "fitness", "complete", "operator",
        "parents", "gain", "family", *SHAPE, "pairs"]


def traits(history: pd.DataFrame) -> pd.DataFrame:
    """One row per distinct metric of `history` (which may hold several journals), in the order of evaluation.

    Of the texts with one rank key the first that was measured completely counts, or else the first. All
    traits are those of the canonical form, so that they belong to the metric and not to its text. Columns:
    key (the canonical form), journal, preset, seed, i, evaluated, position (0 to 1 within its journal),
    fitness, complete, operator, parents, gain (loss of its first parent minus its own), family (the random
    tree it descends from), size, depth, sign (1: proven >= 0), homogeneous, a, b, c (where the key is a
    monomial W^a G^b X^c; scaled so that |a|+|b|+|c| = 1), pairs (parent and child as `mul>W`), for every
    symbol of the grammar how often it occurs, and the loss of each target, as in `history`.

    Raises UsageError if the journals have different grammars, comparison groups or evaluators, since their
    losses do not compare, and if two journals have one name.
    """
    history = history.reset_index(drop=True)  # of several that were joined it may repeat
    _comparable(history)
    names = tuple(symbols(history["grammar"].iloc[0] if len(history) else "reference"))
    keys = [_key(tree, group) for tree, group in zip(history["tree"], history["group"], strict=True)]
    whole = history.groupby("journal")["evaluated"].transform("max")
    frame = history.assign(key=keys, gain=_gains(history), family=_families(history),
                           position=history["evaluated"] / whole)
    complete_first = frame.sort_values("complete", ascending=False, kind="stable")
    kept = complete_first.drop_duplicates("key").sort_index().drop(columns=["size", "depth"])
    shapes = pd.DataFrame([_shape(key, names) for key in kept["key"]], index=kept.index,
                          columns=[*SHAPE, "pairs", *names]).astype({"size": int, "depth": int})
    losses = [name for name in history if name.startswith("loss[")]
    return kept.join(shapes)[[*_OWN, *names, *losses]].reset_index(drop=True)


def _comparable(history: pd.DataFrame) -> None:
    for column, what in (("grammar", "grammars"), ("group", "comparison groups"), ("measured", "evaluators")):
        journals = history.groupby(column)["journal"].first()
        if len(journals) > 1:
            which = ", ".join(f"{journal}: {value}" for value, journal in journals.items())
            raise UsageError(f"these journals have different {what} ({which}), so their losses do not "
                             f"compare: analyse them apart, as in history.groupby('{column}').")
    if (twice := history.duplicated(["journal", "i"])).any():
        raise UsageError(f"two journals are called '{history.loc[twice, 'journal'].iloc[0]}': read them in "
                         "one call, as in pk.history([first, second]), or name them by .assign(journal=…).")


def first_parents(frame: pd.DataFrame) -> list[int | None]:
    """The candidate that each row was bred from, of two the first."""
    return [int(text.split()[0]) if text else None for text in frame["parents"]]


def _gains(frame: pd.DataFrame) -> list[float]:
    losses = dict(zip(zip(frame["journal"], frame["i"], strict=True), frame["fitness"], strict=True))
    parents = zip(frame["journal"], first_parents(frame), strict=True)
    return [losses.get(parent, math.nan) - own for parent, own in zip(parents, frame["fitness"], strict=True)]


def _families(frame: pd.DataFrame) -> list[str]:
    founders: dict[tuple[str, int | None], str] = {}
    for journal, i, parent in zip(frame["journal"], frame["i"], first_parents(frame), strict=True):
        founders[journal, i] = founders.get((journal, parent), f"{journal}/{i}")
    return list(founders.values())


@lru_cache(maxsize=1 << 16)
def _key(text: str, group: str) -> str:
    return str(canonical(Tree.parse(text), group))


@lru_cache(maxsize=1 << 16)
def _shape(key: str, names: tuple[str, ...]) -> list[Any]:
    tree = Tree.parse(key)
    powers = exponents(tree) or (math.nan,) * 3
    return [tree.size, tree.depth, tree.sign, tree.homogeneous, *powers, " ".join(sorted(pairs(tree))),
            *(tree.count(name) for name in names)]


def pairs(tree: Tree) -> set[str]:
    """Which operation stands directly above what, as {"mul>W", "mul>sqrt", "sqrt>X"}."""
    held: set[str] = set()

    def step(symbol: str, children: list[str]) -> str:
        held.update(f"{symbol}>{child}" for child in children)
        return symbol
    fold(tree, step)
    return held


def exponents(tree: Tree) -> tuple[float, float, float] | None:
    """(a, b, c) with |a|+|b|+|c| = 1 if the tree is a product of powers of W, G and X; else None.

    Only ratios of exponents matter to a mask. sqrt(mul(W, W)) is (1, 0, 0), mul(W, sqrt(X)) is (2/3, 0, 1/3).
    """
    factor = {"sqr": 2.0, "pow": 2.0, "sqrt": 0.5, "abs": 1.0, "skp": 1.0}

    def step(symbol: str, args: list[np.ndarray | None]) -> np.ndarray | None:
        if symbol in TERMINALS:
            return np.eye(3)[TERMINALS.index(symbol)]
        if not args:
            return np.zeros(3)  # a constant
        if any(arg is None for arg in args):
            return None
        if symbol in ("mul", "ediv"):
            return args[0] + args[1] if symbol == "mul" else args[0] - args[1]
        return args[0] * factor[symbol] if symbol in factor else None

    powers = fold(tree, step)
    if powers is None or not powers.any():
        return None
    return tuple(float(power) for power in powers / np.abs(powers).sum())


def counted(frame: pd.DataFrame) -> list[str]:
    """The symbols that a frame of traits counts."""
    return [name for name in symbols("extended") if name in frame]


def front(frame: pd.DataFrame) -> pd.DataFrame:
    """The completely measured metrics of `traits` by loss, with columns front (no smaller one is as good: the
    Pareto front of size against loss) and formula (as people write it)."""
    complete = frame[frame["complete"]].sort_values(["fitness", "size"])
    on = complete["size"].expanding().min().shift().fillna(math.inf) > complete["size"]
    return complete.assign(front=on, formula=[Tree.parse(key).infix() for key in complete["key"]])


def lineage(history: pd.DataFrame, i: int) -> pd.DataFrame:
    """The ancestors of candidate i and itself, oldest first; history: of one journal.

    Columns: i, tree, formula (as people write it), operator, parents, fitness, gain (loss of the first parent
    minus its own), main (on the line of first parents), best (lower loss than all before it on that line).
    Raises UsageError if there is no such candidate, or if there are several journals.
    """
    if (history["i"] == i).sum() != 1 or history["journal"].nunique() > 1:
        raise UsageError(f"there is not one candidate {i} here: give its number and the history of its "
                         "journal alone, as in history[history['journal'] == 'modern'].")
    family, main = {i}, {i}
    for child in history[::-1].itertuples():  # children before their parents
        if child.i in family:
            parents = [int(parent) for parent in child.parents.split()]
            family.update(parents)
            main.update(parents[:1] if child.i in main else ())
    rows = history.assign(gain=_gains(history), main=history["i"].isin(main))[history["i"].isin(family)]
    line = rows["fitness"].where(rows["main"])
    rows["best"] = rows["main"] & ~(line >= line.cummin().shift().ffill())
    rows["formula"] = [Tree.parse(tree).infix() for tree in rows["tree"]]
    columns = ["i", "tree", "formula", "operator", "parents", "fitness", "gain", "main", "best"]
    return rows[columns].reset_index(drop=True)
