"""Exercises of 06: what a choice scores, what a difference between two models says."""
from __future__ import annotations

from typing import Any

import numpy as np

from prunekit.course.grading import Lesson
from prunekit.evaluate.intervals import detectable, wilson


def exercise_1(answer: Any, lesson: Lesson) -> str | None:
    s, lengths = np.array([-6, -8, -9]), np.array([4, 10, 18])
    acc, acc_norm = int(s.argmax()), int((s / lengths).argmax())
    if tuple(answer) == (acc_norm, acc):
        return "The other way round."
    if tuple(answer) != (acc, acc_norm):
        return "acc takes the largest s (nearest to 0), acc_norm the largest s per character."
    return None


def exercise_2(answer: Any, lesson: Lesson) -> str | None:
    texts = (lesson.query, *(lesson.query + choice for choice in lesson.choices))
    asked, *pieces = (len(lesson.tokenizer(text)["input_ids"]) for text in texts)
    tokens = [length - asked for length in pieces]
    if answer != int(np.argmax(np.array(lesson.by_hand) / tokens)):
        return (f"Divide each of `by_hand` by the tokens of its choice, which are {tokens}; the largest "
                "is the least negative.")
    return None


def exercise_3(answer: Any, lesson: Lesson) -> str | None:
    from scipy import stats

    true = stats.binomtest(9, 9 + 3, 0.5).pvalue
    if abs(answer - true / 2) < 0.005:
        return "In either direction: 3 to 9 as well as 9 to 3."
    return None if abs(answer - true) <= 0.005 else (
        "Twelve fair coins: what is the chance of at most 3 or at least 9 heads?")


def exercise_4(answer: Any, lesson: Lesson) -> str | None:
    true = 2 * 0.6 * 0.4 * (detectable(1) / 0.01) ** 2
    if abs(answer / true - 0.5) < 0.02:
        return "Both models' errors count: the variance of the difference is the sum of two."
    if not abs(answer / true - 1) <= 0.02:
        return ("With n questions each, the standard error of the difference is the root of 2 · 0.6 · 0.4 "
                f"/ n; {answer:,.0f} gives another.")
    return None


def exercise_5(answer: Any, lesson: Lesson) -> str | None:
    for right, n in ((30, 50), (7, 10), (0, 20), (20, 20), (480, 500)):
        found, wanted = np.array(answer(right, n), dtype=float), np.array(wilson(right, n))
        share = right / n
        plain = share + np.array([-1.96, 1.96]) * np.sqrt(share * (1 - share) / n)
        if found.shape != (2,):
            return "Asked for are two numbers: (low, high)."
        if not np.allclose(found, wanted, atol=1e-4):
            hint = ("that is the plain interval, which has no width where nobody errs"
                    if np.allclose(found, plain, atol=1e-3) else "not ({:.3f}, {:.3f})".format(*found))
            return f"{right} of {n}: ({wanted[0]:.3f}, {wanted[1]:.3f}), {hint}."
    return None
