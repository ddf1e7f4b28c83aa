"""A dense model with everything that evaluating a metric on it needs, resident."""
from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.evaluate.perplexity import window_losses
from prunekit.metric.tree import Tree
from prunekit.models import check_windows, fingerprint, load_model, prunable_layers
from prunekit.pruning.gradients import Gradients
from prunekit.pruning.inputs import collect_inputs
from prunekit.pruning.obs import Factor, ObsOptions, inverse_factor
from prunekit.pruning.walk import Walk

_BATCH_TOKENS = 4096


def fast_dtype(device: str = "auto") -> str:
    """bfloat16 where it is computed in hardware, else float32: emulated on a processor, it is about eight times slower."""
    if device == "cpu" or device == "auto" and not torch.cuda.is_available():
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # torch has no public question
        return "bfloat16" if native else "float32"
    return "bfloat16"


class Bench:
    """One dense model with everything that evaluating a metric on it needs.

    model: a name or directory as for `load_model`, or the model itself (which then cannot be sent to other processes).
    calibration: windows (n, seqlen) for X and, with `update`, for the Hessians, all taken from the dense model. search:
    windows (n, seqlen) that fitness is measured on. gradients: G, if metrics may read it. dtype, device: as for
    `load_model`; dtype "fast" is `fast_dtype`'s.
    """

    def __init__(self, model: str | Path | nn.Module, calibration: Tensor, search: Tensor, *,
                 gradients: Gradients | None = None, dtype: str = "auto", device: str = "auto"):
        named = not isinstance(model, nn.Module)
        self.name, self.device = str(model) if named else "", device
        self.dtype = fast_dtype(device) if dtype == "fast" else dtype
        self.model = load_model(model, dtype=self.dtype, device=device)[0] if named else model
        for windows in (calibration, search):
            check_windows(self.model, windows)
        self.layers = [layer for block in prunable_layers(self.model) for layer in block]
        if gradients is not None:
            gradients.check(self.layers)
        self.dense = [layer.weight.clone() for layer in self.layers]
        self.G = [self._here(gradients[layer.name], layer) for layer in self.layers] if gradients is not None else None
        self.calibration, self.search = calibration, search
        self.X: list[Tensor] = []
        self.factors: list[Factor | None] = []
        self.losses = window_losses(self.model.eval())
        self.nll = np.zeros(0)

    def prepare(self, hessian: bool, obs: ObsOptions) -> None:
        """Collect X (and factor the inverse Hessians), and the dense losses of the search windows."""
        found: dict[str, tuple[Tensor, Factor | None]] = {}
        for step in Walk(self.model, self.calibration, one_shot=True, progress=False):
            factors: dict[int, Factor | None] = {}
            for name, statistics in collect_inputs(step, len(self.calibration), hessian=hessian).items():
                if id(statistics) not in factors:
                    factors[id(statistics)] = inverse_factor(statistics.H, obs) if hessian else None
                found[name] = statistics.X, factors[id(statistics)]
        self.X = [found[layer.name][0] for layer in self.layers]
        self.factors = [found[layer.name][1] for layer in self.layers]
        self.nll = self.measure(self.search)

    @torch.no_grad()
    def measure(self, windows: Tensor) -> np.ndarray:
        """Mean negative log-likelihood of each window under the model as it is now, float64 (n,)."""
        batches = windows.split(max(1, _BATCH_TOKENS // windows.shape[1]))
        return torch.cat([self.losses(batch).double().cpu() for batch in batches]).numpy()

    def scores(self, tree: Tree, index: int, check: bool = False) -> Tensor:
        """S (out, in) of one layer of the dense model, float32."""
        return tree.score(self.dense[index], self.G[index] if self.G else None, self.X[index], check=check)

    @torch.no_grad()
    def restore(self) -> None:
        """The dense weights, bit for bit."""
        for layer, weight in zip(self.layers, self.dense, strict=True):
            layer.weight.copy_(weight)

    @property
    def identity(self) -> dict[str, Any]:
        sha = hashlib.sha256()
        for tensor in (self.search, *self.X, *(self.G or [])):
            sha.update(_bytes(tensor))
        return {"model": self.name or type(self.model).__name__, "weights": self._weights(), "data": sha.hexdigest()[:16],
                "windows": list(self.search.shape), "calibration": list(self.calibration.shape),
                "dtype": str(self.model.dtype).removeprefix("torch."), "device": self.model.device.type}

    def _weights(self) -> str:
        if self.name:
            return fingerprint(self.name)[:16]
        sha = hashlib.sha256()
        for weight in self.dense:
            sha.update(_bytes(weight))
        return sha.hexdigest()[:16]

    @staticmethod
    def _here(tensor: Tensor, layer: Any) -> Tensor:
        return tensor.to(layer.weight.device, torch.float32)


@contextmanager
def without_gradients(threads: int) -> Iterator[None]:
    """For a while, no gradients, and this many threads (sums depend on their number)."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(before)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
