"""The Optimal Brain Surgeon update: SparseGPT's solver (arXiv 2301.00774), for any metric."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.choices import parse_pattern
from prunekit.errors import UsageError
from prunekit.pruning.masks import check_scores, finite, keep_above, keep_n_of_m, zero_out

# Scores of a slice of columns, from the weights as updated so far (out, columns); float32
SliceScore = Callable[[slice, Tensor], Tensor]
# Columns updated one by one before the rest of the block is updated at once; so few stay in the cache
_PANEL = 32


@dataclass(frozen=True)
class ObsOptions:
    """block_size: columns whose mask is chosen together. damping: share of mean(diag H) added to its
    diagonal, each tried in turn until the factorization succeeds."""

    block_size: int = 128
    damping: tuple[float, ...] = (0.01, 0.1, 1.0)


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
    diagonal[dead] = 1
    mean = diagonal.mean()
    previous = 0.0
    for damping in options.damping:
        diagonal += (damping - previous) * mean
        previous = damping
        L, failed = torch.linalg.cholesky_ex(H.flip(0, 1))
        if not failed:
            eye = torch.eye(len(H), dtype=H.dtype, device=H.device)
            U = torch.linalg.solve_triangular(L, eye, upper=False).flip(0, 1)
            if torch.isfinite(U).all():
                return Factor(U.contiguous(), dead, damping)
    raise UsageError(f"the Hessian is not positive definite even with damping {options.damping[-1]:g}; use "
                     "more calibration windows or a longer damping ladder (ObsOptions).")


def obs_update(W: Tensor, factor: Factor, sparsity: float, pattern: str, *, keep: Tensor | None = None,
               score: SliceScore | None = None, options: ObsOptions = ObsOptions(),
               zeros: Tensor | None = None) -> Tensor:
    """Prune W (out, in) float32 in place and update what stays; returns the keep mask, bool (out, in).

    Left to right in blocks of columns. The mask is the given `keep`, or chosen block by block from `score`
    (None: SparseGPT's w^2 / U_ii^2): unstructured by one threshold per block, N:M per row at each group's
    first column. Then for each column i: q = keep * w, err = (w - q) / U_ii, W[:, i:] -= err U[i, i:]; the
    columns right of the block follow at once: W -= Err U[block, right]. zeros: as of `keep_mask`.

    Raises UsageError if a group of the pattern is wider than a block, and if a score or a new weight is not
    finite.
    """
    U, ratio = factor.U, parse_pattern(pattern)
    group = ratio[1] if ratio else 1
    if group > options.block_size:
        raise UsageError(f"block size {options.block_size} is smaller than a group of pattern {pattern}; "
                         f"give {group} or more.")
    block = options.block_size - options.block_size % group
    W[:, factor.dead] = 0
    given, keep = keep is not None, torch.ones_like(W, dtype=torch.bool) if keep is None else keep
    bounds: list[Tensor] = []  # of all scores; looked at in the end, since asking a GPU makes it wait

    def scored(columns: slice, W: Tensor) -> Tensor:
        S = score(columns, W) if score else (W / U.diagonal()[columns]).square()
        bounds.extend(S.aminmax())
        return S if zeros is None else S.masked_fill(zeros[:, columns], -torch.inf)

    def chosen(columns: slice, W: Tensor) -> Tensor:
        few = keep_n_of_m(scored(columns, W), *ratio)
        return few if zeros is None else few & ~zeros[:, columns]

    for start in range(0, W.shape[1], block):
        columns = slice(start, min(start + block, W.shape[1]))
        if not given and not ratio and sparsity > 0:
            S = scored(columns, W[:, columns])
            keep[:, columns] = keep_above(S, int(S.numel() * sparsity))
        choose = chosen if ratio and not given else None
        errors = _solve_block(W[:, columns], U[columns, columns], keep[:, columns], start, group, choose)
        W[:, columns.stop:].addmm_(errors.T, U[columns, columns.stop:], alpha=-1)
    zero_out(W, keep)
    if bounds:
        check_scores(torch.stack(bounds))
    if not finite(W):
        raise UsageError("the updated weights are not finite; the layer's weights or inputs are too large "
                         "for the update, so use a method without it.")
    return keep


def _solve_block(W: Tensor, U: Tensor, keep: Tensor, start: int, group: int, choose: SliceScore | None
                 ) -> Tensor:
    """One block of columns, W (out, block) and keep in place; returns the errors transposed, (block, out).

    Works on transposed copies, where a column lies in one piece, in panels: the columns of a panel are
    updated one by one, the rest of the block by one product per panel.
    """
    w, kept, width = W.T.contiguous(), keep.T.contiguous(), W.shape[1]  # (block, out): a row for each input
    errors = torch.empty_like(w)  # (block, out)
    panel = max(group, _PANEL - _PANEL % group)
    for first in range(0, width, panel):
        last = min(first + panel, width)
        for i in range(first, last):
            if choose and i % group == 0:
                columns = slice(start + i, start + i + group)
                kept[i:i + group] = choose(columns, w[i:i + group].T).T  # chosen as (out, group)
            torch.div(w[i], U[i, i], out=errors[i])  # (out,)
            errors[i].masked_fill_(kept[i], 0)
            w[i:last].addr_(U[i, i:last], errors[i], alpha=-1)  # (panel's rest,) x (out,)
        w[last:].addmm_(U[first:last, last:].T, errors[first:last], alpha=-1)  # (rest, panel) (panel, out)
    W.copy_(w.T)
    keep.copy_(kept.T)
    return errors
