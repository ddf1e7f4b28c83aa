"""A model without its weights, and its weights where and when they are needed."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import UsageError, did_you_mean
from prunekit.models import DTYPES, decoder_blocks, load_config, refuse_unfilled
from prunekit.pruning.walk import Resident, Stop
from prunekit.streaming.checkpoint import Checkpoint, Entry, Stored


@dataclass
class _Origin:
    """Where one of the model's tensors comes from: tensors of the checkpoint, as they are or converted by
    transformers (a mixture's experts, say, are stored one by one and held in one parameter)."""

    sources: list[tuple[str, str]]  # (the converter's pattern, the checkpoint's name)
    converter: Any = None


class Skeleton:
    """A model on the meta device, and which tensors of a checkpoint belong where in it.

    source: a local Hugging Face directory. dtype: `auto` (the checkpoint's own) or a name. Buffers that no
    checkpoint holds (rotary frequencies) are real. Raises UsageError where `load_model` does.
    """

    def __init__(self, source: Path, dtype: str = "auto"):
        if dtype != "auto" and dtype not in DTYPES:
            raise UsageError(f"dtype '{dtype}' is not known{did_you_mean(dtype, ['auto', *DTYPES])}.")
        config = load_config(source)
        self.checkpoint = Checkpoint(source)
        stored = (tensor.dtype for tensor in self.checkpoint.values() if tensor.dtype.is_floating_point)
        self.dtype = DTYPES.get(dtype) or getattr(config, "dtype", None) or next(stored)
        self.model = build(config, source, self.dtype)
        self.path, blocks = decoder_blocks(self.model)
        self.tensors = self.model.state_dict(keep_vars=True)  # as they are without weights
        self.origins, unexpected = _origins(self.model, self.checkpoint, self.tensors)
        self._check(unexpected)
        self.blocks = [[name for name in self.origins if name.startswith(f"{self.path}.{index}.")]
                       for index in range(len(blocks))]
        self.outside = [name for name in self.origins if not name.startswith(f"{self.path}.")]
        exact = self.model._keep_in_fp32_modules_strict if self.dtype.itemsize < 4 else ()
        exact_too = self.model._keep_in_fp32_modules if self.dtype == torch.float16 else ()
        self._exact = {*(exact or ()), *(exact_too or ())}

    def dtype_of(self, name: str) -> torch.dtype:
        return torch.float32 if self._exact & set(name.split(".")) else self.tensors[name].dtype

    def stored_name(self, name: str) -> str:
        """What a tensor is called in a checkpoint: as it was there, or if it was converted, as here."""
        origin = self.origins[name]
        return name if origin.converter else origin.sources[0][1]

    def read(self, name: str) -> Tensor:
        """One of the model's tensors, from the checkpoint."""
        dtype = self.dtype_of(name)
        return self._made(name, lambda stored: stored.read(dtype))

    def _made(self, name: str, read: Callable[[Stored], Tensor]) -> Tensor:
        origin = self.origins[name]
        if not origin.converter:
            return read(self.checkpoint[origin.sources[0][1]])
        converter = deepcopy(origin.converter)
        for pattern, source in origin.sources:
            converter.add_tensor(name, source, pattern, read(self.checkpoint[source]))
        result = converter.convert(name, model=self.model, config=self.model.config)[name]
        return result[0] if isinstance(result, list) else result

    def entry(self, name: str) -> Entry:
        return Entry(self.dtype_of(name), tuple(self.tensors[name].shape), partial(self.read, name))

    def size(self, names: Iterable[str]) -> int:
        """Bytes of tensors of the model."""
        return sum(self.dtype_of(name).itemsize * self.tensors[name].numel() for name in names)

    def put(self, name: str, tensor: Tensor) -> None:
        """Put a tensor into its place in the model."""
        path, _, key = name.rpartition(".")
        module = self.model.get_submodule(path)
        if key in module._parameters:
            is_parameter = isinstance(tensor, nn.Parameter)
            module._parameters[key] = tensor if is_parameter else nn.Parameter(tensor, requires_grad=False)
        else:
            module._buffers[key] = tensor

    def _check(self, unexpected: set[str]) -> None:
        from transformers.utils.loading_report import LoadStateDictInfo

        tensors = self.tensors
        held = {id(tensors[name]) for name in self.origins}  # of tied parameters one is enough
        missing = {name for name, tensor in tensors.items() if id(tensor) not in held}
        try:
            shapes = {name: self._made(name, lambda stored: torch.empty(stored.shape, device="meta")).shape
                      for name in self.origins}
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"model '{self.checkpoint.path}' does not belong to its config.json: its tensors"
                             f" cannot be put together ({str(error).splitlines()[0][:200]}).") from error
        other = {(name, shape, tensors[name].shape) for name, shape in shapes.items()
                 if shape != tensors[name].shape}
        found = LoadStateDictInfo(missing, unexpected, other, [], {}, set())
        self.model._adjust_missing_and_unexpected_keys(found)  # what transformers knows of the family
        refuse_unfilled(self.checkpoint.path, self.model, found.to_dict())


class Streamed(Resident):
    """Blocks are read when the walk comes to them and dropped after, embeddings when the first block comes.

    pruned: the file that holds block `index` once it is pruned, or None. It is read in place of the
    checkpoint's.
    """

    def __init__(self, skeleton: Skeleton, pruned: Any):
        self.skeleton, self.pruned = skeleton, pruned
        self.probed = False
        self.lent: list[str] = []
        self.modules = {module: path for path, module in skeleton.model.named_modules()}
        for module, path in self.modules.items():
            outside = not f"{path}.".startswith(f"{skeleton.path}.")
            if outside and any(parameter.is_meta for parameter in module.parameters(recurse=False)):
                module.register_forward_pre_hook(self._lend)

    def entrance(self, model: nn.Module) -> torch.device:
        return torch.device("cpu")

    @contextmanager
    def block(self, index: int) -> Iterator[None]:
        if self.probed:
            self._empty(self.lent)
        done = self.pruned(index)
        stored = Checkpoint(done) if done else None
        names = self.skeleton.blocks[index]
        for name in names:
            pruned = stored and stored[self.skeleton.stored_name(name)].read()
            self.skeleton.put(name, pruned if stored else self.skeleton.read(name))
        yield
        self._empty(names)
        self.probed = self.probed or index == len(self.skeleton.blocks) - 1

    def tensors(self, index: int) -> dict[str, Entry]:
        """A block's tensors as they are now, under the checkpoint's names."""
        now = self.skeleton.model.state_dict()
        return {self.skeleton.stored_name(name): Entry(now[name].dtype, tuple(now[name].shape),
                                                       now[name].detach)
                for name in self.skeleton.blocks[index]}

    def _lend(self, module: nn.Module, args: Any) -> None:
        """Give a module outside the blocks its weights before it is called; after the blocks, stop."""
        empty = [key for key, parameter in module.named_parameters(recurse=False) if parameter.is_meta]
        if empty and self.probed:
            raise Stop
        for key in empty:
            name, tensors = f"{self.modules[module]}.{key}", self.skeleton.tensors
            held = next(other for other in self.skeleton.outside if tensors[other] is tensors[name])
            self.skeleton.put(name, self.skeleton.read(held))
            self.lent.append(name)

    def _empty(self, names: Iterable[str]) -> None:
        for name in names:
            self.skeleton.put(name, self.skeleton.tensors[name])


def build(config: Any, source: Path, dtype: torch.dtype) -> nn.Module:
    """A model on the meta device, in eval mode. Raises UsageError if its configuration makes none."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    try:
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        model.tie_weights()
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"model '{source}' cannot be built from its config.json: "
                         f"{str(error).splitlines()[0][:200]}") from error
    return model.eval()


def _origins(model: nn.Module, checkpoint: Checkpoint, tensors: dict[str, Tensor]
             ) -> tuple[dict[str, _Origin], set[str]]:
    """By the model's names: where its tensors come from, by the rules that transformers loads this family
    with; and what the checkpoint holds besides."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    found: dict[str, _Origin] = {}
    unexpected: set[str] = set()
    for source in sorted(checkpoint, key=dot_natural_key):
        name, pattern = rename_source_key(source, renamings, converters, model.base_model_prefix, tensors)
        if name not in tensors and source in tensors:
            name, pattern = source, None
        if name in tensors:
            converter = by_pattern[pattern] if pattern else None
            if converter and len(converter.target_patterns) > 1:
                raise UsageError(f"tensor {source} of checkpoint {checkpoint.path} is split on loading, "
                                 "which cannot be streamed; load_model and save_pretrained it once with "
                                 "save_original_format=False.")
            found.setdefault(name, _Origin([], converter)).sources.append((pattern or source, source))
        else:
            unexpected.add(name)
    return {name: found[name] for name in tensors if name in found}, unexpected
