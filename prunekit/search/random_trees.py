"""Random trees (grow, full, ramped half-and-half), and all trees, smallest first."""
from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from prunekit.errors import UsageError, did_you_mean
from prunekit.metric.primitives import arity, symbols
from prunekit.metric.tree import Tree


@dataclass(frozen=True)
class Alphabet:
    """What trees are made of. `without`: symbols left out (as exact duplicates of others). `binary`: how
    often an inner node is binary; None draws every operation alike."""

    grammar: str = "reference"
    without: tuple[str, ...] = ()
    binary: float | None = None
    by_arity: tuple[tuple[str, ...], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        known = symbols(self.grammar)
        for symbol in self.without:
            if symbol not in known:
                raise UsageError(f"an alphabet has no symbol {symbol!r:.40} to leave out"
                                 f"{did_you_mean(symbol, known)}.")
        object.__setattr__(self, "by_arity", _by_arity(self.grammar, self.without))
        leaves, unary, binary = self.by_arity
        if self.binary is not None and not 0 <= self.binary <= 1:
            raise UsageError(f"alphabet: binary = {self.binary!r:.40} must be None, or a share from 0 to 1.")
        often = self.binary
        drawn = [unary + binary] if often is None else [unary] * (often < 1) + [binary] * (often > 0)
        if not all([leaves, *drawn]):
            raise UsageError("an alphabet needs a terminal, and operations of each kind that it is to draw: "
                             "leave out less.")

    def leaf(self, rng: random.Random) -> str:
        return rng.choice(self.by_arity[0])

    def operation(self, rng: random.Random) -> str:
        _, unary, binary = self.by_arity
        if self.binary is None:
            return rng.choice(unary + binary)
        return rng.choice(binary if rng.random() < self.binary else unary)

    def alike(self, rng: random.Random, symbol: str) -> str:
        """Another symbol with as many operands (the same one where there is no other)."""
        return rng.choice([other for other in self.by_arity[arity(symbol)] if other != symbol] or [symbol])


@lru_cache(maxsize=16)
def _by_arity(grammar: str, without: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    kept = [symbol for symbol in symbols(grammar) if symbol not in without]
    return tuple(tuple(symbol for symbol in kept if arity(symbol) == count) for count in range(3))


def random_tree(rng: random.Random, depth: int, alphabet: Alphabet = Alphabet(), full: bool = False) -> Tree:
    """A tree of at most (with `full`: in every branch exactly) `depth` edges from the root to a leaf.

    "grow" draws a leaf with the share that leaves have among all symbols, but never at the root (Koza 1992,
    6.2).
    """
    leaves, operations = len(alphabet.by_arity[0]), sum(map(len, alphabet.by_arity[1:]))
    share = leaves / (leaves + operations)

    def below(left: int, root: bool) -> list[str]:
        if left == 0 or not (full or root) and rng.random() < share:
            return [alphabet.leaf(rng)]
        symbol = alphabet.operation(rng)
        return [symbol, *(s for _ in range(arity(symbol)) for s in below(left - 1, False))]

    return Tree(below(depth, True))


def half_and_half(rng: random.Random, depths: Sequence[int], alphabet: Alphabet = Alphabet()) -> Tree:
    """Ramped half-and-half: a depth from `depths`, and grow or full, all equally likely."""
    return random_tree(rng, rng.choice(depths), alphabet, full=rng.random() < 0.5)


def smallest_first(alphabet: Alphabet, largest: int) -> Iterator[Tree]:
    """Every tree of at most `largest` symbols; those of one size in the alphabet's order."""
    leaves, unary, binary = alphabet.by_arity

    def of(size: int) -> Iterator[tuple[str, ...]]:
        if size == 1:
            yield from ((leaf,) for leaf in leaves)
            return
        yield from ((symbol, *a) for symbol in unary for a in of(size - 1))
        yield from ((symbol, *a, *b) for symbol in binary for left in range(1, size - 1) for a in of(left)
                    for b in of(size - 1 - left))
    return (Tree(tree) for size in range(1, largest + 1) for tree in of(size))
