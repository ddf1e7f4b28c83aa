"""What each expert of a mixture reads: a slice of a parameter, so no module hook sees its inputs."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prunekit.models import Layer

_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)


class ExpertInputs(TorchDispatchMode):
    """While active, hands `observe(layer, x)` what an expert's weight is multiplied with.

    A factor is an expert's weight if it is the same memory, read in the same order; so any family whose
    experts are computed one by one (or all at once by bmm) is understood, and one that does it otherwise is
    seen to be silent. In a bmm every expert gets every token; those that were not sent to it are rows of
    zeros, and are left out.
    """

    def __init__(self, layers: Iterable[Layer], observe: Callable[[Layer, Tensor], None]):
        super().__init__()
        self.observe = observe
        self.experts = {_view(layer.weight.T): layer for layer in layers if layer.expert is not None}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS and self.experts:
            x, factor = args[-2:]
            for inputs, weight in zip(x, factor, strict=True) if x.ndim == 3 else ((x, factor),):
                layer = self.experts.get(_view(weight))
                if layer:
                    self.observe(layer, inputs[inputs.any(1)] if x.ndim == 3 else inputs)
        return func(*args, **(kwargs or {}))


def _view(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


@contextmanager
def one_by_one(model: nn.Module) -> Iterator[None]:
    """For a while, compute mixtures expert by expert (transformers' eager implementation), unfused."""
    configs = {id(m.config): m.config for m in model.modules()
               if getattr(m, "config", None) is not None}.values()
    before = [(config, config._experts_implementation) for config in configs
              if hasattr(config, "_experts_implementation")]
    try:
        for config, _ in before:
            config._experts_implementation = "eager"
        yield
    finally:
        for config, implementation in before:
            config._experts_implementation = implementation
