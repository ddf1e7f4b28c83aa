"""Pruning a model: metric + comparison group + optional weight update, applied by the one walk over its blocks."""
from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.choices import parse_pattern, per_block
from prunekit.errors import UsageError
from prunekit.metric.catalogue import Method, resolve
from prunekit.metric.tree import Tree
from prunekit.models import Layer, check_windows, decoder_blocks, prunable_layers, refuse_offloaded
from prunekit.pruning.gradients import Gradients
from prunekit.pruning.inputs import InputStatistics, collect_inputs
from prunekit.pruning.masks import finite, keep_mask, remedy, zero_out
from prunekit.pruning.obs import Factor, ObsOptions, inverse_factor, obs_update
from prunekit.pruning.walk import Resident, Walk

if TYPE_CHECKING:
    import pandas as pd


_MAGNITUDE = Tree.parse("W")
_SHORTFALL = 0.01  # of the weights; whole weights per row make up for less in all but the narrowest models


@dataclass(frozen=True)
class Report:
    """What pruning did. `rows`: one record per layer; `meta`: what was asked for.

    Warns if clearly fewer weights are zero than were asked for (the published variant stops early, for one).
    """

    rows: list[dict[str, Any]]
    meta: dict[str, Any]

    def __post_init__(self) -> None:
        if self.sparsity < self.target - _SHORTFALL:
            method = f"{self.meta['method']} (group {self.meta['group']})"
            warnings.warn(f"{self.sparsity:.1%} of the prunable weights are zero where {self.target:.1%} "
                          f"were asked for: {method} goes no further in this model.", stacklevel=4)

    @property
    def sparsity(self) -> float:
        """Share of zeros over all prunable weights."""
        return sum(row["zeros"] for row in self.rows) / sum(row["numel"] for row in self.rows)

    @property
    def target(self) -> float:
        """The share of zeros that was asked for, over all prunable weights."""
        return round(sum(row["target"] * row["numel"] for row in self.rows) / sum(row["numel"] for row in self.rows), 9)

    def to_frame(self) -> pd.DataFrame:
        """One row per layer: block, kind, target and reached sparsity, zeros, weights, damping, dead inputs.

        `zeros` are counted in the weights, `masked` in the mask: dead inputs and rounding add to the first.
        An expert of a mixture also has `tokens`, how many reached it, and `unseen`: none did, so magnitude decided.
        """
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
    gradients, on windows that are missing or that the model cannot read, on an input width that the pattern
    does not divide, on weights or scores that are not finite, and on a model parts of which are offloaded.
    Where inputs are read, scores and updates are seen on the way: the sentence then says that the model is
    half pruned.
    """
    refuse_offloaded(model)
    plan = Plan.make(model, windows, method, sparsity, pattern, gradients, group, update, obs)
    path, decoder = decoder_blocks(model)
    refuse_not_finite(decoder, path)
    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    with torch.no_grad(), closing(measured_blocks(model, windows, plan, one_shot, progress)) as blocks:
        masks = {} if plan.reads_inputs else {layer.name: plan.mask(layer) for layer in plan.layers}
        try:
            for _, layers, inputs in blocks:
                for layer in layers:
                    rows.append(plan.prune_layer(layer, inputs.get(layer.name), masks.get(layer.name)))
        except UsageError as error:
            if not rows:
                raise
            raise UsageError(f"{str(error).rstrip('.')}; the layers before it are pruned already, so "
                             "load the model anew.") from error
    order = {layer.name: place for place, layer in enumerate(plan.layers)}
    rows.sort(key=lambda row: order[row["layer"]])
    return Report(rows, plan.meta(windows, one_shot) | {"seconds": round(time.perf_counter() - started, 3)})


def measured_blocks(model: nn.Module, windows: Tensor | None, plan: Plan, one_shot: bool, progress: bool, *,
                    resident: Resident | None = None, finished: int = 0
                    ) -> Iterator[tuple[int, list[Layer], dict[str, _Inputs]]]:
    """(block, its layers, what their inputs looked like); no forward pass for methods that read no inputs.

    The first `finished` blocks are pruned already, so only walked through.
    """
    if not plan.reads_inputs:
        for index, layers in list(enumerate(prunable_layers(model)))[finished:]:
            with (resident or Resident()).block(index):
                yield index, layers, {}
        return
    for step in Walk(model, windows, one_shot=one_shot, progress=progress, resident=resident):
        if step.index < finished:
            continue
        collected = collect_inputs(step, len(windows), hessian=plan.method.update is not None)
        shared = {id(found): _Inputs(found) for found in collected.values()}
        inputs = {name: shared[id(found)] for name, found in collected.items()}
        collected.clear(), shared.clear()
        yield step.index, step.layers, inputs
        inputs.clear()  # before the pass through the pruned block


def refuse_not_finite(module: nn.Module, path: str) -> None:
    """Raise UsageError, naming the parameter, unless all weights of a module are finite."""
    for name, parameter in module.named_parameters(prefix=path):
        if not finite(parameter.detach()):
            raise UsageError(f"{name} holds numbers that are not finite; {remedy(parameter.dtype)}.")


class _Mask:
    """A keep mask (out, in), one bit per weight, so that all are made before the first weight is written."""

    def __init__(self, keep: Tensor):
        self.shape, self.device, self.bits = keep.shape, keep.device, np.packbits(keep.cpu().numpy())

    def keep(self) -> Tensor:
        bits = np.unpackbits(self.bits, count=self.shape.numel())
        return torch.from_numpy(bits).view(torch.bool).view(self.shape).to(self.device)


class _Inputs:
    """A group's statistics, with the inverse Hessian factored once for all layers that share them."""

    def __init__(self, statistics: InputStatistics):
        self.X, self.tokens = statistics.X, statistics.tokens
        self._H, self._factor = statistics.H, None

    def factor(self, options: ObsOptions) -> Factor:
        if self._factor is None:
            self._factor, self._H = inverse_factor(self._H, options), None
        return self._factor


@dataclass(frozen=True)
class Plan:
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
             pattern: str, gradients: Gradients | None, group: str | None, update: str | None, obs: ObsOptions) -> Plan:
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
        if windows is not None:
            check_windows(model, windows)
        elif plan.reads_inputs:
            raise UsageError(f"method {found.name} reads the layers' inputs; pass calibration windows.")
        return plan

    def meta(self, windows: Tensor | None, one_shot: bool) -> dict[str, Any]:
        """What was asked for, in the words of the report."""
        n, seqlen = (0, 0) if windows is None else windows.shape
        return {"method": self.method.name, "tree": str(self.method.tree or "w²/U_ii²"), "group": self.method.group,
                "update": self.method.update or "", "pattern": self.pattern, "one_shot": one_shot, "n": n, "seqlen": seqlen}

    def mask(self, layer: Layer) -> _Mask:
        """The mask of a layer, for a method that reads no inputs; nothing is written."""
        with _naming(layer):
            return _Mask(self._for(self._unseen(layer, None))._keep(layer, None))

    def prune_layer(self, layer: Layer, inputs: _Inputs | None, mask: _Mask | None = None) -> dict[str, Any]:
        """Write a layer's pruned weights, and say what was done. mask: from `mask`, else it is made here."""
        target = self.sparsities[layer.block]
        row = {"layer": layer.name, "block": layer.block, "kind": layer.kind, "target": target}
        unseen = self._unseen(layer, inputs)
        if layer.expert is not None:
            row |= {"tokens": inputs.tokens if inputs else None, "unseen": unseen}
        with _naming(layer):
            keep, solver = self._for(unseen)._apply(layer, inputs, mask)
        numel = keep.numel()
        zeros, masked = (numel - int(torch.count_nonzero(found)) for found in (layer.weight, keep))
        row |= {"zeros": zeros, "masked": masked, "numel": numel, "sparsity": zeros / numel}
        return row | {"excess": row["sparsity"] - target} | solver

    def _unseen(self, layer: Layer, inputs: _Inputs | None) -> bool:
        """Did no token reach this expert? Its statistics are then all zero, so its weights are ranked by magnitude."""
        if layer.expert is None:
            return False
        reads_G = "G" in self.method.needs
        return bool(inputs and not inputs.tokens) or (reads_G and not self.gradients[layer.name].any().item())

    def _for(self, unseen: bool) -> Plan:
        return replace(self, method=replace(self.method, tree=_MAGNITUDE, update=None)) if unseen else self

    def _keep(self, layer: Layer, inputs: _Inputs | None) -> Tensor:
        S = self.method.tree.score(layer.weight, self._G(layer), inputs.X if inputs else None)
        return keep_mask(S, self.sparsities[layer.block], self.pattern, self.method.group)

    def _G(self, layer: Layer) -> Tensor | None:
        reads = self.method.tree and "G" in self.method.tree.terminals
        return self.gradients[layer.name].to(layer.weight.device) if reads else None

    def _apply(self, layer: Layer, inputs: _Inputs | None, mask: _Mask | None
               ) -> tuple[Tensor, dict[str, Any]]:
        method, sparsity = self.method, self.sparsities[layer.block]
        if method.update != "obs-iter":
            keep = mask.keep() if mask else self._keep(layer, inputs)
        if method.update is None:
            zero_out(layer.weight, keep)
            return keep, {}
        W, factor = layer.weight.to(torch.float32, copy=True), inputs.factor(self.obs)
        if method.update == "obs":
            obs_update(W, factor, sparsity, self.pattern, keep=keep, options=self.obs)
        else:
            score = method.tree.bind(layer.weight, self._G(layer), inputs.X).score if method.tree else None
            keep = obs_update(W, factor, sparsity, self.pattern, score=score, options=self.obs)
        largest = max(map(abs, W.aminmax()))
        if largest > torch.finfo(layer.weight.dtype).max:
            raise UsageError(f"the update makes a weight of {largest:.3g}, too large for "
                             f"{layer.weight.dtype}; {remedy(layer.weight.dtype)}.")
        layer.weight.copy_(W)
        return keep, {"damping": factor.damping, "dead": int(factor.dead.sum())}


@contextmanager
def _naming(layer: Layer) -> Iterator[None]:
    """Have a refusal say which layer it is about."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"layer {layer.name}: {error}") from error
