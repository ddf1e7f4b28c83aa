"""How much of the zeros each decoder block bears."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from prunekit.errors import UsageError
from prunekit.pruning.inputs import collect_inputs
from prunekit.pruning.walk import Walk


def owl_budget(model: nn.Module, windows: Tensor, sparsity: float, *, threshold: float = 5.0,
               spread: float = 0.08, progress: bool = True) -> list[float]:
    """One sparsity per decoder block, lower where outliers are; their mean is `sparsity`. OWL (2310.05175).

    With A = |W| sqrt(X) of the dense model, r_b is the share of block b's entries with A > threshold *
    mean(A) of their layer. sparsity_b = sparsity + spread * (mean(u) - u_b), u_b = 2 (r_b - min r) / (max r -
    min r). windows: token ids (n, seqlen). Blocks are taken to be of one size. Raises UsageError if a block's
    share would leave [0, 1).
    """
    shares = []
    with torch.no_grad():
        for step in Walk(model, windows, one_shot=True, progress=progress):
            inputs = collect_inputs(step, len(windows))
            outliers = entries = 0
            for layer in step.layers:
                A = layer.weight.abs().float() * inputs[layer.name].X.sqrt()
                outliers += int((A > threshold * A.mean()).sum())
                entries += A.numel()
            shares.append(outliers / entries)
    r = torch.tensor(shares, dtype=torch.float64)
    u = 2 * (r - r.min()) / (r.max() - r.min()) if r.max() > r.min() else torch.zeros_like(r)
    budget = (sparsity + spread * (u.mean() - u)).tolist()
    if min(budget) < 0 or max(budget) >= 1:
        raise UsageError(f"a spread of {spread} around sparsity {sparsity} gives a block {max(budget):.2f}; "
                         "take a smaller spread.")
    return budget
