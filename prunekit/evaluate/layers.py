"""How far a pruned layer's output is from the dense one's."""
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..models import prunable_layers
from ..pruning.stats import collect_inputs
from ..pruning.walk import Walk

if TYPE_CHECKING:
    import pandas as pd


def layer_errors(pruned: nn.Module, dense: nn.Module, windows: Tensor, *, progress: bool = True) -> pd.DataFrame:
    """Relative reconstruction error of every prunable layer, on the dense model's inputs: one row per layer.

    error = ||(W - V) x||^2 / ||W x||^2 summed over the tokens of windows (n, seqlen), with W the dense and V the pruned
    weight; computed as tr(D H D^T) / tr(W H W^T) with D = W - V, from H (in, in), float32.
    """
    import pandas as pd

    others = {layer.name: layer for block in prunable_layers(pruned) for layer in block}
    rows = []
    with torch.no_grad():
        for step in Walk(dense, windows, one_shot=True, progress=progress):
            inputs = collect_inputs(step, len(windows), hessian=True)
            for layer in step.layers:
                W, H = layer.weight.float(), inputs[layer.name].H
                error, total = (((M @ H) * M).sum().item() for M in (W - others[layer.name].weight.float(), W))
                rows.append({"layer": layer.name, "block": layer.block, "kind": layer.kind, "error": error / total})
    return pd.DataFrame(rows)
