"""Exercises of 05: counting, correcting for many questions, the winner's curse."""
from __future__ import annotations

import math
from typing import Any

import numpy as np

from prunekit.course.grading import Lesson
from prunekit.evaluate.intervals import holm


def exercise_1(answer: Any, lesson: Lesson) -> str | None:
    a, c, b, d = 8, 10 - 8, 12, 90 - 12
    if abs(answer - math.log(a * d / (b * c))) < 0.01:
        return "One half is added to each of the four counts."
    a, b, c, d = (count + 0.5 for count in (a, b, c, d))
    if not abs(answer - math.log(a * d / (b * c))) <= 0.01:
        return "With 8 and 12, without 2 and 78; one half to each; ln of the ratio of the odds."
    return None


def exercise_2(answer: Any, lesson: Lesson) -> str | None:
    p = [0.001, 0.012, 0.02, 0.04]
    if np.allclose(answer, np.multiply(p, 4)):
        return "That is Bonferroni, which multiplies all by four."
    return None if np.allclose(answer, holm(p)) else "The second is 3 · 0.012, the third 2 · 0.02; go on."


def exercise_3(answer: Any, lesson: Lesson) -> str | None:
    candidates, metrics = lesson.history, len(lesson.everything)
    texts = len(candidates.drop_duplicates(["journal", "tree"])) / metrics
    if abs(answer - len(candidates) / metrics) < 1e-3 and abs(answer - texts) > 1e-3:
        return "These are candidates; count each text once per journal."
    if not abs(answer - texts) <= 0.01:
        return "Different pairs of journal and tree, divided by the metrics in `everything`."
    return None


def exercise_4(answer: Any, lesson: Lesson) -> str | None:
    drawn = np.random.default_rng(0).uniform(0, 0.3, (3, 7))
    for p in (*drawn, np.array([0.04, 0.03, 0.9]), np.array([0.01]), np.array([0.02, 0.02])):
        given = p.tolist()
        found, wanted = np.asarray(answer(list(given)), dtype=float), holm(p)
        if found.shape != wanted.shape:
            return f"Of {len(p)} p-values it makes {found.size}."
        if not np.allclose(found, wanted):
            mistakes = {"some are above 1": (found > 1).any(),
                        "the order is not that of the p given": np.allclose(np.sort(found), np.sort(wanted)),
                        "one is lower than a smaller p's": (np.diff(found[np.argsort(p)]) < -1e-12).any()}
            known = next((what for what, true in mistakes.items() if true), f"asked for is {wanted.round(4)}")
            return f"Of {np.round(p, 4)} it makes {found.round(4)}: {known}."
    return None


def exercise_5(answer: Any, lesson: Lesson) -> str | None:
    from scipy import integrate, stats

    for k, found in zip((10, 100), answer, strict=True):
        true, _ = integrate.quad(lambda x, k=k: x * stats.norm.pdf(x) * k * stats.norm.cdf(x) ** (k - 1),
                                 -10, 10)
        if not abs(found - true) <= 0.07:
            return f"Of {k} it is not {found:.2f}: average the lowest of {k} normal numbers over many draws."
    return None
