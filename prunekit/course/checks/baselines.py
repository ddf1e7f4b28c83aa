"""Exercises of 03: masks, comparisons, one column of OBS, a metric of one's own."""
from __future__ import annotations

from typing import Any

import torch

from prunekit.course.checks import unlike
from prunekit.course.grading import Lesson, Unfinished
from prunekit.evaluate.compare import compare
from prunekit.evaluate.measure import prune_and_measure
from prunekit.metric.tree import Tree
from prunekit.pruning.masks import keep_mask
from prunekit.pruning.obs import inverse_factor, obs_update


def exercise_1(answer: Any, lesson: Lesson) -> str | None:
    weights, norms = torch.tensor([[4.0, 1, 3, 5], [1, 2, 1, 9]]), torch.tensor([[1, 9, 4, 0.25]])
    said = {"mul(W, sqrt(X))": None, "W": "That is magnitude: what flows into a weight counts as well.",
            "mul(W, X)": "X is a squared norm; Wanda takes its root."}
    for text, sentence in said.items():
        mask = keep_mask(Tree.parse(text).score(weights, norms, norms), 0.5)
        if torch.equal(torch.as_tensor(answer).bool().reshape(2, 4), mask):
            return sentence
    return "In each row the two largest |w|·√x stay."


def exercise_2(answer: Any, lesson: Lesson) -> str | None:
    S = torch.as_tensor(answer, dtype=torch.float32).reshape(1, 8)
    if not S.isfinite().all() or len(S.unique()) < 8:
        return "Asked for are eight different numbers: among equal ones their place decides."
    both = (keep_mask(S, 0.5) & keep_mask(S, 0.5, "2:4")).sum().item()
    return None if both == 2 else f"Both keep {both} of the same weights."


def exercise_3(answer: Any, lesson: Lesson) -> str | None:
    for s in (0.5, 0.2, 0.8):
        both, either = s * s, 1 - (1 - s) ** 2
        if not abs(answer(s) - both / either) <= 1e-6:
            return (f"At s = {s} it is {both / either:.3f}, not {answer(s):.3f}: how likely is it that both "
                    "remove a weight, and that either does?")
    return None


def exercise_4(answer: Any, lesson: Lesson) -> str | None:
    pruned, unpruned = lesson.nll.iloc[:, 0], lesson.dense.nll
    ratios = [(pruned.var(ddof=1) + unpruned.var(ddof=own)) / (pruned - unpruned).var(ddof=1)
              for own in (1, 0)]  # `nll` is pandas', which divides by n - 1, `dense.nll` NumPy's, by n
    if any(abs(answer / ratio - 1) < 0.02 for ratio in ratios):
        return "That is the ratio of the variances."
    if not any(abs(answer / ratio**0.5 - 1) <= 0.02 for ratio in ratios):
        return ("Independent: the root of the sum of both variances over n. "
                "In pairs: the root of the variance of the differences over n.")
    return None


def exercise_5(answer: Any, lesson: Lesson) -> str | None:
    rng = torch.Generator().manual_seed(0)
    x, W = torch.randn(6, 24, generator=rng), torch.randn(3, 6, generator=rng)
    factor, keep = inverse_factor(x @ x.T), torch.rand(3, 6, generator=rng) < 0.5
    wanted, found = W.clone(), W.clone()
    obs_update(wanted, factor, 0.5, "unstructured", keep=keep.clone())
    for i in range(6):
        before, found = found, answer(found.clone(), factor.U, i, keep[:, i])
        if problem := unlike(found, before, float("inf")):
            return f"At column {i} it {problem}."
        if (found[~keep[:, i], i].abs() > 1e-5).any():
            return f"At column {i} a weight that goes is not 0 afterwards."
        if (found != before)[keep[:, i]].any():
            return f"At column {i} a row moves whose weight stays: it has no error to make up for."
        if (found != before)[:, :i].any():
            return f"At column {i} columns left of it move: they are decided."
    problem = unlike(found, wanted)
    return f"After all columns it {problem}: the error is w / U_ii, times row i of U." if problem else None


def exercise_6(answer: Any, lesson: Lesson) -> str | None:
    settings = [{"method": Tree.parse(text), "sparsity": 0.7} for text in (answer, "mul(W, sqrt(X))")]
    unseen = lesson.windows.get("select")
    if unseen is None:
        raise Unfinished("The windows of this run have no role `select`, so nothing unseen is left.")
    mine, wandas = (result.perplexity for result in prune_and_measure(
        lesson.network, lesson.windows["calibration"], unseen, settings, gradients=lesson.gradients,
        progress=False))
    pair = compare(mine, wandas)
    return None if pair.verdict == "lower" else f"Its perplexity is not clearly lower than Wanda's: {pair}."
