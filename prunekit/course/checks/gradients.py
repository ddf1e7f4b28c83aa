"""Exercises of 02: what G is, what a metric sees of it."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from prunekit.course.checks import unlike
from prunekit.course.grading import Lesson
from prunekit.metric.tree import Tree
from prunekit.pruning.gradients import collect_gradients


def exercise_1(answer: Any, lesson: Lesson) -> str | None:
    g = np.array([[3, -1], [-4, 1]])
    truth = {"G(2)": np.linalg.norm(g, axis=0), "G(1)": abs(g).sum(0), "The sum": g.sum(0)}
    for (name, true), pair in zip(truth.items(), answer, strict=True):
        if not np.allclose(pair, true, atol=0.01):
            return f"{name} is not right: for each weight by itself, over both windows."
    return None


def exercise_2(answer: Any, lesson: Lesson) -> str | None:
    texts = ("mul(W, G)", "add(W, G)", "mul(W, tanh(G))", "mul(W, mms(G))", "mul(W, log(G))")
    answer = {str(Tree.parse(text)) for text in answer}  # however its spaces are set
    if other := answer - set(texts):
        return f"{other.pop()!r} is not one of the five."
    for text in texts:
        if Tree.parse(text).homogeneous != (text in answer):
            return f"Look at {text} again: does the factor ten come out as one factor of the whole score?"
    return None


def exercise_3(answer: Any, lesson: Lesson) -> str | None:
    first, second = np.abs(np.array(answer, dtype=float).reshape(2, 3))
    if not first.sum() > second.sum():
        return f"L1 does not put the first weight higher: {first.sum():g} against {second.sum():g}."
    if not np.linalg.norm(first) < np.linalg.norm(second):
        return ("L2 does not put the second weight higher: "
                f"{np.linalg.norm(first):.3g} against {np.linalg.norm(second):.3g}.")
    return None


def exercise_4(answer: Any, lesson: Lesson) -> str | None:
    signed, size = (_collected(lesson, slice(8), norm).sum() for norm in ("signed", "l1"))
    if not 0 < answer < 1:
        return "A sum is at most as large as the sum of the magnitudes: this is a number between 0 and 1."
    if not abs(answer - signed / size) <= 0.01:
        return (f"First the total of each over {lesson.layer.name}, then one division "
                "(a mean of ratios is another).")
    return None


def _collected(lesson: Lesson, windows: slice, norm: str) -> torch.Tensor:
    """G (out, in) of the notebook's `layer` from some of its windows."""
    return collect_gradients(lesson.network, lesson.samples[windows], norm=norm,
                             progress=False)[lesson.layer.name].float()


def exercise_5(answer: Any, lesson: Lesson) -> str | None:
    pieces = [_collected(lesson, slice(i, i + 1), "signed") for i in range(3)]
    for norm in ("l2", "l1"):
        held, changed = torch.empty_like(pieces[0]), []
        found, wanted = answer(_stream(pieces, held, changed), norm), _collected(lesson, slice(3), norm)
        mistakes = {"the signed sum: gradients cancel": sum(pieces), "its size: gradients have cancelled":
                    sum(pieces).abs(), "a mean: G is a sum over windows": wanted / 3,
                    "the sum of squares, without the root": sum(piece.square() for piece in pieces),
                    "a mean under the root: G is a sum over windows": wanted / 3**0.5,
                    "of the last gradient alone, thrice: those that were kept are gone":
                    3**0.5 * pieces[2].abs() if norm == "l2" else 3 * pieces[2].abs()}
        if problem := unlike(found, wanted, 1e-3):
            known = (what for what, wrong in mistakes.items() if not unlike(found, wrong, 1e-3))
            return f"For {norm} it {problem}" + "".join(f"; that is {what}" for what in known) + "."
        if any(changed):
            return "It changes the gradients that it was given: the model still needs them."
    return None


def _stream(pieces: list[torch.Tensor], held: torch.Tensor, changed: list[bool]) -> Iterator[torch.Tensor]:
    """All in one place in memory, as a gradient is in a model: `held` is each in turn."""
    for piece in pieces:
        yield held.copy_(piece)
        changed.append(not torch.equal(held, piece))


def exercise_6(answer: Any, lesson: Lesson) -> str | None:
    weights, gradient = torch.tensor(answer, dtype=torch.float32).reshape(2, 1, 3)
    if not (weights > 0).all() or not (gradient > 0).all():
        return "All six numbers are to be positive."
    first = [Tree.parse(text).score(weights, gradient, gradient).argmin().item()
             for text in ("mul(sqr(W), mms(G))", "mul(sqr(W), G)")]
    return "Both remove the same weight first." if first[0] == first[1] else None
