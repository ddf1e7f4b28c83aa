"""Exercises of 07: merges, recovered shares, what zeros save."""
from __future__ import annotations

from typing import Any

import torch

from prunekit.course.checks import unlike
from prunekit.course.grading import Lesson
from prunekit.lora.layers import masked_delta


def exercise_1(answer: Any, lesson: Lesson) -> str | None:
    W, A, B = (torch.tensor(rows) for rows in ([[2, 0], [0, 1]], [[1, -1]], [[1], [2]]))
    merges = W + B @ A, W + (W != 0) * (B @ A)
    for name, found, true in zip(("plain", "masked"), answer, merges, strict=True):
        if torch.tensor(found).tolist() != true.tolist():
            return f"The {name} merge is another: B A is {(B @ A).tolist()}; a mask moves kept weights only."
    return None


def exercise_2(answer: Any, lesson: Lesson) -> str | None:
    dense, pruned, tuned, trained = 10, 16, 12, 9.5
    first, second = answer
    if not abs(first - (pruned - tuned) / (pruned - dense)) <= 0.005:
        return "Recovered: what fine-tuning took away, as a share of what pruning added."
    if not abs(second - (pruned - tuned) / (pruned - trained)) <= 0.005:
        return "The second gap reaches from 16 down to 9.5."
    return None


def exercise_3(answer: Any, lesson: Lesson) -> str | None:
    K, B, A = (torch.tensor(part, dtype=torch.float32) for part in answer)
    if K.shape != (3, 3) or not ((K == 0) | (K == 1)).all():
        return "K is a mask: three rows of three, each entry 0 or 1."
    if B.numel() != 3 or A.numel() != 3:
        return "B is a column, and A a row, of three numbers."
    found = int(torch.linalg.matrix_rank(K * torch.outer(B.flatten(), A.flatten())))
    return None if found == 3 else f"K ⊙ BA has rank {found}."


def exercise_4(answer: Any, lesson: Lesson) -> str | None:
    def size(sparsity: float) -> float:
        return (1 + 16 * (1 - sparsity)) / 16

    equal, half = answer
    if not (abs(size(equal) - 1) <= 0.005 and abs(half - size(0.5)) <= 0.005):
        return "Per weight: one bit, and sixteen bits for the share that is kept; against sixteen."
    return None


def exercise_5(answer: Any, lesson: Lesson) -> str | None:
    rng = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        W = torch.randn(8, 12, generator=rng).mul_(torch.rand(8, 12, generator=rng) < 0.5).to(dtype)
        A, B = torch.randn(2, 12, generator=rng), torch.randn(8, 2, generator=rng)
        before, merged = W.clone(), (W + masked_delta(W, A, B, 1.5)).to(dtype)
        found = answer(W, A, B, 1.5)
        if not torch.equal(W, before):
            return "It changes W itself: with it goes the only record of the mask."
        if problem := unlike(found, merged, 0.005 if dtype == torch.bfloat16 else 1e-5):
            filled = isinstance(found, torch.Tensor) and found.shape == W.shape and found[W == 0].any()
            return f"Of {dtype} weights it {problem}{'; it fills zeros in' if filled else ''}."
        if found.dtype != dtype:
            return f"It makes {found.dtype} of {dtype}: a merged model is stored as it was."
    return None
