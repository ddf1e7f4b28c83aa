"""Exercises of 04: which expressions are one metric, how trees are bred, what luck finds."""
from __future__ import annotations

import random
from typing import Any

import torch

from prunekit.course.grading import Lesson
from prunekit.metric.catalogue import METHODS
from prunekit.metric.rank import canonical, rank_key
from prunekit.metric.tree import Tree
from prunekit.search.random_trees import random_tree

_WANDA = METHODS["wanda"].tree


def exercise_1(answer: Any, lesson: Lesson) -> str | None:
    texts = ("mul(sqr(W), X)", "exp(mul(W, sqrt(X)))", "mul(W, X)", "div(mul(W, sqrt(X)), G)",
             "mul(W, sqrt(sqrt(X)))", "log(mul(W, sqrt(X)))")
    answer = {str(Tree.parse(text)) for text in answer}  # however its spaces are set
    if other := answer - set(texts):
        return f"{other.pop()!r} is not one of them."
    for text in texts:
        if (rank_key(Tree.parse(text)) == rank_key(_WANDA)) != (text in answer):
            return f"Look at {text} again: is it an increasing function of Wanda's score?"
    return None


def exercise_2(answer: Any, lesson: Lesson) -> str | None:
    weights, gradient = torch.tensor(answer, dtype=torch.float32).reshape(2, 1, 2)
    if not (weights >= 0).all() or not (gradient >= 0).all():
        return "W is an absolute value and G a norm: neither is negative."
    lowest = [Tree.parse(text).score(weights, gradient, gradient).argmin().item()
              for text in ("sqrt(sqr(sub(W, G)))", "sub(W, G)")]
    return "Both remove the same weight." if lowest[0] == lowest[1] else None


def exercise_3(answer: Any, lesson: Lesson) -> str | None:
    tree, published = Tree.parse(answer), METHODS["pruner-zero"].tree
    if tree.size > 5:
        return f"It has {tree.size} nodes."
    if rank_key(tree) != rank_key(published):
        mine, theirs = (canonical(metric).infix() for metric in (tree, published))
        return f"Its masks are those of {mine}, the published line's those of {theirs}."
    return None


def exercise_4(answer: Any, lesson: Lesson) -> str | None:
    rng = random.Random(0)
    for _ in range(50):
        a, b = (random_tree(rng, 4) for _ in range(2))
        place, origin = rng.randrange(len(a)), rng.randrange(len(b))
        child, wanted = answer(tuple(a), place, tuple(b), origin), a.replace(place, b[b.span(origin)])
        if tuple(child) != tuple(wanted):
            case = f"Into {a} at {place} goes {Tree(b[b.span(origin)])}, node {origin} of {b}"
            if tuple(child) == tuple(b.replace(origin, a[a.span(place)])):
                return f"{case}: yours does it the other way round."
            if tuple(child) == (*a[:place], *b[b.span(origin)], *a[place + 1:]):
                return f"{case}: of the subtree that was there you take out the first node only."
            return f"{case}; it becomes {wanted}, not {' '.join(map(str, child))}."
    return None


def exercise_5(answer: Any, lesson: Lesson) -> str | None:
    if answer % 1 or not (1 - 0.98**answer >= 0.95 > 1 - 0.98**(answer - 1)):
        return (f"After {answer} the chance is {1 - 0.98**answer:.1%}; asked for is the smallest whole "
                "number with 95 %.")
    return None
