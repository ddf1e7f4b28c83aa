"""Trees that nobody bred: random ones (Koza's), all of them smallest first, and the grid of monomials."""
from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce

from prunekit.errors import UsageError, did_you_mean
from prunekit.metric.primitives import TERMINALS, arity, symbols
from prunekit.metric.tree import Tree

GRID_STEPS = 12  # so that halves, thirds, quarters and sixths are among the exponents
MOST_STEPS = 15  # what four bits hold: a square, the terminal itself, its root, and the root of that


@dataclass(frozen=True)
class Alphabet:
    """What trees are made of. `without`: symbols left out (as exact duplicates of others). `binary`: how
    often an inner node is binary; None draws every operation alike."""

    grammar: str = "reference"
    without: tuple[str, ...] = ()
    binary: float | None = None

    def __post_init__(self) -> None:
        known = symbols(self.grammar)
        for symbol in self.without:
            if symbol not in known:
                raise UsageError(f"an alphabet has no symbol {symbol!r:.40} to leave out"
                                 f"{did_you_mean(symbol, known)}.")
        if self.binary is not None and not 0 <= self.binary <= 1:
            raise UsageError(f"alphabet: binary = {self.binary!r:.40} must be None, or a share from 0 to 1.")
        leaves, unary, binary = self.by_arity
        share = self.binary
        drawn = [unary + binary] if share is None else [unary] * (share < 1) + [binary] * (share > 0)
        if not all([leaves, *drawn]):
            raise UsageError("an alphabet needs a terminal, and operations of each kind that it is to draw: "
                             "leave out less.")

    @property
    def by_arity(self) -> tuple[tuple[str, ...], ...]:
        """Its terminals and constants, unary and binary operations."""
        return _by_arity(self.grammar, self.without)

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
        yield from ((symbol, *a, *b) for symbol in binary for left in range(1, size - 1)
                    for a in of(left) for b in of(size - 1 - left))
    return (Tree(tree) for size in range(1, largest + 1) for tree in of(size))


def grid(steps: int = GRID_STEPS) -> dict[tuple[int, int, int], Tree]:
    """Every W^a G^b X^c with a + b + c = `steps` (at most 15), by (a, b, c): 91 of them for 12 steps.

    Only ratios of exponents matter to a mask, so this holds magnitude (12, 0, 0), Wanda (8, 0, 4), W·G (6, 6,
    0) and W²·G (8, 4, 0). As trees the exponents are quarters, which keeps the products inside float32.
    Raises UsageError for other steps.
    """
    if not 1 <= steps <= MOST_STEPS:
        raise UsageError(f"a grid of {steps} steps cannot be; give 1 to {MOST_STEPS}.")
    points = ((a, b, steps - a - b) for a in range(steps + 1) for b in range(steps + 1 - a))
    return {point: monomial(dict(zip(TERMINALS, point, strict=True))) for point in points}


def monomial(exponents: Mapping[str, int]) -> Tree:
    """W^a G^b X^c, exponents in quarters from 0 to 15: a product of squares and roots of the terminals."""
    powers = {8: ("sqr",), 4: (), 2: ("sqrt",), 1: ("sqrt", "sqrt")}
    factors = [(*power, name) for name, quarters in exponents.items()
               for bit, power in powers.items() if quarters & bit]
    return Tree(reduce(lambda left, right: ("mul", *left, *right), factors))
