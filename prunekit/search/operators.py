"""How new trees are made from old ones: each operator takes parents and a generator, and returns a tree."""
from __future__ import annotations

import random
from collections.abc import Mapping

from prunekit.metric.primitives import arity
from prunekit.metric.tree import Tree
from prunekit.search.random_trees import Alphabet, random_tree

_NEW_DEPTH = 2  # of subtrees that mutation grows
_POWERS = ("sqr", "sqrt")


def crossover(rng: random.Random, alphabet: Alphabet, a: Tree, b: Tree) -> Tree:
    """A random subtree of `a` replaced by a random subtree of `b`."""
    at = rng.randrange(len(b))
    return a.replace(rng.randrange(len(a)), b[b.span(at)])


def point(rng: random.Random, alphabet: Alphabet, a: Tree) -> Tree:
    """One symbol replaced by another with as many operands."""
    return _renamed(rng, alphabet, a, rng.randrange(len(a)))


def _renamed(rng: random.Random, alphabet: Alphabet, a: Tree, at: int) -> Tree:
    return Tree((*a[:at], alphabet.alike(rng, a[at]), *a[at + 1:]))


def regrow(rng: random.Random, alphabet: Alphabet, a: Tree) -> Tree:
    """A random subtree replaced by a new one."""
    return a.replace(rng.randrange(len(a)), random_tree(rng, rng.randint(1, _NEW_DEPTH), alphabet))


def insert(rng: random.Random, alphabet: Alphabet, a: Tree) -> Tree:
    """A new operation put above a random subtree; a second operand is a leaf."""
    at, symbol = rng.randrange(len(a)), alphabet.operation(rng)
    below = a[a.span(at)]
    if arity(symbol) == 1:
        return a.replace(at, (symbol, *below))
    leaf = (alphabet.leaf(rng),)
    return a.replace(at, (symbol, *below, *leaf) if rng.random() < 0.5 else (symbol, *leaf, *below))


def hoist(rng: random.Random, alphabet: Alphabet, a: Tree) -> Tree:
    """A random subtree replaced by one of its own subtrees: the tree gets smaller."""
    at = rng.randrange(len(a))
    part = Tree(a[a.span(at)])
    inner = rng.randrange(len(part))
    return a.replace(at, part[part.span(inner)])


def swap(rng: random.Random, alphabet: Alphabet, a: Tree) -> Tree:
    """One leaf replaced by another terminal."""
    return _renamed(rng, alphabet, a, rng.choice([at for at, symbol in enumerate(a) if arity(symbol) == 0]))


def power(rng: random.Random, alphabet: Alphabet, a: Tree) -> Tree:
    """A random subtree squared or under a root; one that is squared or under a root already loses that as
    often."""
    at = rng.randrange(len(a))
    if a[at] in _POWERS and rng.random() < 0.5:
        return a.replace(at, a[a.span(at)][1:])
    return a.replace(at, (rng.choice(_POWERS), *a[a.span(at)]))


def factor(rng: random.Random, alphabet: Alphabet, a: Tree) -> Tree:
    """The whole tree or, as often, a random subtree times a terminal under 0 to 2 roots: a small step of an
    exponent."""
    at = rng.choice((0, rng.randrange(len(a))))
    return a.replace(at, ("mul", *("sqrt",) * rng.randrange(3), alphabet.leaf(rng), *a[a.span(at)]))


MUTATIONS = {function.__name__: function for function in (point, regrow, insert, hoist, swap, power, factor)}
OPERATORS = ("crossover", *MUTATIONS)


def breed(rng: random.Random, alphabet: Alphabet, parents: tuple[Tree, Tree],
          weights: Mapping[str, float]) -> tuple[Tree, str]:
    """One operator, drawn by weight, on the first parent (crossover: on both); the child and the operator."""
    names = [name for name in OPERATORS if name in weights]  # a journal does not tell orders apart
    name = rng.choices(names, [weights[name] for name in names])[0]
    if name == "crossover":
        return crossover(rng, alphabet, *parents), name
    return MUTATIONS[name](rng, alphabet, parents[0]), name
