"""The only walk over decoder blocks: replay, collect, hand over, replay, next.

An ordinary forward pass shows what every block is called with; the walk then calls one block at a time with
exactly that and the hidden states that reach it, so it needs to know nothing about any family's masks,
positions or caches.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import UsageError
from prunekit.models import (
    Layer,
    check_windows,
    decoder_blocks,
    in_eval_mode,
    prunable_layers,
    refuse_offloaded,
)
from prunekit.progress import tqdm
from prunekit.pruning.experts import ExpertInputs, one_by_one

BATCH_TOKENS = 4096  # tokens per forward call; on a GPU at least
_MOST_TOKENS = 2**16
_PROBE_TOKENS = 8

Observe = Callable[["InputGroup", Tensor], None]  # called with x of shape (tokens, in)


class Stop(Exception):
    """Ends a forward pass once everything wanted has been seen."""


@contextmanager
def called_instead(blocks: Sequence[nn.Module], instead: Callable[[int, Any], Any]) -> Iterator[None]:
    """For a while, whoever calls a block calls `instead(index, its own forward)`."""
    before = [block.__dict__.get("forward") for block in blocks]
    try:
        for index, block in enumerate(blocks):
            block.forward = instead(index, block.forward)
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            del block.forward
            if own is not None:
                block.forward = own


@dataclass(frozen=True, eq=False)
class InputGroup:
    """Layers of a block that read the same input tensor (q, k and v; gate and up), so share its statistics.

    An expert's slice is a group of its own: only the tokens sent to that expert reach it.
    """

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

    def __call__(self, block: Callable[..., Any], hidden: Tensor) -> Any:
        if self.keyword:
            return block(*self.args, **{**self.kwargs, self.keyword: hidden})
        return block(hidden, *self.args[1:], **self.kwargs)

    def sharing(self, other: _Call) -> _Call:
        """This call, holding the other's tensors (masks, positions) where its own are the same."""
        kwargs = {key: _shared(value, other.kwargs.get(key)) for key, value in self.kwargs.items()}
        return _Call(_shared(self.args, other.args), kwargs, self.keyword)


@dataclass
class Step:
    """One decoder block and the hidden states that reach it."""

    index: int
    block: nn.Module
    layers: list[Layer]
    groups: list[InputGroup]
    _walk: Walk = field(repr=False)
    _outputs_kept: bool = False

    def outputs(self) -> Iterator[Tensor]:
        """Forward all windows: the block's outputs batch by batch, differentiable if the caller wants it."""
        for calls, hidden in zip(self._walk._calls, self._walk._hidden, strict=True):
            yield _first(calls[self.index](self.block, hidden.to(_device(self.block))))

    @torch.no_grad()
    def collect(self, observe: Observe) -> None:
        """Forward all windows, handing every group's input, (tokens, in) in the model's dtype, to `observe`.

        The pass ends at the input of the last layer, unless its outputs are wanted (one-shot statistics) or
        there are experts, of which any may come last.
        """
        keep, first = self._walk.one_shot, {group.layers[0]: group for group in self.groups}
        stop_early = not keep and all(layer.expert is None for layer in self.layers)

        def see(layer: Layer, x: Tensor) -> None:
            observe(first[layer], x.reshape(-1, x.shape[-1]))
            if stop_early and first[layer] is self.groups[-1]:
                raise Stop

        with _watching(first, see):
            self._walk._forward(self, store=keep)
        self._outputs_kept = keep


def batch_tokens(model: nn.Module) -> int:
    """How many tokens a forward call should have: 4096; on a GPU a power of two from there to 65,536.

    As many as an eighth of the memory beside the weights holds, at 16 numbers of the widest layer for each
    token: that depends on model and card only, so that sums come out alike. Halved where so much is not free.
    """
    device = model.get_input_embeddings().weight.device
    if device.type != "cuda":
        return BATCH_TOKENS
    free, total = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    weights = sum(parameter.nbytes for parameter in model.parameters() if parameter.device == device)
    widest = max(max(layer.weight.shape) for block in prunable_layers(model) for layer in block)
    return _fitting(min(total - weights, 2 * free) // 8, 16 * widest * model.dtype.itemsize)


def _fitting(room: int, token: int) -> int:
    """The power of two of tokens, of `token` bytes each, that fits into `room` bytes, within the limits."""
    return min(max(2 ** (max(room // token, 1).bit_length() - 1), BATCH_TOKENS), _MOST_TOKENS)


def batch_noted(tokens: int) -> dict[str, int]:
    """For the meta of a result whose last bits depend on the batches: their tokens, if not the usual 4096."""
    return {} if tokens == BATCH_TOKENS else {"batch_tokens": tokens}


class Resident:
    """Where a model's blocks are while it is walked: in memory. A subclass may bring and drop them."""

    def block(self, index: int) -> AbstractContextManager[None]:
        """Around everything that is done with a block."""
        return nullcontext()

    def entrance(self, model: nn.Module) -> torch.device:
        """Where token ids go in."""
        return model.get_input_embeddings().weight.device


class Walk:
    """Iterate over the decoder blocks of a model, each with the hidden states of the blocks before it.

    windows: token ids (n, seqlen). Whatever is done to a block between two steps (pruning, say) is what the
    next block's inputs come from; with `one_shot` they come from the block as it was when `Step.collect` ran.
    batch: windows per forward call (by default as many as make `batch_tokens`).

    Raises UsageError if the model cannot read the windows, or calls its blocks in a way that cannot be
    replayed.
    """

    def __init__(self, model: nn.Module, windows: Tensor, *, one_shot: bool = False, progress: bool = True,
                 resident: Resident | None = None, batch: int | None = None):
        check_windows(model, windows)
        self.model, self.windows, self.one_shot, self.progress = model, windows, one_shot, progress
        self.batch = batch or max(1, batch_tokens(model) // windows.shape[1])
        self.blocks = decoder_blocks(model)[1]
        self.layers = prunable_layers(model)
        if resident is None:
            refuse_offloaded(model)
        self.resident = resident or Resident()

    @torch.no_grad()
    def __iter__(self) -> Iterator[Step]:
        try:
            with in_eval_mode(self.model), one_by_one(self.model):
                groups, rewrap = self._probe()
                self._prepare(rewrap)
                steps = [Step(i, block, self.layers[i], groups[i], self)
                         for i, block in enumerate(self.blocks)]
                for step in tqdm(steps, desc="blocks", disable=not self.progress, leave=False):
                    with self.resident.block(step.index):
                        yield step
                        if not step._outputs_kept and step is not steps[-1]:
                            self._forward(step, store=True)
        finally:
            self._hidden, self._calls = [], []

    # --- one ordinary forward pass --------------------------------------------------------------------------

    def _run(self, ids: Tensor, forward: Callable[[int, Callable[..., Any], Any, Any], Any]) -> None:
        """Call the model, and `forward(index, its own forward, args, kwargs)` in place of every block."""
        def instead(index: int, own: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args, **kwargs: forward(index, own, args, kwargs)

        with called_instead(self.blocks, instead), suppress(Stop):
            self.model(input_ids=ids.to(self.resident.entrance(self.model)), use_cache=False)

    def _probe(self) -> tuple[list[list[InputGroup]], list[Callable[[Tensor], Any]]]:
        """Run a few tokens for real: what shares inputs, what do blocks return, does a replay agree?"""
        groups: list[list[InputGroup]] = []
        rewrap: list[Callable[[Tensor], Any]] = []
        previous: list[Tensor] = []

        def forward(index: int, block: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            call, hidden = self._split(index, args, kwargs)
            if index != len(groups):
                raise self._cannot(f"block {index} is called where block {len(groups)} is expected")
            if index and not _agree(hidden, previous[0].to(hidden.device), 0):
                raise self._cannot(f"block {index} does not read what block {index - 1} returned")
            entered = hidden.clone()
            reads: list[tuple[Layer, Tensor, int]] = []
            with self.resident.block(index):  # which version is read, too: a tensor may be changed in place
                with _watching(self.layers[index], lambda layer, x: reads.append((layer, x, x._version))):
                    output = block(*args, **kwargs)
                again = _first(call(block, entered))
            if again.shape != hidden.shape or not _agree(again, _first(output), 1e-3):
                raise self._cannot(f"block {index} called again with the same arguments gives another output")
            groups.append(self._grouped(index, reads))
            rewrap.append(_rewrapper(output))
            previous[:] = [_first(output).clone()]
            return output

        self._run(self.windows[:1, :_PROBE_TOKENS], forward)
        if len(groups) != len(self.blocks):
            raise self._cannot(f"{len(groups)} of {len(self.blocks)} blocks were called")
        return groups, rewrap

    def _grouped(self, index: int, reads: Sequence[tuple[Layer, Tensor, int]]) -> list[InputGroup]:
        """Layers in the order of their calls, those that read one tensor together; single experts last."""
        seen = {layer.parameter for layer, *_ in reads}
        silent = ", ".join(layer.name for layer in self.layers[index] if layer.parameter not in seen)
        if silent:
            raise self._cannot(f"no input of {silent} is to be seen")
        by_input: dict[tuple[int, tuple[int, ...], int], dict[str, Layer]] = {}
        for layer, x, version in reads:
            if layer.expert is None and not any(layer.name in known for known in by_input.values()):
                by_input.setdefault((x.data_ptr(), tuple(x.shape), version), {})[layer.name] = layer
        experts = [InputGroup((layer,)) for layer in self.layers[index] if layer.expert is not None]
        return [InputGroup(tuple(layers.values())) for layers in by_input.values()] + experts

    def _prepare(self, rewrap: list[Callable[[Tensor], Any]]) -> None:
        """Embed all windows, and keep what each block is called with for each batch. No block is computed.

        Most of it is the same for all batches of a size, and held once; some families make it from token ids.
        """
        self._hidden: list[Tensor] = []
        self._calls: list[list[_Call]] = []
        first: dict[int, list[_Call]] = {}
        for ids in self.windows.split(self.batch):
            calls: list[_Call] = []

            def forward(index: int, block: Callable[..., Any], args: Any, kwargs: Any,
                        calls: list[_Call] = calls,
                        same: list[_Call] = first.setdefault(len(ids), calls)) -> Any:
                call, hidden = self._split(index, args, kwargs)
                calls.append(call if same is calls else call.sharing(same[index]))
                if index == 0:
                    self._hidden.append(hidden)
                if index == len(self.blocks) - 1:
                    raise Stop
                return rewrap[index](hidden)

            self._run(ids, forward)
            self._calls.append(calls)

    def _forward(self, step: Step, *, store: bool) -> None:
        for position, (calls, hidden) in enumerate(zip(self._calls, self._hidden, strict=True)):
            try:
                output = _first(calls[step.index](step.block, hidden.to(_device(step.block))))
            except Stop:
                continue
            if store:
                self._hidden[position] = output

    def _split(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[_Call, Tensor]:
        """Separate the hidden states from everything else that a block is called with."""
        keyword = None if args else "hidden_states"
        hidden = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(hidden, Tensor) or hidden.ndim != 3:
            raise self._cannot(f"block {index} is not called with hidden states of shape (windows, tokens, "
                               "width)")
        rest = {key: value for key, value in kwargs.items() if key != keyword}
        return _Call((None, *args[1:]) if args else (), rest, keyword), hidden

    def _cannot(self, reason: str) -> UsageError:
        return UsageError(f"{type(self.model).__name__} cannot be pruned block by block: {reason}; this "
                          "family calls its blocks in a way that is not known here.")


@contextmanager
def _watching(layers: Iterable[Layer], see: Callable[[Layer, Tensor], None]) -> Iterator[None]:
    """Call `see(layer, x)` with every input of the layers: by hooks on modules, by products for experts."""
    with ExitStack() as stack:
        for layer in layers:
            if layer.expert is None:
                def before(module: nn.Module, args: tuple[Any, ...], layer: Layer = layer) -> None:
                    if args:
                        see(layer, args[0])
                stack.callback(layer.module.register_forward_pre_hook(before).remove)
        experts = [layer for layer in layers if layer.expert is not None]
        if experts:
            stack.enter_context(ExpertInputs(experts, see))
        yield


def _agree(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def _shared(new: Any, old: Any) -> Any:
    """`old` where its numbers are the same. What is no tensor (a store that blocks fill) is not shared."""
    if isinstance(new, tuple) and isinstance(old, tuple) and len(new) == len(old):
        return tuple(map(_shared, new, old))
    tensors = isinstance(new, Tensor) and isinstance(old, Tensor)
    return old if tensors and new.dtype == old.dtype and torch.equal(new, old) else new


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _rewrapper(output: Any) -> Callable[[Tensor], Any]:
    """How to return hidden states in the shape of container that the model expects of this block."""
    if isinstance(output, Tensor):
        return lambda hidden: hidden
    return lambda hidden: (hidden, *output[1:])


def _device(block: nn.Module) -> torch.device:
    return next(block.parameters()).device
