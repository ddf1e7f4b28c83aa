"""A dense model with everything that evaluating a metric on it needs, resident."""
from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.choices import Target
from prunekit.errors import UsageError
from prunekit.evaluate.perplexity import batches, window_losses
from prunekit.metric.catalogue import Method
from prunekit.metric.tree import Tree, defect
from prunekit.models import check_windows, fingerprint, layers, load_model
from prunekit.pruning.decide import SOLVERS, Decision, Known, decide
from prunekit.pruning.gradients import Gradients
from prunekit.pruning.inputs import InputStatistics, collect_inputs
from prunekit.pruning.masks import keep_mask
from prunekit.pruning.walk import Walk, batch_noted, batch_tokens

_REMEMBERED = 3  # decisions about every layer, each as large as the prunable weights
_ONE_BY_ONE = ("cpu",)  # kinds of devices where layers are decided one by one
_TURNS = RLock()  # an evaluation prunes the one model that there is
_STACKED = 2**24  # scores that a GPU ranks at once: of small layers many, where each launch would be a wait


def fast_dtype(device: str = "auto") -> str:
    """bfloat16 where it is computed in hardware, else float32: emulated, it is about eight times slower."""
    if device == "cpu" or device in ("auto", "balanced") and not torch.cuda.is_available():
        cpu = torch.cpu  # torch has no public question
        return "bfloat16" if cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported() else "float32"
    return "bfloat16"


class Bench:
    """One dense model with everything that evaluating a metric on it needs.

    model: a name or directory as for `load_model`, or the model itself (which then cannot be sent to other
    processes). calibration: windows (n, seqlen) for X and, for a weight update, H, all taken from the dense
    model. search: windows (n, seqlen) that fitness is measured on, which an evaluator takes in another order;
    `given` keeps them as given, in the text's order. gradients: G, if metrics may read it.
    dtype, device: as for `load_model`; dtype "fast" is `fast_dtype`'s. tokens: per forward call, as
    `batch_tokens` has it. On a GPU a G of 16 bits stays one, and is read in float32.
    """

    def __init__(self, model: str | Path | nn.Module, calibration: Tensor, search: Tensor, *,
                 gradients: Gradients | None = None, dtype: str = "auto", device: str = "auto",
                 tokens: int | None = None):
        named = not isinstance(model, nn.Module)
        self.name, self.device = str(model) if named else "", device
        self.dtype = fast_dtype(device) if dtype == "fast" else dtype
        self.model = load_model(model, dtype=self.dtype, device=device)[0] if named else model
        for windows in (calibration, search):
            check_windows(self.model, windows)
        self.layers = layers(self.model)
        if gradients is not None:
            gradients.check(self.layers)
        self.dense = [layer.weight.clone() for layer in self.layers]
        self.G = None if gradients is None else [
            gradients.near(layer.weight, layer.name) for layer in self.layers]
        self.inputs: list[InputStatistics] = []  # by layer, H already factored
        self._written: Sequence[Decision] | None = None  # what the model is pruned by
        self.calibration, self.search, self.given = calibration, search, search
        self._made: OrderedDict[tuple[Any, ...], Decision] = OrderedDict()
        self.losses, self.tokens = window_losses(self.model.eval()), tokens or batch_tokens(self.model)
        self.nll = np.zeros(0)

    def again(self) -> Bench:
        """The same dense model and windows for another evaluator, which takes them in an order of its own."""
        other = copy.copy(self)
        other.search, other.inputs, other._made = self.given, [], OrderedDict()
        return other

    def prepare(self, update: str | None, options: Any) -> None:
        """Collect X (and factor H as a weight update wants it), and the dense losses of the search."""
        by_name: dict[str, InputStatistics] = {}
        batch = max(1, self.tokens // self.calibration.shape[1])
        for step in Walk(self.model, self.calibration, one_shot=True, progress=False, batch=batch):
            by_name |= (here := collect_inputs(step, len(self.calibration), hessian=update is not None))
            for statistics in here.values() if update else ():
                statistics.factored(SOLVERS[update].factor, options)
        self.inputs = [by_name[layer.name] for layer in self.layers]
        self.nll = self.measure(self.search)

    @torch.no_grad()
    def measure(self, windows: Tensor) -> np.ndarray:
        """Mean negative log-likelihood of each window under the model as it is now, float64 (n,)."""
        parts = [self.losses(batch) for batch in batches(windows, self.tokens)]
        return torch.cat(parts).double().cpu().numpy()

    @property
    def X(self) -> list[Tensor]:
        return [statistics.X for statistics in self.inputs]

    def known(self, index: int) -> Known:
        """What is known of one layer of the dense model."""
        G, expert = self.G[index] if self.G else None, self.layers[index].expert is not None
        return Known(self.dense[index], G, self.inputs[index], expert)

    @cached_property
    def smallest(self) -> int:
        """The layer that shows most cheaply whether a metric is one, of those that tokens reached."""
        seen = [i for i in range(len(self.layers)) if not self.known(i).unseen("GX")]
        return min(seen, key=lambda i: self.dense[i].numel())

    def scores(self, tree: Tree, index: int, check: bool = False) -> Tensor:
        """S (out, in) of one layer of the dense model, float32."""
        return self.known(index).score(tree, check=check)

    def decide_again(self, method: Method, index: int, target: Target, options: Any = None) -> Decision:
        """`decide` at one target, remembered: of two budgets most layers have the same."""
        key = str(method.tree), method.update, index, target, options
        if key not in self._made:
            decision = self.decide(method, index, [target], options)[0]
            rounded = None if decision.W is None else decision.W.to(self.dense[index].dtype)
            self._made[key] = replace(decision, W=rounded)
            if len(self._made) > _REMEMBERED * len(self.layers):
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        return self._made[key]

    def decide(self, method: Method, index: int, targets: Sequence[Target], options: Any = None
               ) -> list[Decision]:
        """What becomes of one layer, target by target. Raises UsageError if the metric is none there."""
        known = self.known(index)
        method = known.ranked_by(method)
        S = known.score(method.tree, check=False)
        if why := defect(S):
            raise UsageError(f"{why} in layer {self.layers[index].name}")
        return [decide(known, method, target, options, S) for target in targets]

    def decide_all(self, method: Method, targets: Sequence[Target], options: Any = None
                   ) -> list[list[Decision]]:
        """`decide` of every layer. On a GPU, to which small layers are launches rather than arithmetic, the
        rows of several are ranked as one matrix, and whether all scores are sound is asked at the end."""
        if self.model.device.type in _ONE_BY_ONE or method.update:
            return [self.decide(method, i, targets, options) for i in range(len(self.layers))]
        decided: list[list[Decision]] = [[] for _ in self.layers]
        asked: list[int] = []
        bounds: list[Tensor] = []
        for stack in self.stacks:
            known = [self.known(i) for i in stack]
            scores = [each.score(each.ranked_by(method).tree, check=False) for each in known]
            asked += stack
            bounds += [torch.stack(S.aminmax()) for S in scores]
            S = torch.cat(scores)  # (rows of all, in)
            for target in targets:
                masks = keep_mask(S, *target, check=False).split([len(part) for part in scores])
                for i, keep in zip(stack, masks, strict=True):
                    decided[i].append(Decision(keep))
        self._refuse_unsound(asked, bounds)
        return decided

    def check(self, tree: Tree) -> None:
        """Raise UsageError where a tree's scores cannot be ranked, in whatever layer."""
        method = Method(str(tree), tree)
        scores = (known.score(known.ranked_by(method).tree, check=False)
                  for known in map(self.known, range(len(self.layers))))
        self._refuse_unsound(range(len(self.layers)), [torch.stack(S.aminmax()) for S in scores])

    def _refuse_unsound(self, indices: Sequence[int], bounds: Sequence[Tensor]) -> None:
        for i, found in zip(indices, together(bounds), strict=True):
            if why := defect(found):
                raise UsageError(f"{why} in layer {self.layers[i].name}")

    @cached_property
    def stacks(self) -> list[list[int]]:
        """Layers of one width and device, in groups of at most `_STACKED` weights or of one."""
        by_width: dict[tuple[int, torch.device], list[list[int]]] = {}
        for i, layer in enumerate(self.layers):
            found = by_width.setdefault((layer.weight.shape[1], layer.weight.device), [[]])
            if sum(self.dense[other].numel() for other in found[-1]) + self.dense[i].numel() > _STACKED:
                found.append([])
            found[-1].append(i)
        return [stack for stacks in by_width.values() for stack in stacks if stack]

    @torch.no_grad()
    def apply(self, decisions: Sequence[Decision]) -> None:
        """Prune the dense model: a decision for every layer."""
        if decisions is self._written:
            return
        for layer, dense, decision in zip(self.layers, self.dense, decisions, strict=True):
            decision.write(layer.weight, dense)
        self._written = decisions

    @torch.no_grad()
    def restore(self) -> None:
        """The dense weights, bit for bit."""
        for layer, weight in zip(self.layers, self.dense, strict=True):
            layer.weight.copy_(weight)
        self._written = None

    @property
    def identity(self) -> dict[str, Any]:
        data, dtype = _digest(self.search, *self.X, *(self.G or [])), str(self.model.dtype)
        weights = fingerprint(self.name) if self.name else _digest(*self.dense)
        return {"model": self.name or type(self.model).__name__, "weights": weights, "data": data,
                "windows": list(self.search.shape), "calibration": list(self.calibration.shape),
                "dtype": dtype.removeprefix("torch."), "device": self.model.device.type,
                **batch_noted(self.tokens)}


@contextmanager
def without_gradients(threads: int) -> Iterator[None]:
    """For a while, no gradients, this many threads (sums depend on their number), and nobody else in here."""
    with _TURNS, torch.no_grad():
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def together(tensors: Sequence[Tensor]) -> Tensor:
    """Small tensors of one shape stacked on the processor; those of one device come in one piece."""
    by_device: dict[torch.device, list[int]] = {}
    for place, tensor in enumerate(tensors):
        by_device.setdefault(tensor.device, []).append(place)
    found = torch.empty(len(tensors), *tensors[0].shape, dtype=tensors[0].dtype)
    for places in by_device.values():
        found[places] = torch.stack([tensors[place] for place in places]).cpu()
    return found


def _digest(*tensors: Tensor) -> str:
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return sha.hexdigest()[:16]
