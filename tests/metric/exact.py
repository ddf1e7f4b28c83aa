"""An evaluator of its own, in 400 decimal digits: what a metric means in exact arithmetic (exp without
clamp).
"""

from __future__ import annotations

import itertools
import random

import mpmath as mp
import numpy as np

from prunekit.metric.primitives import arity

mp.mp.dps = 400
NOISE, RELATIVE = mp.mpf(10) ** -250, mp.mpf(10) ** -200


class Outside(Exception):
    """Undefined here, or outside what this precision settles."""


def _each(function):
    return np.frompyfunc(function, 1, 1)


def _within(limit, function):
    def bounded(v):
        if abs(v) > limit:
            raise Outside
        return function(v)

    return _each(bounded)


MAGNITUDE = _each(abs)
UNARY = {
    "sqr": lambda x: x * x,
    "pow": lambda x: x * x,
    "neg": lambda x: -x,
    "abs": MAGNITUDE,
    "skp": lambda x: x,
    "log": _each(lambda v: mp.log(abs(v) + mp.mpf("0.001"))),
    "sqrt": _each(lambda v: mp.sqrt(abs(v))),
    "exp": _within(200, mp.exp),
    "tanh": _within(100, mp.tanh),
}


# Values are (1 or 2, rows, columns): what is of the whole matrix (a minimum, a sum) is the first one's.


def _relative(x, axis):
    total = MAGNITUDE(x[0]).sum(axis=axis, keepdims=True)
    return x / np.where(total == 0, mp.mpf(1), total)


def _scaled(op, x):
    whole = x[0]
    low, high = whole.min(), whole.max()
    if high - low <= max(NOISE, RELATIVE * max(abs(low), abs(high))):
        raise Outside
    if op == "mms":
        return (x - low) / (high - low)
    mean = whole.sum() / whole.size
    return (x - mean) / mp.sqrt(((whole - mean) ** 2).sum() / (whole.size - 1))


def _binary(op, x, y):
    x, y = np.broadcast_arrays(x, y)
    if op == "div":
        norm = mp.sqrt((y[0] * y[0]).sum())
        if norm <= NOISE:
            raise Outside
        return x / norm
    if op == "ediv":
        zero = MAGNITUDE(y) <= NOISE
        return np.where(zero, mp.mpf(0), x / np.where(zero, mp.mpf(1), y))
    return {"add": x + y, "sub": x - y, "mul": x * y}[op]


def value(tree, inputs, updated=None):
    """The score of a tree as an array of mpf; Outside where it is undefined or leaves [1e-60, 1e100].

    updated: W to be scored in place of the one that all that is of the whole matrix stays that of.
    """
    inputs = {name: given[None] for name, given in inputs.items()}
    if updated is not None:
        inputs["W"] = np.stack([inputs["W"][0], updated])
    stack = []
    for symbol in reversed(tree):
        x, *rest = [stack.pop() for _ in range(arity(symbol))] or [None]
        if x is None:
            found = inputs[symbol] if symbol in inputs else np.array([[[mp.mpf(symbol)]]])
        elif symbol in ("mms", "zsn"):
            found = _scaled(symbol, x)
        elif symbol in ("rrow", "rcol"):
            found = _relative(x, 1 if symbol == "rrow" else 0)
        else:
            found = _binary(symbol, x, *rest) if rest else UNARY[symbol](x)
        if any(abs(v) > 1e100 or NOISE < abs(v) < mp.mpf(10) ** -60 for v in found.flat):
            raise Outside
        stack.append(found)
    return np.broadcast_to(stack[0][-1], inputs["W"].shape[1:])


def order(score, group):
    """Ranks within each comparison group, ties equal: all that a mask can depend on."""
    ranks = []
    for values in score if group == "row" else [score.flatten()]:
        by_value = sorted(range(len(values)), key=lambda i: values[i])
        rank, level = {by_value[0]: 0}, 0
        for a, b in itertools.pairwise(by_value):
            level += values[b] - values[a] > max(NOISE, RELATIVE * max(abs(values[a]), abs(values[b])))
            rank[b] = level
        ranks.append([rank[i] for i in range(len(values))])
    return ranks


def same(a, b):
    """Equal up to the noise of this precision."""
    return all(
        abs(x - y) <= max(NOISE, RELATIVE * max(abs(x), abs(y))) for x, y in zip(a.flat, b.flat, strict=True)
    )


def probe(seed, rows=3, columns=4):
    """A small layer meant to hurt: zeros, repeated values, wide ranges, sometimes a constant X."""
    rng = random.Random(seed)
    pool = ["0", "0", "1e-6", "0.001", "0.01", "0.5", "0.5", "1", "1", "2", "3.7", "7"]
    pool += ["50", "1000", "1e6", "1e-12"] * (rng.random() < 0.3)

    def draw(n):
        if rng.random() < 0.5:
            return np.array(
                [[mp.mpf(rng.random()) * rng.choice([1, 1, 10]) for _ in range(columns)] for _ in range(n)]
            )
        return np.array([[mp.mpf(rng.choice(pool)) for _ in range(columns)] for _ in range(n)])

    inputs = {"W": draw(rows), "G": draw(rows), "X": draw(1)}
    if rng.random() < 0.15:
        inputs["X"][:] = inputs["X"][0, 0]
    return inputs
