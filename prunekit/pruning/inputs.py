"""Statistics of layer inputs: X, and the Hessian H of the layer's squared error."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from prunekit.errors import UsageError
from prunekit.pruning.masks import finite, remedy
from prunekit.pruning.walk import InputGroup, Step

_PRECISION = Lock()  # of products, which is the whole process's

_CHUNK = 256  # tokens squared at once


@dataclass
class InputStatistics:
    """What the inputs of a group of layers looked like over n windows, accumulated in float32."""

    n: int
    X: Tensor  # (1, in): (1/n) sum over windows and tokens of x_j squared
    H: Tensor | None = None  # (in, in): (2/n) sum over tokens of x x^T, if asked for
    tokens: int = 0
    shared: Any = None  # what a weight update makes of H

    def add(self, x: Tensor) -> None:
        """Take in one batch of inputs x (tokens, in), any dtype."""
        self.tokens += len(x)
        if self.H is not None:
            self.H.add_(_gram(x), alpha=2 / self.n)
        if x.device.type != "cpu":  # one launch that reads x as it is, and writes nothing as large
            self.X.add_(torch.linalg.vector_norm(x, dim=0, dtype=torch.float32).square_(), alpha=1 / self.n)
            return
        for part in x.split(_CHUNK):  # small enough to stay in the cache
            self.X.add_(part.float().square().sum(0), alpha=1 / self.n)

    def factored(self, factor: Callable[[Tensor, Any], Any], options: Any, keep: bool = False) -> Any:
        """factor(H, options), made once for all layers with these inputs; H is given up unless `keep`."""
        if self.shared is None:
            self.shared, self.H = factor(self.H, options), self.H if keep else None
        return self.shared


def collect_inputs(step: Step, n: int, *, hessian: bool = False) -> dict[str, InputStatistics]:
    """One pass of n windows through a block: statistics of every layer's input, shared where the input is.

    Raises UsageError if they are not finite.
    """
    found: dict[int, InputStatistics] = {}
    for group in step.groups:
        width, device = group.inputs, group.layers[0].weight.device
        H = torch.zeros(width, width, device=device) if hessian else None
        found[id(group)] = InputStatistics(n, torch.zeros(1, width, device=device), H)
    step.collect(lambda group, x: found[id(group)].add(x))
    for group in step.groups:
        refuse_not_finite_inputs(group, found[id(group)].X)
    return {layer.name: found[id(group)] for group in step.groups for layer in group.layers}


def refuse_not_finite_inputs(group: InputGroup, norms: Tensor) -> None:
    """Raise UsageError, naming a layer, unless the norms of a group's inputs are finite."""
    if not finite(norms):
        first = group.layers[0]
        raise UsageError(f"the inputs of layer {first.name} are not finite; {remedy(first.weight.dtype)}.")


def _gram(x: Tensor) -> Tensor:
    """x^T x in float32. Products of two bfloat16 or float16 numbers are exact there, so the fast units lose
    nothing."""
    if multiplies_exactly(x.device, x.dtype):
        return torch.mm(x.T, x, out_dtype=torch.float32)
    exact = x.float()
    if x.dtype != torch.bfloat16 or x.device.type != "cpu":
        return exact.T @ exact
    backend = torch.backends.mkldnn.matmul
    with _PRECISION:
        before = backend.fp32_precision
        try:
            backend.fp32_precision = "bf16"
            return exact.T @ exact
        finally:
            backend.fp32_precision = before


@cache
def multiplies_exactly(device: torch.device, dtype: torch.dtype) -> bool:
    """Does this device multiply matrices of 16 bits to one of float32, without rounding on the way?"""
    return device.type == "cuda" and dtype.itemsize == 2 and product_is_exact(device, dtype)


def product_is_exact(device: torch.device, dtype: torch.dtype) -> bool:
    """Tried, on whole numbers whose products 16 bits could not hold."""
    x = (torch.arange(32 * 16, device=device) % 97).view(32, 16).to(dtype)
    try:
        return torch.equal(torch.mm(x.T, x, out_dtype=torch.float32), x.float().T @ x.float())
    except (RuntimeError, TypeError):  # a torch or a GPU without it
        return False
