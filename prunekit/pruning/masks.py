"""From scores to masks: which weights a comparison group keeps. `keep` is True where the weight stays."""
from __future__ import annotations

import math
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from prunekit.choices import parse_pattern
from prunekit.errors import UsageError, did_you_mean
from prunekit.metric.catalogue import GROUPS

_SURPLUS = 0.01  # share of a layer's weights by which the zeros it has may exceed its target
_PAIRED = 16  # the widest group of N:M that a GPU compares pair by pair at once


def keep_mask(S: Tensor, sparsity: float, pattern: str = "unstructured", group: str = "row",
              zeros: Tensor | None = None, *, check: bool = True) -> Tensor:
    """The weights that stay under scores S (out, in), float32: bool (out, in).

    pattern `n:m`: in every m consecutive inputs of a row the n lowest scores go. Unstructured, group `row`:
    in every row the int(in * sparsity) lowest go, ties in order of position. Group `layer`: everything up to
    the value at position int(numel * sparsity) of the sorted scores goes (at least the target). Group
    `variant`: Wanda's bisection on each row's cumulative sorted score. Source: the published lib/prune.py.

    zeros (out, in), bool: weights that go whatever their score, the first of those that go; where they are
    more than the target asks of a row or a group of m, they all go.

    Raises UsageError if the pattern does not divide the inputs, if the group is unknown, or, with `check`, if
    a score is not finite.
    """
    if group not in GROUPS:
        raise UsageError(f"group '{group}' is not known{did_you_mean(group, GROUPS)}.")
    if check:
        check_scores(S)
    ratio = parse_pattern(pattern)
    if zeros is not None:  # a cumulated score knows no -inf, and is never negative
        S = S.masked_fill(zeros, 0 if group == "variant" and not ratio else -torch.inf)
        return _chosen(S, sparsity, ratio, group) & ~zeros
    return _chosen(S, sparsity, ratio, group)


def _chosen(S: Tensor, sparsity: float, ratio: tuple[int, int] | None, group: str) -> Tensor:
    if ratio:
        return keep_n_of_m(S, *ratio)
    if sparsity == 0:
        return torch.ones_like(S, dtype=torch.bool)
    if group == "row":
        return keep_rows(S, int(S.shape[1] * sparsity))
    if group == "layer":
        return keep_above(S, int(S.numel() * sparsity))
    return keep_variant(S, sparsity)


def check_zeros(zeros: Tensor, sparsity: float, pattern: str = "unstructured", group: str = "row",
                block: int = 0) -> None:
    """Raise UsageError if zeros (out, in), bool, are too many to be kept: if what is compared (see
    `keep_mask`; block: as many columns, by `obs-iter`) has more than it is to lose, by over a hundredth of
    the layer in all. Few more are dead inputs' and rounding's."""
    ratio, numel = parse_pattern(pattern), zeros.numel()
    if ratio and zeros.shape[1] % ratio[1] == 0:
        compared = [zeros.reshape(-1, ratio[1])]
    elif group == "row" and not block:
        compared = [zeros]
    else:
        compared = [part.reshape(1, -1) for part in zeros.split(block or zeros.shape[1], dim=1)]
    rooms = [ratio[0] if ratio else int(part.shape[1] * sparsity) for part in compared]
    surplus = sum(int((part.sum(1) - room).clamp(min=0).sum())
                  for part, room in zip(compared, rooms, strict=True))
    if surplus > _SURPLUS * numel:
        which = f"groups of {pattern}" if ratio else f"sparsity {sparsity:g}"
        where = "" if ratio or len(compared[0]) == 1 else " row by row"
        ask = "another pattern" if ratio else f"more{where and ', or by layer (group)'}"
        raise UsageError(f"of its weights {int(zeros.sum()) / numel:.1%} are zero already, "
                         f"{surplus / numel:.1%} more than {which} can keep{where}; ask for {ask}, or leave "
                         "`preserve` out.")


def check_scores(S: Tensor) -> None:
    """Raise UsageError if a score is not finite."""
    if not finite(S):
        raise UsageError("the scores are not finite, so they order nothing; use another metric or check G "
                         "and X.")


def finite(tensor: Tensor) -> bool:
    """Is every number finite? By the bounds, which is many times faster than asking each."""
    return all(map(math.isfinite, bounds(tensor)))


def bounds(tensor: Tensor) -> list[float]:
    """The lowest and the highest number, NaN if one is; in one question, since a GPU makes each wait."""
    return torch.stack(tensor.aminmax()).cpu().tolist()


def remedy(dtype: torch.dtype) -> str:
    """What to do about numbers that are not finite in a model of this dtype."""
    return "load the model in float32" if dtype == torch.float16 else "check the model (its perplexity, say)"


def keep_rows(S: Tensor, count: int) -> Tensor:
    """Remove exactly the `count` lowest scores of every row; among equal scores the leftmost go first."""
    if count == 0:
        return torch.ones_like(S, dtype=torch.bool)
    bound = kth_smallest(S, count)  # (out, 1)
    keep = S > bound  # (out, in)
    surplus = S.shape[1] - count - keep.sum(1)  # (out,)
    # rows where ties at the bound (or the bound itself) leave some to keep
    rows = surplus.nonzero().squeeze(1)
    if len(rows):
        tied = S[rows] == bound[rows]  # (rows, in)
        from_right = tied.flip(1).cumsum(1).flip(1)
        keep[rows] |= tied & (from_right <= surplus[rows, None])
    return keep


def keep_n_of_m(S: Tensor, n: int, m: int) -> Tensor:
    """Remove the n lowest scores of every m consecutive inputs; among equal scores the leftmost go first."""
    if S.shape[1] % m:
        raise UsageError(f"pattern {n}:{m} needs inputs in multiples of {m}, but the layer has {S.shape[1]}.")
    if S.device.type != "cpu" and m <= _PAIRED:
        return keep_by_pairs(S, n, m)
    if m > 256:  # a rank would not fit into a byte
        return keep_rows(S.reshape(-1, m), n).view(S.shape)
    columns = [column.contiguous() for column in S.reshape(-1, m).unbind(1)]  # m of (out * in / m,)
    rank = [torch.zeros(columns[0].shape, dtype=torch.uint8, device=S.device) for _ in columns]
    # a place's rank is the number of places it does not precede: m(m-1)/2 comparisons, no sort
    for i in range(m):
        for j in range(i + 1, m):
            first = columns[i] <= columns[j]
            rank[j] += first
            rank[i] += ~first
    return torch.stack([place >= n for place in rank], dim=1).view(S.shape)


def keep_by_pairs(S: Tensor, n: int, m: int) -> Tensor:
    """`keep_n_of_m` with all comparisons of a group at once: few launches, m bytes for each score."""
    groups = S.reshape(-1, m)
    one, other = groups[:, :, None], groups[:, None, :]
    earlier = torch.ones(m, m, dtype=torch.bool, device=S.device).tril(-1)
    before = torch.where(earlier, other <= one, other < one)  # (groups, m, m): does the other go first?
    return (before.sum(2, dtype=torch.uint8) >= n).view(S.shape)


def keep_above(S: Tensor, position: int) -> Tensor:
    """One threshold for all: what exceeds the value at `position` (from 0) of the sorted scores stays."""
    return S > kth_smallest(S.reshape(1, -1), position + 1)


def keep_variant(S: Tensor, sparsity: float) -> Tensor:
    """Wanda's variant: per row, the leading run of sorted scores whose sum is at most alpha * (row sum) goes.

    alpha is bisected in [0, 0.8] from 0.4 until the share of zeros is within 0.001 of the target or the
    bracket closes. Raises UsageError if a score is negative, since a cumulative sum then orders nothing.
    """
    if (S < 0).any():
        raise UsageError("the variant cumulates scores, which needs a metric that is never negative.")
    order = torch.sort(S, dim=1, stable=True)
    cumulative, total = order.values.cumsum(1), S.sum(1, keepdim=True)
    low, high, alpha = 0.0, 0.8, 0.4
    while True:
        counts = (cumulative <= total * alpha).sum(1, keepdim=True)
        # The reference zeroes everything up to the last counted score, so ties with it go, and count, too.
        keep = S > torch.where(counts > 0, order.values.gather(1, (counts - 1).clamp(min=0)), -torch.inf)
        share = (S.numel() - nonzero(keep)) / S.numel()
        if abs(share - sparsity) <= 0.001 or high - low < 0.001:
            return keep
        low, high = (low, alpha) if share > sparsity else (alpha, high)
        alpha = (low + high) / 2


def kth_smallest(S: Tensor, k: int) -> Tensor:
    """The k-th smallest (from 1) of every row, (rows, 1). On a processor selection, linear in the row."""
    if S.device.type == "cpu":
        return torch.from_numpy(np.partition(S.numpy(), k - 1, axis=1)[:, k - 1:k])
    if len(S) == 1:  # a GPU selects within a row by a few of its units, and sorts with all of them
        return S.sort(dim=1).values[:, k - 1:k]
    return S.kthvalue(k, dim=1, keepdim=True).values


def nonzero(tensor: Tensor) -> int:
    """How many entries are not 0. By numpy on a processor: torch's count branches, and guesses wrong."""
    if tensor.device.type == "cpu":
        return int(np.count_nonzero(tensor.bool().numpy()))
    return int(torch.count_nonzero(tensor))


def zero_out(W: Tensor, keep: Tensor, dense: Tensor | None = None) -> None:
    """Zero the weights that are not kept, in place; those kept become `dense`'s, if given (of W's dtype).

    On their bits: faster than filling, +0 for every sign.
    """
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[W.element_size()]
    torch.mul((W if dense is None else dense).view(bits), keep, out=W.view(bits))


@cache
def _places(shape: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Fixed random numbers for `mask_sums`: (in, 16) float32, whole from 0 to 255, and (out, 2, 8) int64.

    Sums of the first over a row stay below 2^24, so that float32 has them exactly in any order.
    """
    out, width = shape
    draw = partial(torch.randint, generator=torch.Generator().manual_seed(0))
    digits, factors = draw(min(256, 2**24 // width), (width, 16)), draw(-2**63, 2**63 - 1, (out, 2, 8))
    return digits.to(device, torch.float32), factors.to(device)


def mask_sums(keep: Tensor) -> Tensor:
    """What identifies a mask, bool (out, in), without leaving its device: (2,) int64.

    Each is the sum over kept places of a random number of 64 bits, of the place's row and column, modulo
    2^64: two masks that differ agree in both by chance, less than once in 2^100.
    """
    digits, factors = _places(tuple(keep.shape), keep.device)
    by_row = (keep.to(digits.dtype) @ digits).to(torch.int64)  # (out, 16), exact
    return (by_row.view(-1, 2, 8) * factors).sum((0, 2))
