"""SparseGPT's solver for one block of columns in one launch: a Triton kernel. Its reference is `obs.py`.

A program keeps a tile of rows with all columns of the block on the chip, where the loop has several launches
for every column. Triton comes with torch on CUDA; with TRITON_INTERPRET=1 the kernel runs on a processor.
"""
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from prunekit.pruning.obs import Scores

_TILE = 2048  # numbers of a tile: 16 rows of 128 columns


@triton.jit(do_not_specialize=["first", "last"])
def _columns(W, U, keep, S, errors, worst, out, width,  # type: ignore[no-untyped-def]
             w_row, w_col, u_row, u_col, keep_row, keep_col, first, last, n, m: tl.constexpr,
             CHOOSE: tl.constexpr, GIVEN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Columns first to last of a block W (out, width), those right of them updated; errors is (width, out).

    CHOOSE: in groups of m columns the n lowest scores go; they are in S (out, m) if GIVEN, else w^2 / U_ii^2,
    of which `worst` (programs,) gets the largest, infinite if one is no number.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK)
    line = rows.to(tl.int64)[:, None]
    real = (rows < out)[:, None] & (cols < width)[None, :]
    done = real & ((cols >= first) & (cols < last))[None, :]
    at, kept_at = W + line * w_row + cols[None, :] * w_col, keep + line * keep_row + cols[None, :] * keep_col
    w = tl.load(at, mask=real, other=0.0)
    kept = tl.load(kept_at, mask=real, other=1).to(tl.int32)
    diagonal = tl.load(U + cols * (u_row + u_col), mask=cols < width, other=1.0)
    largest = tl.zeros((ROWS, BLOCK), tl.float32)
    for group in range(first, last, m):
        if CHOOSE:
            inside = ((cols >= group) & (cols < group + m))[None, :]
            if GIVEN:
                s = tl.load(S + line * m + (cols - group)[None, :], mask=inside & real, other=0.0)
            else:
                s = tl.div_rn(w, tl.broadcast_to(diagonal[None, :], (ROWS, BLOCK)))
                s = s * s
                number = tl.where(s < float("inf"), s, float("inf"))
                largest = tl.maximum(largest, tl.where(inside & real, number, 0.0))
            rank = tl.zeros((ROWS, BLOCK), tl.int32)  # how many of its group go before a place
            for j in range(m):
                other = tl.sum(tl.where((cols == group + j)[None, :], s, 0.0), 1)[:, None]
                rank += ((other < s) | ((other == s) & (cols > group + j)[None, :])).to(tl.int32)
            kept = tl.where(inside, (rank >= n).to(tl.int32), kept)
        for j in range(m):
            i = group + j
            here = (cols == i)[None, :]
            w_i = tl.sum(tl.where(here, w, 0.0), 1)
            kept_i = tl.sum(tl.where(here, kept, 0), 1)
            u = tl.load(U + i * u_row + cols * u_col, mask=(cols >= i) & (cols < width), other=0.0)
            u_ii = tl.load(U + i * (u_row + u_col))
            error = tl.where(kept_i == 0, tl.div_rn(w_i, tl.zeros_like(w_i) + u_ii), 0.0)
            w -= error[:, None] * u[None, :]
            tl.store(errors + i * out + rows, error, mask=rows < out)
    tl.store(at, w, mask=real & (cols >= first)[None, :])
    if CHOOSE:
        tl.store(kept_at, kept.to(tl.uint8), mask=done)
        if not GIVEN:
            tl.store(worst + tl.program_id(0), tl.max(tl.max(largest, 1), 0))


def solve_block(W: Tensor, U: Tensor, keep: Tensor, start: int, group: int, ratio: tuple[int, int] | None,
                scores: "Scores") -> Tensor:
    """`obs.solve_block` on the chip: one launch, or one for each group whose scores a metric has to make."""
    out, width = W.shape
    n, m = ratio or (0, 1)
    block = triton.next_power_of_2(width)
    rows = max(1, _TILE // block)
    programs = triton.cdiv(out, rows)
    errors, worst = W.new_empty(width, out), W.new_zeros(programs)

    def launch(first: int, last: int, S: Tensor = W) -> None:
        _columns[(programs,)](
            W, U, keep.view(torch.uint8), S, errors, worst, out, width, *W.stride(), *U.stride(),
            *keep.stride(), first, last, n, m=m, CHOOSE=ratio is not None, GIVEN=S is not W, ROWS=rows,
            BLOCK=block)

    if ratio and scores.metric:
        for i in range(0, width, m):
            launch(i, i + m, scores(slice(start + i, start + i + m), W[:, i:i + m]).contiguous())
    else:
        launch(0, width)
        scores.bounds.extend([worst] if ratio else [])
    return errors
