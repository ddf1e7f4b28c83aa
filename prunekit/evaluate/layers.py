"""How far a pruned layer's output is from the dense one's."""
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..models import prunable_layers
from ..pruning.stats import input_statistics
from ..pruning.walk import InputGroup, Walk

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
            found = {id(group): input_statistics(group, len(windows), hessian=True) for group in step.groups}

            def observe(group: InputGroup, x: Tensor) -> None:
                found[id(group)].add(x)

            step.collect(observe)
            for group in step.groups:
                H = found[id(group)].H
                for layer in group.layers:
                    W = layer.weight.float()
                    error, total = (((M @ H) * M).sum().item() for M in (W - others[layer.name].weight.float(), W))
                    rows.append({"layer": layer.name, "block": layer.block, "kind": layer.kind, "error": error / total})
    return pd.DataFrame(rows)
