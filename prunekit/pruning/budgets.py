"""How much of the zeros each layer bears."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from prunekit.choices import Sparsity, Target, checked, parse_pattern, targets_in
from prunekit.errors import UsageError, did_you_mean
from prunekit.models import Layer
from prunekit.pruning.inputs import collect_inputs
from prunekit.pruning.walk import Walk


def layer_targets(layers: Sequence[Layer], sparsity: Sparsity, pattern: str = "unstructured",
                  skip: str | Sequence[str] = (), blocks: int | None = None) -> list[Target]:
    """What each layer is pruned to: the only place where `sparsity`, `pattern` and `skip` become targets.

    sparsity: one for all layers, a list of one per decoder block, or a mapping from patterns to one each. One
    is a share of zeros, which goes with `pattern`, or a word ("0.6", "2:4"), which brings its own. A pattern
    such as `*.down_proj`, in the language of fnmatch, is held against a layer's name inside its block
    (`mlp.down_proj`) and in full (`model.layers.0.mlp.down_proj`). Where several match a layer, the last
    holds; where none does, and where one of `skip` does, it stays dense. blocks: how many there are (by
    default as many as have layers).

    Raises UsageError for what is no target, a mapping or list without one, a pattern that matches no layer, a
    list of another length than `blocks`, and an N:M pattern that does not divide a layer's inputs.
    """
    named, skip = _Names(layers), [skip] if isinstance(skip, str) else skip or ()
    targets, blocks = targets_in(sparsity, pattern), blocks or 1 + max(layer.block for layer in layers)
    if not targets:
        raise UsageError(f"sparsity {sparsity} names no target; give one for all layers, one per block, or a "
                         "mapping from patterns of layer names.")
    if isinstance(sparsity, Mapping):
        found = [Target(0.0)] * len(layers)
        for name, target in zip(sparsity, targets, strict=True):
            for index in named.matching(name):
                found[index] = target
    elif isinstance(sparsity, str) or not isinstance(sparsity, Sequence):
        found = targets * len(layers)
    elif len(targets) != blocks:
        raise UsageError(f"{len(targets)} sparsities were given for a model of {blocks} decoder blocks; "
                         "give one number or one per block.")
    else:
        found = [targets[layer.block] for layer in layers]
    for name in skip:
        for index in named.matching(name):
            found[index] = Target(0.0)
    for layer, target in zip(layers, found, strict=True):
        ratio, inputs = parse_pattern(target.pattern), layer.weight.shape[1]
        if ratio and inputs % ratio[1]:
            raise UsageError(f"pattern {target.pattern} does not divide the {inputs} inputs of layer "
                             f"{layer.name}.")
    return found


class _Names:
    """The names of layers, to find those that a pattern means: quickly, where it is one of the names."""

    def __init__(self, layers: Sequence[Layer]):
        self.places: dict[str, list[int]] = {}
        for index, layer in enumerate(layers):
            for name in (layer.kind, layer.name):
                self.places.setdefault(name, []).append(index)

    def matching(self, pattern: str) -> list[int]:
        """Raises UsageError if there is none."""
        if not isinstance(pattern, str):
            raise UsageError(f"{pattern!r} is no pattern of layer names; give a text such as '*.down_proj'.")
        if pattern in self.places:  # also an expert's, whose [e] means something else to fnmatch
            return self.places[pattern]
        found = {index for name, places in self.places.items() if fnmatchcase(name, pattern)
                 for index in places}
        if not found:
            ends = dict.fromkeys(f"*.{name.rpartition('.')[2]}" for name in self.places)
            raise UsageError(f"no layer's name matches '{pattern}'{did_you_mean(pattern, ends)}.")
        return sorted(found)


def owl_budget(model: nn.Module, windows: Tensor, sparsity: float, *, threshold: float = 5.0,
               spread: float = 0.08, progress: bool = True) -> list[float]:
    """One sparsity per decoder block, lower where outliers are; their mean is `sparsity`. OWL (2310.05175).

    With A = |W| sqrt(X) of the dense model, r_b is the share of block b's entries with A > threshold *
    mean(A) of their layer. sparsity_b = sparsity + spread * (mean(u) - u_b), u_b = 2 (r_b - min r) / (max r -
    min r). windows: token ids (n, seqlen). Blocks are taken to be of one size.

    Raises UsageError if sparsity, threshold or spread is no such number, and if a block's share would leave
    [0, 1).
    """
    checked("sparsity", sparsity, Annotated[float, Field(ge=0, lt=1)])
    for name, value in (("threshold", threshold), ("spread", spread)):
        checked(name, value, Annotated[float, Field(ge=0)])
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
        raise UsageError(f"a spread of {spread} around sparsity {sparsity} gives a block "
                         f"{min(budget) if min(budget) < 0 else max(budget):.2f}; "
                         "take a smaller spread.")
    return budget
