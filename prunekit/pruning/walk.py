"""The only walk over decoder blocks: replay, collect, hand over, replay, next.

An ordinary forward pass shows what every block is called with; the walk then calls one block at a time with exactly
that and the hidden states that reach it, so it needs to know nothing about any family's masks, positions or caches.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..errors import UsageError
from ..models import Layer, decoder_blocks, prunable_layers

BATCH_TOKENS = 4096  # tokens per forward call
_PROBE_TOKENS = 8

Observe = Callable[["InputGroup", Tensor], None]  # called with x of shape (tokens, in)


class _Stop(Exception):
    """Ends a forward pass once everything wanted has been seen."""


@dataclass(frozen=True, eq=False)
class InputGroup:
    """Layers of a block that read the same input tensor (q, k and v; gate and up), so share its statistics."""

    layers: tuple[Layer, ...]

    @property
    def inputs(self) -> int:
        return self.layers[0].weight.shape[1]


@dataclass
class _Call:
    """What a block is called with besides its hidden states, and where those go."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    keyword: str | None

    def __call__(self, block: nn.Module, hidden: Tensor) -> Any:
        if self.keyword:
            return block(*self.args, **{**self.kwargs, self.keyword: hidden})
        return block(hidden, *self.args[1:], **self.kwargs)


@dataclass
class Step:
    """One decoder block and the hidden states that reach it."""

    index: int
    name: str
    block: nn.Module
    layers: list[Layer]
    groups: list[InputGroup]
    _walk: "Walk" = field(repr=False)
    _outputs_kept: bool = False

    def collect(self, observe: Observe) -> None:
        """Forward all windows, handing every group's input, (tokens, in) in the model's dtype, to `observe`.

        The pass ends at the input of the last layer, unless its outputs are wanted (one-shot statistics).
        """
        keep = self._walk.one_shot
        with _observing(self, observe, stop_early=not keep):
            self._walk._forward(self, store=keep)
        self._outputs_kept = keep


class Walk:
    """Iterate over the decoder blocks of a model, each with the hidden states of the blocks before it.

    windows: token ids (n, seqlen). Whatever is done to a block between two steps (pruning, say) is what the next
    block's inputs come from; with `one_shot` they come from the block as it was when `Step.collect` ran.

    Raises UsageError if the model calls its blocks in a way that cannot be replayed.
    """

    def __init__(self, model: nn.Module, windows: Tensor, *, one_shot: bool = False, progress: bool = True):
        if windows.ndim != 2 or windows.shape[1] < 2:
            raise UsageError(f"windows have shape {tuple(windows.shape)}; give token ids of shape (n, seqlen).")
        self.model, self.windows, self.one_shot, self.progress = model, windows, one_shot, progress
        self.path, self.blocks = decoder_blocks(model)
        self.layers = prunable_layers(model)
        if any(layer.weight.is_meta for layers in self.layers for layer in layers):
            raise UsageError("parts of the model are offloaded to disk or the CPU; load it whole or use prune_checkpoint.")

    @torch.no_grad()
    def __iter__(self) -> Iterator[Step]:
        training, use_cache = self.model.training, getattr(self.model.config, "use_cache", None)
        self.model.eval()
        try:
            groups, rewrap = self._probe()
            self._prepare(rewrap)
            steps = [Step(i, f"{self.path}.{i}", block, self.layers[i], groups[i], self)
                     for i, block in enumerate(self.blocks)]
            for step in tqdm(steps, desc="blocks", disable=not self.progress, leave=False):
                yield step
                if not step._outputs_kept and step is not steps[-1]:
                    self._forward(step, store=True)
        finally:
            self.model.train(training)
            self.model.config.use_cache = use_cache
            self._hidden = []

    # --- one ordinary forward pass --------------------------------------------------------------------------------

    def _run(self, ids: Tensor) -> None:
        device = self.model.get_input_embeddings().weight.device
        try:
            self.model(input_ids=ids.to(device), use_cache=False)
        except _Stop:
            pass

    def _probe(self) -> tuple[list[list[InputGroup]], list[Callable[[Tensor], Any]]]:
        """Run a few tokens for real: which layers share inputs, what blocks return, and does a replay agree?"""
        seen: list[tuple[_Call, Tensor, Any]] = []
        reads: list[list[tuple[nn.Module, Tensor]]] = [[] for _ in self.blocks]
        with ExitStack() as stack:
            for index, (block, layers) in enumerate(zip(self.blocks, self.layers, strict=True)):
                def after(module, args, kwargs, output, index=index):
                    call, hidden = self._split(index, args, kwargs)
                    seen.append((call, hidden.clone(), output))
                _hook(stack, block.register_forward_hook(after, with_kwargs=True))
                for module in {id(layer.module): layer.module for layer in layers}.values():
                    def before(module, args, index=index):
                        reads[index].append((module, args[0]))
                    _hook(stack, module.register_forward_pre_hook(before))
            self._run(self.windows[:1, :_PROBE_TOKENS])
        if len(seen) != len(self.blocks):
            raise self._cannot(f"{len(seen)} of {len(self.blocks)} blocks were called")
        for index, (call, hidden, output) in enumerate(seen):
            if index and not torch.equal(hidden.cpu(), _first(seen[index - 1][2]).cpu()):
                raise self._cannot(f"block {index} does not read what block {index - 1} returned")
            if not torch.allclose(_first(call(self.blocks[index], hidden)), _first(output), rtol=1e-3, atol=1e-3):
                raise self._cannot(f"block {index} called again with the same arguments gives another output")
        return [self._grouped(i, reads[i]) for i in range(len(seen))], [_rewrapper(output) for _, _, output in seen]

    def _grouped(self, index: int, reads: Sequence[tuple[nn.Module, Tensor]]) -> list[InputGroup]:
        """Layers in the order in which they are called, those that read one tensor together."""
        by_module: dict[int, list[Layer]] = {}
        for layer in self.layers[index]:
            by_module.setdefault(id(layer.module), []).append(layer)
        by_input: dict[tuple[int, tuple[int, ...], int], list[Layer]] = {}
        for module, x in reads:
            key = (x.data_ptr(), tuple(x.shape), x._version)
            by_input.setdefault(key, []).extend(by_module.pop(id(module), []))
        if by_module:
            names = ", ".join(layer.name for layers in by_module.values() for layer in layers)
            raise self._cannot(f"{names} is never called with a tensor")
        return [InputGroup(tuple(layers)) for layers in by_input.values() if layers]

    def _prepare(self, rewrap: list[Callable[[Tensor], Any]]) -> None:
        """Embed all windows, and keep what each block is called with for every size of batch. No block is computed."""
        size = max(1, BATCH_TOKENS // self.windows.shape[1])
        self._hidden: list[Tensor] = []
        self._calls: dict[int, list[_Call]] = {}
        for ids in self.windows.split(size):
            calls: list[_Call] = []
            known = len(ids) in self._calls
            originals = [block.__dict__.get("forward") for block in self.blocks]

            def bypass(index: int) -> Callable[..., Any]:
                def forward(*args: Any, **kwargs: Any) -> Any:
                    call, hidden = self._split(index, args, kwargs)
                    calls.append(call)
                    if index == 0:
                        self._hidden.append(hidden)
                    if known or index == len(self.blocks) - 1:
                        raise _Stop
                    return rewrap[index](hidden)
                return forward

            try:
                for index, block in enumerate(self.blocks):
                    block.forward = bypass(index)
                self._run(ids)
            finally:
                for block, original in zip(self.blocks, originals, strict=True):
                    del block.forward
                    if original is not None:
                        block.forward = original
            self._calls.setdefault(len(ids), calls)

    def _forward(self, step: Step, *, store: bool) -> None:
        for position, hidden in enumerate(self._hidden):
            call = self._calls[len(hidden)][step.index]
            try:
                output = _first(call(step.block, hidden.to(_device(step.block))))
            except _Stop:
                continue
            if store:
                self._hidden[position] = output

    def _split(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[_Call, Tensor]:
        """Separate the hidden states from everything else that a block is called with."""
        keyword = None if args else "hidden_states"
        hidden = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(hidden, Tensor) or hidden.ndim != 3:
            raise self._cannot(f"block {index} is not called with hidden states of shape (windows, tokens, width)")
        rest = {key: value for key, value in kwargs.items() if key != keyword}
        return _Call((None, *args[1:]) if args else (), rest, keyword), hidden

    def _cannot(self, reason: str) -> UsageError:
        return UsageError(f"{type(self.model).__name__} cannot be pruned block by block: {reason}; this family calls its "
                          "blocks in a way that is not known here.")


@contextmanager
def _observing(step: Step, observe: Observe, *, stop_early: bool) -> Iterator[None]:
    """Hook the first layer of every input group for the time of one pass."""
    with ExitStack() as stack:
        for group in step.groups:
            last = stop_early and group is step.groups[-1]

            def before(module: nn.Module, args: tuple[Any, ...], group: InputGroup = group, last: bool = last) -> None:
                observe(group, args[0].reshape(-1, args[0].shape[-1]))
                if last:
                    raise _Stop
            _hook(stack, group.layers[0].module.register_forward_pre_hook(before))
        yield


def _hook(stack: ExitStack, handle: Any) -> None:
    stack.callback(handle.remove)


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _rewrapper(output: Any) -> Callable[[Tensor], Any]:
    """How to return hidden states in the shape of container that the model expects of this block."""
    if isinstance(output, Tensor):
        return lambda hidden: hidden
    return lambda hidden: (hidden, *output[1:])


def _device(block: nn.Module) -> torch.device:
    return next(block.parameters()).device
