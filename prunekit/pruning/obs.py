"""The Optimal Brain Surgeon update: SparseGPT's solver (arXiv 2301.00774), for any metric."""
from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from prunekit.choices import checked, parse_pattern
from prunekit.errors import UsageError
from prunekit.pruning.masks import check_scores, finite, keep_above, keep_n_of_m, zero_out

# Scores of a slice of columns, from the weights as updated so far (out, columns); float32
SliceScore = Callable[[slice, Tensor], Tensor]
# Columns updated one by one before the rest of the block is updated at once; so few stay in the cache
_PANEL = 32
_Ladder = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)]
_KERNEL_ON = ("cuda",)  # kinds of devices where a block is solved by `obs_kernel`
_refused: set[torch.device] = set()  # where that did not do what the loop does


@dataclass(frozen=True)
class ObsOptions:
    """block_size: columns whose mask is chosen together. damping: share of mean(diag H) added to its
    diagonal, each tried in turn until the factorization succeeds.

    Raises UsageError on values that solve nothing.
    """

    block_size: int = 128
    damping: tuple[float, ...] = (0.01, 0.1, 1.0)

    def __post_init__(self) -> None:
        checked("block_size", self.block_size, Annotated[int, Field(ge=1)])
        object.__setattr__(self, "damping", ladder(self.damping))


def check_blocks(options: ObsOptions, pattern: str) -> int:
    """The width of a pattern's groups, 1 without one. Raises UsageError if one is wider than a block."""
    group = (parse_pattern(pattern) or (0, 1))[1]
    if group > options.block_size:
        raise UsageError(f"block size {options.block_size} is smaller than a group of pattern {pattern}; "
                         f"give {group} or more.")
    return group


def ladder(damping: Any) -> tuple[float, ...]:
    """Dampings to be tried in turn, as a tuple (JSON has a list). Raises UsageError if one is below 0."""
    return checked("damping", tuple(damping) if isinstance(damping, (list, tuple)) else (damping,), _Ladder)


@dataclass(frozen=True)
class Factor:
    """U (in, in), upper Cholesky factor of the damped inverse Hessian, H^-1 = U^T U; and what it took."""

    U: Tensor
    dead: Tensor  # (in,) bool: inputs that were always zero
    damping: float


def inverse_factor(H: Tensor, options: ObsOptions = ObsOptions()) -> Factor:
    """Factor the inverse of H (in, in) float32: dead inputs get H_jj = 1, then damping * mean(diag H) is
    added.

    With J the reversal of rows and columns, J H J = L L^T gives H^-1 = (J L^-1 J)^T (J L^-1 J): one Cholesky
    and one triangular inverse. Raises UsageError if no damping of the ladder makes H positive definite.
    """
    H = H.clone()
    diagonal = H.diagonal()
    dead = diagonal == 0
    diagonal.masked_fill_(dead, 1)
    mean = diagonal.mean()
    previous = 0.0
    for damping in options.damping:
        diagonal += (damping - previous) * mean
        previous = damping
        L, failed = torch.linalg.cholesky_ex(H.flip(0, 1))
        if not failed:
            eye = torch.eye(len(H), dtype=H.dtype, device=H.device)
            U = torch.linalg.solve_triangular(L, eye, upper=False).flip(0, 1)
            if finite(U):
                return Factor(U.contiguous(), dead, damping)
    raise UsageError(f"the Hessian is not positive definite even with damping {options.damping[-1]:g}; use "
                     "more calibration windows or a longer damping ladder (ObsOptions).")


@dataclass(frozen=True)
class Scores:
    """What masks chosen inside the solver rank: a metric's scores or, without, SparseGPT's w^2 / U_ii^2.

    zeros: those that go first, whatever their score. bounds: of all scores so far; looked at in the end,
    since asking a GPU makes it wait.
    """

    U: Tensor
    metric: SliceScore | None = None
    zeros: Tensor | None = None
    bounds: list[Tensor] = field(default_factory=list)

    def __call__(self, columns: slice, W: Tensor) -> Tensor:
        S = self.metric(columns, W) if self.metric else (W / self.U.diagonal()[columns]).square()
        self.bounds.extend(S.aminmax())
        return S if self.zeros is None else S.masked_fill(self.zeros[:, columns], -torch.inf)


def obs_update(W: Tensor, factor: Factor, sparsity: float, pattern: str, *, keep: Tensor | None = None,
               score: SliceScore | None = None, options: ObsOptions = ObsOptions(),
               zeros: Tensor | None = None) -> Tensor:
    """Prune W (out, in) float32 in place and update what stays; returns the keep mask, bool (out, in).

    Left to right in blocks of columns. The mask is the given `keep`, or chosen block by block from `score`
    (None: SparseGPT's w^2 / U_ii^2): unstructured by one threshold per block, N:M per row at each group's
    first column. Then for each column i: q = keep * w, err = (w - q) / U_ii, W[:, i:] -= err U[i, i:]; the
    columns right of the block follow at once: W -= Err U[block, right]. zeros: as of `keep_mask`.

    Raises UsageError if a group of the pattern is wider than a block, if the scores are all the same, and if
    one, or a new weight, is not finite.
    """
    U, ratio, group = factor.U, parse_pattern(pattern), check_blocks(options, pattern)
    block = options.block_size - options.block_size % group
    W.masked_fill_(factor.dead, 0)
    given, keep = keep is not None, torch.ones_like(W, dtype=torch.bool) if keep is None else keep
    scores, chosen = Scores(U, score, zeros), None if given else ratio
    for start in range(0, W.shape[1], block):
        columns = slice(start, min(start + block, W.shape[1]))
        if not given and not ratio and sparsity > 0:
            S = scores(columns, W[:, columns])
            keep[:, columns] = keep_above(S, int(S.numel() * sparsity))
        solve = solve_block  # the kernel chooses no masks around zeros
        if zeros is None or not chosen:
            solve = _solver(W.device, columns.stop - start, group, chosen, score is not None)
        errors = solve(W[:, columns], U[columns, columns], keep[:, columns], start, group, chosen, scores)
        W[:, columns.stop:].addmm_(errors.T, U[columns, columns.stop:], alpha=-1)
    zero_out(W, keep)
    if scores.bounds:
        seen = torch.cat([bound.reshape(-1) for bound in scores.bounds])
        check_scores(seen)
        if score and (seen == seen[0]).all():  # of its own score the kernel tells the largest only
            raise UsageError("the metric's score is constant on this layer, so it ranks nothing.")
    if not finite(W):
        raise UsageError("the updated weights are not finite; the layer's weights or inputs are too large "
                         "for the update, so use a method without it.")
    return keep


def solve_block(W: Tensor, U: Tensor, keep: Tensor, start: int, group: int, ratio: tuple[int, int] | None,
                scores: Scores) -> Tensor:
    """One block of columns, W (out, block) and keep in place; returns the errors transposed, (block, out).

    start: the block's first column in the layer. group: m of the pattern, or 1. ratio: n and m, if the mask
    is chosen here. Works on transposed copies, where a column lies in one piece, in panels: the columns of a
    panel are updated one by one, the rest of the block by one product per panel.
    """
    w, kept, width = W.T.contiguous(), keep.T.contiguous(), W.shape[1]  # (block, out): a row for each input
    errors = torch.empty_like(w)  # (block, out)
    panel = max(group, _PANEL - _PANEL % group)
    for first in range(0, width, panel):
        last = min(first + panel, width)
        for i in range(first, last):
            if ratio and i % group == 0:
                S = scores(slice(start + i, start + i + group), w[i:i + group].T)
                few = keep_n_of_m(S, *ratio)  # (out, group)
                kept[i:i + group] = (few if scores.zeros is None else few & (S > -torch.inf)).T
            torch.div(w[i], U[i, i], out=errors[i])  # (out,)
            errors[i].masked_fill_(kept[i], 0)
            w[i:last].addr_(U[i, i:last], errors[i], alpha=-1)  # (panel's rest,) x (out,)
        w[last:].addmm_(U[first:last, last:].T, errors[first:last], alpha=-1)  # (rest, panel) (panel, out)
    W.copy_(w.T)
    keep.copy_(kept.T)
    return errors


# --- in one launch on a GPU ---------------------------------------------------------------------------------


@cache
def _solver(device: torch.device, width: int, group: int, ratio: tuple[int, int] | None,
            metric: bool) -> Callable[..., Tensor]:
    """The kernel where it has been seen to do what the loop does, else the loop; once with a warning."""
    if device.type not in _KERNEL_ON or device in _refused:
        return solve_block
    try:
        from prunekit.pruning.obs_kernel import solve_block as kernel

        if agrees(kernel, device, width, group, ratio, metric):
            return kernel
        why = "its weights are not those of the loop"
    except Exception as error:  # noqa: BLE001 (whatever a compiler and a driver make of it)
        why = f"{type(error).__name__}: {str(error)[:200]}"
    _refused.add(device)
    warnings.warn(f"the kernel of the OBS update is of no use on {device} ({why}); the slower loop does its "
                  "work.", stacklevel=3)
    return solve_block


def agrees(kernel: Callable[..., Tensor], device: torch.device, width: int, group: int,
           ratio: tuple[int, int] | None, metric: bool) -> bool:
    """Does the kernel do, on a random block of this width, what the loop does?

    In rows with the same mask, that is; scores can be so close that their last bits decide.
    """
    generator = torch.Generator().manual_seed(0)
    x, rows = torch.randn(2 * width, width, generator=generator), torch.randn(37, width, generator=generator)
    U = inverse_factor(x.T @ x).U.to(device)
    found = []
    for solve in (kernel, solve_block):
        W = rows.to(device, copy=True)
        keep = W > 0
        scores = Scores(U, (lambda columns, part: part.abs()) if metric else None)
        errors = solve(W, U, keep, 0, group, ratio, scores)
        found.append((keep, torch.cat([W, errors.T], dim=1)))
    (keep, mine), (expected, theirs) = found
    same = (keep == expected).all(1)
    return bool(same.float().mean() > 0.9) and torch.allclose(mine[same], theirs[same], rtol=1e-3, atol=1e-3)
