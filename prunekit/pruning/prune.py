"""Pruning a model: metric + comparison group + (optional) weight update, by the one walk over its blocks."""
from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.choices import Sparsity, Target
from prunekit.errors import UsageError
from prunekit.metric.catalogue import Method, resolve
from prunekit.metric.tree import Tree
from prunekit.models import Layer, check_windows, decoder_blocks, layers, prunable_layers, refuse_offloaded
from prunekit.pruning.admm import AdmmOptions
from prunekit.pruning.budgets import layer_targets
from prunekit.pruning.decide import SOLVERS, Decision, Known, decide
from prunekit.pruning.gradients import Gradients
from prunekit.pruning.inputs import InputStatistics, collect_inputs
from prunekit.pruning.masks import check_zeros, finite, nonzero, remedy
from prunekit.pruning.obs import ObsOptions, check_blocks
from prunekit.pruning.walk import Resident, Walk, batch_noted, batch_tokens

if TYPE_CHECKING:
    import pandas as pd

_TOLERANCE = 0.01  # of the weights; whole weights per row make up for less in all but the narrowest models


@dataclass(frozen=True)
class Report:
    """What pruning did. `rows`: one record per layer; `meta`: what was asked for.

    Warns if clearly fewer weights are zero than were asked for (the published variant stops early, for one),
    or if the masks took clearly more (equal scores go together where a threshold decides).
    """

    rows: list[dict[str, Any]]
    meta: dict[str, Any]

    def __post_init__(self) -> None:
        masked = sum(row["masked"] for row in self.rows) / sum(row["numel"] for row in self.rows)
        short = self.sparsity < self.target - _TOLERANCE
        if short or masked > self.target + _TOLERANCE:
            method = f"{self.meta['method']} (group {self.meta['group']})"
            why = "goes no further in this model" if short else "has too many equal scores in this model"
            warnings.warn(f"{self.sparsity:.1%} of the prunable weights are zero where {self.target:.1%} "
                          f"were asked for: {method} {why}.", stacklevel=4)

    @property
    def sparsity(self) -> float:
        """Share of zeros over all prunable weights."""
        return sum(row["zeros"] for row in self.rows) / sum(row["numel"] for row in self.rows)

    @property
    def target(self) -> float:
        """The share of zeros that was asked for, over all prunable weights."""
        weights = sum(row["numel"] for row in self.rows)
        return round(sum(row["target"] * row["numel"] for row in self.rows) / weights, 9)

    def to_frame(self) -> pd.DataFrame:
        """One row per layer: block, kind, target and reached sparsity, zeros, weights, damping, dead inputs;
        with `admm` also its iterations and the relative output error (see `output_error`).

        `zeros` are counted in the weights, `masked` in the mask: dead inputs and rounding add to the first.
        An expert of a mixture also has `tokens`, how many reached it, and `unseen`: none did, so magnitude
        decided.
        """
        import pandas as pd

        return pd.DataFrame([{**self.meta, **row} for row in self.rows])


def prune(model: nn.Module, windows: Tensor | None, method: str | Tree | Method, sparsity: Sparsity,
          pattern: str = "unstructured", *, gradients: Gradients | str | Path | None = None,
          group: str | None = None, update: str | None = None, one_shot: bool = False,
          skip: Sequence[str] = (), preserve: bool = False, obs: ObsOptions = ObsOptions(),
          admm: AdmmOptions = AdmmOptions(), progress: bool = True) -> Report:
    """Prune the linear layers of a model's decoder blocks in place.

    windows: calibration token ids (n, seqlen); may be None for a method that reads W or W and G only. method:
    a name of the catalogue, a Tree or its text. sparsity: share of zeros (n/m for pattern `n:m`) or a word
    such as "2:4"; one for all, one per block, or a mapping from patterns of layer names. gradients: G, or a
    file of it. skip: such patterns, of what stays dense (`layer_targets`). group, update: override the
    method's own (`obs-iter` compares by block of columns, whatever the metric's group). one_shot: take all
    statistics from the dense model. preserve: weights that are zero stay so, and count. obs, admm: options of
    those updates. Scores and updates are float32 whatever the model's dtype.
    Sources: the published lib/prune.py; SparseGPT for obs and obs-iter; arXiv 2401.02938 for admm.

    Raises UsageError, before anything is changed, on an unknown method, sparsity or pattern, on missing or
    foreign gradients, on windows that are missing or that the model cannot read, on an input width that the
    pattern does not divide, on a block of the update too narrow for a pattern or options of another update,
    on weights or scores that are not finite, on more zeros than can be preserved, and on a model that is
    offloaded in part or in inference mode. Where inputs are read, scores and updates are seen on the way: the
    sentence then says that the model is half pruned.
    """
    refuse_offloaded(model)
    asked = resolve(method, group, update)
    options = admm if asked.update == "admm" else obs
    gradients = Gradients.load(gradients) if isinstance(gradients, (str, Path)) else gradients
    plan = Plan(model, windows, asked, sparsity, pattern, gradients, options, one_shot, skip, preserve)
    path, decoder = decoder_blocks(model)
    refuse_not_finite(decoder, path)
    for layer in plan.layers:
        plan.zeros(layer)
    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    with torch.no_grad(), closing(plan.blocks(progress)) as blocks:
        made = {} if plan.reads_inputs else {layer.name: _Packed(plan.decide(layer)) for layer in plan.layers}
        try:
            for _, block, inputs in blocks:
                for layer in block:
                    decision = made[layer.name].unpacked() if made else None
                    rows.append(plan.prune_layer(layer, inputs.pop(layer.name, None), decision))
        except UsageError as error:
            if not rows:
                raise
            raise UsageError(f"{str(error).rstrip('.')}; the layers before it are pruned already, so "
                             "load the model anew.") from error
    return Report(rows, plan.meta() | {"seconds": round(time.perf_counter() - started, 3)})


def refuse_not_finite(module: nn.Module, path: str) -> None:
    """Raise UsageError, naming the parameter, unless all weights of a module are finite."""
    for name, parameter in module.named_parameters(prefix=path):
        if not finite(parameter.detach()):
            raise UsageError(f"{name} holds numbers that are not finite; {remedy(parameter.dtype)}.")


@dataclass
class Plan:
    """Everything that is asked for. Raises UsageError on what is seen to be impossible without a pass."""

    model: nn.Module
    windows: Tensor | None
    method: Method
    sparsity: Sparsity
    pattern: str = "unstructured"
    gradients: Gradients | None = None
    options: Any = None  # of the method's update
    one_shot: bool = False
    skip: Sequence[str] = ()
    preserve: bool = False
    layers: list[Layer] = field(init=False)
    targets: dict[str, Target] = field(init=False)  # by layer name
    tokens: int = field(init=False)  # per forward call

    def __post_init__(self) -> None:
        self.layers, self.tokens = layers(self.model), batch_tokens(self.model)
        blocks = len(decoder_blocks(self.model)[1])
        targets = layer_targets(self.layers, self.sparsity, self.pattern, self.skip, blocks)
        self.targets = {layer.name: target for layer, target in zip(self.layers, targets, strict=True)}
        if "G" in self.method.needs:
            if not isinstance(self.gradients, Gradients):
                raise UsageError(f"method {self.method.name} reads G; pass "
                                 "gradients=collect_gradients(model, windows) or a file.")
            self.gradients.check(self.layers)
        kind = SOLVERS[self.method.update].options if self.method.update else ObsOptions
        self.options = kind() if self.options is None else self.options
        if not isinstance(self.options, kind):
            raise UsageError(f"method {self.method.name} takes {kind.__name__} for its update, not "
                             f"{type(self.options).__name__}.")
        for target in self.targets.values() if self.method.update in ("obs", "obs-iter") else ():
            check_blocks(self.options, target.pattern)
        if self.windows is not None:
            check_windows(self.model, self.windows)
        elif self.reads_inputs:
            raise UsageError(f"method {self.method.name} reads the layers' inputs; pass calibration windows.")

    @property
    def reads_inputs(self) -> bool:
        return bool({"X", "H"} & self.method.needs)

    def meta(self) -> dict[str, Any]:
        """What was asked for, in the words of the report."""
        n, seqlen = (0, 0) if self.windows is None else self.windows.shape
        patterns = {target.pattern for target in self.targets.values() if target.sparsity} or {self.pattern}
        return {"method": self.method.name, "tree": str(self.method.tree or "w²/U_ii²"),
                "group": self.method.group, "update": self.method.update or "",
                "pattern": patterns.pop() if len(patterns) == 1 else "mixed", "one_shot": self.one_shot,
                "preserve": self.preserve, "n": n, "seqlen": seqlen, **batch_noted(self.tokens)}

    def blocks(self, progress: bool, resident: Resident | None = None, finished: int = 0
               ) -> Iterator[tuple[int, list[Layer], dict[str, InputStatistics]]]:
        """(block, its layers, what their inputs look like); no forward pass where no inputs are read.

        The first `finished` blocks are pruned already, so only walked through.
        """
        if not self.reads_inputs:
            for index, block in list(enumerate(prunable_layers(self.model)))[finished:]:
                with (resident or Resident()).block(index):
                    yield index, block, {}
            return
        for step in Walk(self.model, self.windows, one_shot=self.one_shot, progress=progress,
                         resident=resident, batch=max(1, self.tokens // self.windows.shape[1])):
            if step.index < finished:
                continue
            inputs = collect_inputs(step, len(self.windows), hessian=self.method.update is not None)
            yield step.index, step.layers, inputs
            inputs.clear()  # before the pass through the pruned block

    def decide(self, layer: Layer, inputs: InputStatistics | None = None) -> Decision:
        """What becomes of a layer; nothing is written. A refusal says which layer it is about."""
        with _naming(layer):
            G = self.gradients.near(layer.weight, layer.name) if "G" in self.method.needs else None
            known = Known(layer.weight, G, inputs, layer.expert is not None, self.zeros(layer))
            return decide(known, self.method, self.targets[layer.name], self.options)

    def zeros(self, layer: Layer) -> Tensor | None:
        """(out, in) bool, those to preserve. Raises UsageError if they are more than its target can keep."""
        target = self.targets[layer.name]
        if not self.preserve or not target.sparsity:
            return None
        zeros = layer.weight == 0
        block = self.options.block_size if self.method.update == "obs-iter" else 0
        with _naming(layer):
            check_zeros(zeros, *target, self.method.group, block)
        return zeros

    def prune_layer(self, layer: Layer, inputs: InputStatistics | None, decision: Decision | None = None
                    ) -> dict[str, Any]:
        """Write a layer's pruned weights, and say what was done. decision: if there is one already."""
        decision = decision or self.decide(layer, inputs)
        decision.write(layer.weight)
        numel, (target, pattern) = layer.weight.numel(), self.targets[layer.name]
        zeros, masked = numel - nonzero(layer.weight), numel - nonzero(decision.keep)
        row = {"layer": layer.name, "block": layer.block, "kind": layer.kind, "target": target,
               "pattern": pattern}
        if layer.expert is not None:
            row |= {"tokens": inputs.tokens if inputs else None, "unseen": decision.unseen}
        row |= {"zeros": zeros, "masked": masked, "numel": numel, "sparsity": zeros / numel}
        return row | {"excess": row["sparsity"] - target} | decision.record


class _Packed:
    """A decision, its mask at one bit per weight, so that all are made before the first weight is written."""

    def __init__(self, decision: Decision):
        keep = decision.keep
        self.rest, self.shape = replace(decision, keep=None), keep.shape
        self.places = None if keep.device.type == "cpu" else 2 ** torch.arange(
            8, dtype=torch.uint8, device=keep.device)  # it stays there
        if self.places is None:
            self.bits = np.packbits(keep.numpy())
        else:
            eights = torch.nn.functional.pad(keep.flatten(), (0, -keep.numel() % 8)).view(-1, 8)
            self.bits = (eights * self.places).sum(1, dtype=torch.uint8)

    def unpacked(self) -> Decision:
        if self.places is None:
            keep = torch.from_numpy(np.unpackbits(self.bits, count=self.shape.numel())).view(torch.bool)
        else:
            keep = (self.bits[:, None] & self.places).ne(0).flatten()[:self.shape.numel()]
        return replace(self.rest, keep=keep.view(self.shape))


@contextmanager
def _naming(layer: Layer) -> Iterator[None]:
    """Have a refusal say which layer it is about."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"layer {layer.name}: {error}") from error
