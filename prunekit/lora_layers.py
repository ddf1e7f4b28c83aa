"""LoRA layers with a mask: which layers they go to, the product they compute, how they merge, their masks on disk."""
from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners import lora
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .errors import UsageError, did_you_mean
from .models import Layer, prunable_layers

_QUERY_VALUE = (("q_proj", "v_proj"), ("qkv_proj",), ("query_key_value",), ("c_attn",))  # apart, or fused as the family does


# --- the masked product --------------------------------------------------------------------------------------------------


def masked_delta(W: Tensor, A: Tensor, B: Tensor, scale: float, transposed: bool = False) -> Tensor:
    """keep ∘ (B A) · scale, in W's orientation and at least float32. A: (r, in), B: (out, r), W: (out, in)."""
    wide = torch.promote_types(A.dtype, torch.float32)
    delta = (B.to(wide) @ A.to(wide)) * scale
    return _masked(delta.T if transposed else delta, W)


def _masked(matrix: Tensor, W: Tensor) -> Tensor:
    return matrix.mul_((W != 0).to(matrix.dtype))  # several times as fast as masked_fill_


class _MaskedProduct(torch.autograd.Function):
    """x (…, in) -> x (W + keep ∘ (B A) s)^T + bias, or without `whole` x (keep ∘ (B A) s)^T; backward makes the matrix anew.

    So memory holds no second copy of the weights between the passes. W + … is rounded to W's dtype as by a merge.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, B: Tensor, W: Tensor, bias: Tensor | None, scale: float, transposed: bool,
                whole: bool) -> Tensor:
        ctx.save_for_backward(x, A, B, W)
        ctx.how = (scale, transposed, whole)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, _matrix(x, A, B, W, *ctx.how), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, A, B, W = ctx.saved_tensors
        scale, transposed, _ = ctx.how
        with torch.autocast(x.device.type, enabled=False):
            dx = g @ _matrix(x, A, B, W, *ctx.how) if ctx.needs_input_grad[0] else None
            D = (g.flatten(0, -2).T @ x.flatten(0, -2)).to(torch.promote_types(A.dtype, torch.float32))
            D = _masked(D, W.T if transposed else W)
            dA, dB = B.to(D.dtype).T @ D, D @ A.to(D.dtype).T
            return dx, (dA * scale).to(A.dtype), (dB * scale).to(B.dtype), *[None] * 5


def _matrix(x: Tensor, A: Tensor, B: Tensor, W: Tensor, scale: float, transposed: bool, whole: bool) -> Tensor:
    delta = masked_delta(W, A, B, scale, transposed)
    made = ((W + delta).to(W.dtype) if whole else delta).to(x.dtype)
    return made.T if transposed else made


class MaskedLinear(lora.Linear):
    """peft's LoRA layer with the low-rank product multiplied by the kept mask of the weight it is added to."""

    masked = True

    @property
    def kept(self) -> Tensor:
        weight = self.get_base_layer().weight
        return (weight.T if self.fan_in_fan_out else weight) != 0

    def get_delta_weight(self, adapter: str) -> Tensor:
        if not self.masked:
            return super().get_delta_weight(adapter)
        return masked_delta(self.get_base_layer().weight, self.lora_A[adapter].weight, self.lora_B[adapter].weight,
                            self.scaling[adapter], self.fan_in_fan_out)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.masked or self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        base, (name,) = self.get_base_layer(), self.active_adapters
        dropping = self.training and isinstance(self.lora_dropout[name], nn.Dropout)
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else base.weight.dtype
        bias = None if dropping else getattr(base, "bias", None)
        product = _MaskedProduct.apply((self.lora_dropout[name](x) if dropping else x).to(dtype), self.lora_A[name].weight,
                                       self.lora_B[name].weight, base.weight, bias, self.scaling[name], self.fan_in_fan_out,
                                       not dropping)
        return product + base(x).to(dtype) if dropping else product


# --- masks on disk --------------------------------------------------------------------------------------------------------


def save_keep(keep: dict[str, Tensor], file: Path) -> None:
    """Write kept masks, bool (out, in), as packed bits: uint8 (out, ceil(in / 8)), highest bit first; widths as metadata."""
    packed = {name: torch.from_numpy(np.packbits(mask.cpu().numpy(), axis=1)) for name, mask in keep.items()}
    save_file(packed, file, metadata={name: str(mask.shape[1]) for name, mask in keep.items()})


def load_keep(file: str | Path) -> dict[str, Tensor]:
    """Layer name -> kept mask, bool (out, in), as `save_keep` wrote them."""
    with safe_open(file, "pt") as opened:
        widths = opened.metadata() or {}
    return {name: torch.from_numpy(np.unpackbits(bits.numpy(), axis=1, count=int(widths[name]))).bool()
            for name, bits in load_file(file).items()}


# --- adapters in and out of a model --------------------------------------------------------------------------------------


def target_layers(model: nn.Module, targets: tuple[str, ...]) -> list[Layer]:
    """The linear layers that adapters go to, by name (`q_proj`, or `self_attn.q_proj`) or by the words of LoraOptions.

    Experts stored as one three-dimensional parameter take no adapters. Raises UsageError naming what is not there.
    """
    refuse_adapters(model)
    layers = [layer for block in prunable_layers(model) for layer in block if layer.expert is None]
    names = {name for layer in layers for name in (layer.kind, layer.kind.rpartition(".")[2])}
    wanted: set[str] = set()
    for target in targets:
        if target == "query-value":
            found = next((group for group in _QUERY_VALUE if names.issuperset(group)), None)
            if found is None:
                raise UsageError(f"{type(model).__name__} has no query and value projections under a known name; give targets "
                                 f"by name, from {', '.join(sorted(names))}.")
            wanted.update(found)
        elif target != "all-linear" and target not in names:
            raise UsageError(f"target '{target}' is no linear layer of {type(model).__name__}"
                             f"{did_you_mean(target, ['all-linear', 'query-value', *sorted(names)])}.")
        else:
            wanted.update(names if target == "all-linear" else [target])
    return [layer for layer in layers if {layer.kind, layer.kind.rpartition(".")[2]} & wanted]


def refuse_adapters(model: nn.Module) -> None:
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise UsageError("the model already carries adapters; merge them first, or load the model anew.")


def with_masks(config: LoraConfig, masked: bool) -> LoraConfig:
    if masked:
        config._register_custom_module({nn.Linear: MaskedLinear, Conv1D: MaskedLinear})
    return config


def attach(model: nn.Module, config: LoraConfig, masked: bool, seed: int) -> PeftModel:
    with torch.random.fork_rng(), quiet_peft():
        torch.manual_seed(seed)
        return get_peft_model(model, with_masks(config, masked))


@contextmanager
def quiet_peft() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks by names that transformers has deprecated
        yield


def detach(adapters: PeftModel, model: nn.Module) -> None:
    adapters.unload()
    model.requires_grad_(True).eval()


def merge_layer(module: lora.Linear, masked: bool) -> dict[str, Any]:
    """Merge one layer: what became of its zeros."""
    weight, (name,) = module.get_base_layer().weight, module.active_adapters
    A, B = module.lora_A[name].weight, module.lora_B[name].weight
    zero, pattern = weight == 0, _pattern(module)
    if masked:  # -0.0 is the one number that changes no bit of a zero that it is added to
        delta = masked_delta(weight, A, B, module.scaling[name], module.fan_in_fan_out).masked_fill_(zero, -0.0)
    else:
        delta = lora.Linear.get_delta_weight(module, name)
    weight.data += delta
    return {"numel": weight.numel(), "zeros_before": int(zero.sum()), "zeros": int((weight == 0).sum()),
            "lost": int((zero & (weight != 0)).sum()), "pattern_before": pattern, "pattern": _pattern(module)}


def _pattern(module: lora.Linear) -> str:
    """The N:M pattern that the weight has: 2:4, else 4:8, else none ("")."""
    weight = module.get_base_layer().weight
    zero = (weight.T if module.fan_in_fan_out else weight) == 0
    return next((f"{n}:{m}" for n, m in ((2, 4), (4, 8)) if zero.shape[1] % m == 0
                 and bool((zero.reshape(-1, m).sum(1) >= n).all())), "")
