"""Exercises of 01: windows, perplexity, leaks."""
from __future__ import annotations

import math
from typing import Any

import torch

from prunekit.course.checks import unlike
from prunekit.course.grading import Lesson
from prunekit.data import leaks
from prunekit.evaluate.perplexity import cut


def exercise_1(answer: Any, lesson: Lesson) -> str | None:
    whole, dropped, predicted = answer
    windows = cut(torch.arange(1000), 128)
    if (whole, dropped) != (len(windows), 1000 - windows.numel()):
        return "Windows are whole and do not overlap; what does not fill one is dropped."
    if predicted == windows.numel():
        return "The first token of a window is predicted by nobody: nothing stands before it."
    if predicted != windows[:, 1:].numel():
        return "Every window predicts as many tokens as have one before them."
    return None


def exercise_2(answer: Any, lesson: Lesson) -> str | None:
    counts = {token: "aab".count(token) + 1 for token in "abc"}
    chances = [counts[token] / sum(counts.values()) for token in "aabc"]
    if math.isclose(answer, 1 / math.prod(chances), rel_tol=0.01):
        return "Perplexity is the exponential of the mean loss per token; this is that of the sum."
    if not math.isclose(answer, math.prod(chances) ** (-1 / len(chances)), abs_tol=0.01):
        return ("Probabilities are (count + 1) / (all counts + 1 per kind of token); "
                "then exp of the mean of -ln p over four tokens.")
    return None


def exercise_3(answer: Any, lesson: Lesson) -> str | None:
    c4, wiki = "c4", "wikitext2"
    settings = {"a": (c4, wiki, wiki, "disjoint"), "b": (c4, c4, wiki, "published"),
                "c": (c4, c4, wiki, "disjoint"), "d": (wiki, c4, wiki, "disjoint")}
    for letter in sorted(set(answer) ^ {letter for letter, setting in settings.items() if leaks(*setting)}):
        return f"Look at {letter} again: which text do X, G and the perplexity each come from?"
    return None


def exercise_4(answer: Any, lesson: Lesson) -> str | None:
    count = lesson.frequency["test"]
    p = count[count > 0] / count.sum()
    entropy = -(p * p.log()).sum().item()
    if math.isclose(answer, lesson.unigram["test"], rel_tol=1e-3):
        return "That is the model fitted on calibration."
    if math.isclose(answer, entropy, rel_tol=1e-3):
        return "That is the entropy; the perplexity is its exponential."
    if not math.isclose(answer, math.exp(entropy), rel_tol=1e-3):
        return ("Fit: p = count / tokens. Then exp of the mean of -ln p over the test tokens; "
                "kinds that do not occur have no part in it.")
    return None


def exercise_5(answer: Any, lesson: Lesson) -> str | None:
    text = torch.arange(100) * 7
    for length, seqlen, stride in ((100, 16, 16), (96, 16, 16), (100, 16, 4), (100, 16, 5), (16, 16, 3)):
        part = text[:length]
        found = answer(part, seqlen, stride)
        wanted = cut(part, seqlen) if stride == seqlen else part.unfold(0, seqlen, stride)
        case = f"Of {length} tokens, with seqlen {seqlen} and stride {stride}, it"
        if isinstance(found, torch.Tensor) and len(found) < len(wanted):
            return f"{case} misses a window: the last starts at {int(wanted[-1, 0]) // 7}, and is whole."
        if problem := unlike(found, wanted):
            return f"{case} {problem}."
    return None


def exercise_6(answer: Any, lesson: Lesson) -> str | None:
    starts, length, pairs = 2_400_000 - 2048 + 1, 2048, math.comb(128, 2)
    truth = pairs * (starts * (2 * length - 1) - length * (length - 1)) / starts**2
    if abs(answer / truth - 0.5) < 0.05:
        return "Half of it: the other window may begin before this one as well as after it."
    if not abs(answer / truth - 1) <= 0.05:
        return "Two windows overlap when their starts are fewer than 2,048 places apart, in either direction."
    return None
