"""Pruning a model: metric + comparison group + optional weight update, applied by the one walk over its blocks."""
from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..metric.catalogue import Method, resolve
from ..metric.tree import Tree
from ..models import Layer, prunable_layers
from .masks import keep_mask
from .obs import Factor, ObsOptions, inverse_factor, obs_update
from .pattern import parse_pattern, per_block
from .stats import Gradients, InputStatistics, input_statistics
from .walk import InputGroup, Walk

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Report:
    """What pruning did. `rows`: one record per layer; `meta`: what was asked for."""

    rows: list[dict[str, Any]]
    meta: dict[str, Any]

    @property
    def sparsity(self) -> float:
        """Share of zeros over all prunable weights."""
        return sum(row["zeros"] for row in self.rows) / sum(row["numel"] for row in self.rows)

    def to_frame(self) -> pd.DataFrame:
        """One row per layer: block, kind, target and reached sparsity, zeros, weights, damping, dead inputs."""
        import pandas as pd

        return pd.DataFrame([{**self.meta, **row} for row in self.rows])


def prune(model: nn.Module, windows: Tensor | None, method: str | Tree | Method, sparsity: float | Sequence[float],
          pattern: str = "unstructured", *, gradients: Gradients | None = None, group: str | None = None,
          update: str | None = None, one_shot: bool = False, obs: ObsOptions = ObsOptions(), progress: bool = True) -> Report:
    """Prune the linear layers of a model's decoder blocks in place.

    windows: calibration token ids (n, seqlen); may be None for a method that reads W or W and G only. method: a name
    of the catalogue, a Tree or its text. sparsity: share of zeros, a number or one per block; n/m for pattern `n:m`.
    group, update: override the method's own. one_shot: take all statistics from the dense model. Scores are float32
    whatever the model's dtype. Sources: the published lib/prune.py; SparseGPT for `update`.

    Raises UsageError, before anything is changed, on an unknown method, sparsity or pattern, on missing or foreign
    gradients, on missing windows, and on an input width that the pattern does not divide; and, naming the layer, on
    scores that are not finite.
    """
    plan = _Plan.make(model, windows, method, sparsity, pattern, gradients, group, update, obs)
    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        for index, layers, statistics in _blocks(model, windows, plan, one_shot, progress):
            for layer in layers:
                rows.append(plan.prune_layer(layer, plan.sparsities[index], statistics.get(layer.name)))
    order = {layer.name: place for place, layer in enumerate(plan.layers)}
    rows.sort(key=lambda row: order[row["layer"]])
    meta = {"method": plan.method.name, "metric": str(plan.method.tree or "w²/U_ii²"), "group": plan.method.group,
            "update": plan.method.update or "", "pattern": pattern, "one_shot": one_shot,
            "n": 0 if windows is None else len(windows), "seqlen": 0 if windows is None else windows.shape[1]}
    return Report(rows, meta | {"seconds": round(time.perf_counter() - started, 3)})


def _blocks(model: nn.Module, windows: Tensor | None, plan: _Plan, one_shot: bool, progress: bool
            ) -> Iterator[tuple[int, list[Layer], dict[str, _Inputs]]]:
    """(block, its layers, what their inputs looked like); no forward pass for methods that read no inputs."""
    if not plan.reads_inputs:
        for index, layers in enumerate(prunable_layers(model)):
            yield index, layers, {}
        return
    for step in Walk(model, windows, one_shot=one_shot, progress=progress):
        collected = {id(group): input_statistics(group, len(windows), hessian=plan.method.update is not None)
                     for group in step.groups}

        def observe(group: InputGroup, x: Tensor) -> None:
            collected[id(group)].add(x)

        step.collect(observe)
        inputs = {id(group): _Inputs(collected[id(group)]) for group in step.groups}
        yield step.index, step.layers, {layer.name: inputs[id(group)] for group in step.groups for layer in group.layers}


class _Inputs:
    """A group's statistics, with the inverse Hessian factored once for all layers that share them."""

    def __init__(self, statistics: InputStatistics):
        self.X = statistics.X
        self._H, self._factor = statistics.H, None

    def factor(self, options: ObsOptions) -> Factor:
        if self._factor is None:
            self._factor, self._H = inverse_factor(self._H, options), None
        return self._factor


@dataclass(frozen=True)
class _Plan:
    """Everything that was asked for, checked."""

    method: Method
    layers: list[Layer]
    sparsities: list[float]
    pattern: str
    gradients: Gradients | None
    obs: ObsOptions

    @property
    def reads_inputs(self) -> bool:
        return bool({"X", "H"} & self.method.needs)

    @classmethod
    def make(cls, model: nn.Module, windows: Tensor | None, method: str | Tree | Method, sparsity: float | Sequence[float],
             pattern: str, gradients: Gradients | None, group: str | None, update: str | None, obs: ObsOptions) -> _Plan:
        found = resolve(method, group, update)
        blocks = prunable_layers(model)
        layers = [layer for block in blocks for layer in block]
        plan = cls(found, layers, per_block(sparsity, pattern, len(blocks)), pattern, gradients, obs)
        ratio = parse_pattern(pattern)
        for layer in layers if ratio else ():
            if layer.weight.shape[1] % ratio[1]:
                raise UsageError(f"pattern {pattern} does not divide the {layer.weight.shape[1]} inputs of layer {layer.name}.")
        if "G" in found.needs:
            if gradients is None:
                raise UsageError(f"method {found.name} reads G; pass gradients=collect_gradients(model, windows) or a file.")
            gradients.check(layers)
        if plan.reads_inputs and windows is None:
            raise UsageError(f"method {found.name} reads the layers' inputs; pass calibration windows.")
        return plan

    def prune_layer(self, layer: Layer, sparsity: float, inputs: _Inputs | None) -> dict[str, Any]:
        row = {"layer": layer.name, "block": layer.block, "kind": layer.kind, "target": sparsity}
        try:
            keep, solver = self._apply(layer, sparsity, inputs)
        except UsageError as error:
            raise UsageError(f"layer {layer.name}: {error}") from error
        zeros = keep.numel() - int(keep.sum())
        row |= {"zeros": zeros, "numel": keep.numel(), "sparsity": zeros / keep.numel(), "excess": zeros / keep.numel() - sparsity}
        return row | solver

    def _apply(self, layer: Layer, sparsity: float, inputs: _Inputs | None) -> tuple[Tensor, dict[str, Any]]:
        method, tree = self.method, self.method.tree
        G = self.gradients[layer.name].to(layer.weight.device) if tree and "G" in tree.terminals else None
        X = inputs.X if inputs else None
        if method.update != "obs-iter":
            keep = keep_mask(tree.score(layer.weight, G, X), sparsity, self.pattern, method.group)
        if method.update is None:
            layer.weight.masked_fill_(~keep, 0)
            return keep, {}
        W, factor = layer.weight.float(), inputs.factor(self.obs)
        W = W.clone() if W.data_ptr() == layer.weight.data_ptr() else W
        if method.update == "obs":
            obs_update(W, factor, sparsity, self.pattern, keep=keep, options=self.obs)
        else:
            score = tree.bind(layer.weight, G, X).score if tree else None
            keep = obs_update(W, factor, sparsity, self.pattern, score=score, options=self.obs)
        layer.weight.copy_(W)
        return keep, {"damping": factor.damping, "dead": int(factor.dead.sum())}
