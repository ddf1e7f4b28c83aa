"""LoRA layers with a mask: the product they compute, their masks on disk, how they go in, and merge."""
from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from prunekit.errors import UsageError, did_you_mean
from prunekit.models import Layer, prunable_layers

CONFIG_FILE, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
# Apart, or fused as the family does.
_QUERY_VALUE = (("q_proj", "v_proj"), ("qkv_proj",), ("query_key_value",), ("c_attn",))


# --- the masked product ----------------------------------------------------------------------------


def masked_delta(W: Tensor, A: Tensor, B: Tensor, scale: float, transposed: bool = False) -> Tensor:
    """keep ∘ (B A) · scale, laid out as W, at least float32. A: (r, in), B: (out, r), W: (out, in)."""
    wide = torch.promote_types(A.dtype, torch.float32)
    delta = (B.to(wide) @ A.to(wide)) * scale
    return _masked(delta.T if transposed else delta, W)


def _masked(matrix: Tensor, W: Tensor) -> Tensor:
    return matrix.mul_((W != 0).to(matrix.dtype))  # several times as fast as masked_fill_


class _MaskedProduct(torch.autograd.Function):
    """x (…, in) -> x (W + keep ∘ (B A) s)^T + bias, or without `whole` x (keep ∘ (B A) s)^T.

    Backward makes the matrix anew, so that memory holds no second copy of the weights between the passes.
    W + … is rounded to W's dtype as by a merge.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, B: Tensor, W: Tensor, bias: Tensor | None, scale: float,
                transposed: bool, whole: bool) -> Tensor:
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


def _matrix(x: Tensor, A: Tensor, B: Tensor, W: Tensor, scale: float, transposed: bool,
            whole: bool) -> Tensor:
    delta = masked_delta(W, A, B, scale, transposed)
    made = ((W + delta).to(W.dtype) if whole else delta).to(x.dtype)
    return made.T if transposed else made


class MaskedLinear(LoraLinear):
    """peft's LoRA layer with the low-rank product multiplied by the kept mask of its weight."""

    masked = True

    def __init__(self, base_layer: nn.Module, *args: Any, **kwargs: Any):
        super().__init__(base_layer, *args, **kwargs)
        self.fan_in_fan_out = isinstance(base_layer, Conv1D)  # whatever the config says, as in peft

    @property
    def kept(self) -> Tensor:
        weight = self.get_base_layer().weight
        return (weight.T if self.fan_in_fan_out else weight) != 0

    def get_delta_weight(self, adapter: str) -> Tensor:
        if not self.masked:
            return super().get_delta_weight(adapter)
        A, B = self.lora_A[adapter].weight, self.lora_B[adapter].weight
        return masked_delta(self.get_base_layer().weight, A, B, self.scaling[adapter], self.fan_in_fan_out)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.masked or self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        base, (name,) = self.get_base_layer(), self.active_adapters
        dropping = self.training and isinstance(self.lora_dropout[name], nn.Dropout)
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else base.weight.dtype
        bias = None if dropping else getattr(base, "bias", None)
        read = (self.lora_dropout[name](x) if dropping else x).to(dtype)
        A, B = self.lora_A[name].weight, self.lora_B[name].weight
        product = _MaskedProduct.apply(read, A, B, base.weight, bias, self.scaling[name], self.fan_in_fan_out,
                                       not dropping)
        return product + base(x).to(dtype) if dropping else product


# --- masks on disk ---------------------------------------------------------------------------------


def save_keep(keep: dict[str, Tensor], file: Path) -> None:
    """Write kept masks, bool (out, in), as bits: uint8 (out, ceil(in / 8)), highest first; widths beside."""
    packed = {name: torch.from_numpy(np.packbits(mask.cpu().contiguous().numpy(), axis=1))
              for name, mask in keep.items()}
    save_file(packed, file, metadata={name: str(mask.shape[1]) for name, mask in keep.items()})


def load_keep(file: str | Path) -> dict[str, Tensor]:
    """Layer name -> kept mask, bool (out, in), as `save_keep` wrote them. Raises UsageError if it did not."""
    try:
        with safe_open(file, "pt") as opened:
            widths = opened.metadata() or {}
        return {name: torch.from_numpy(np.unpackbits(bits.numpy(), axis=1, count=int(widths[name]))).bool()
                for name, bits in load_file(file).items()}
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise UsageError(f"{file} holds no masks, or broken ones; fine-tune again.") from error


# --- adapters in and out of a model ----------------------------------------------------------------


def target_layers(model: nn.Module, target_modules: tuple[str, ...]) -> list[Layer]:
    """The linear layers that adapters go to: by name (`q_proj`, `self_attn.q_proj`) or LoraOptions' words.

    Experts stored as one three-dimensional parameter take none. Raises UsageError naming what is not there.
    """
    layers = [layer for block in prunable_layers(model) for layer in block if layer.expert is None]
    names = {name for layer in layers for name in (layer.kind, layer.kind.rpartition(".")[2])}
    wanted: set[str] = set()
    for target in target_modules:
        if target == "query-value":
            found = next((group for group in _QUERY_VALUE if names.issuperset(group)), None)
            if found is None:
                raise UsageError(f"{type(model).__name__} has no query and value projections under a known "
                                 f"name; give target_modules by name, from {', '.join(sorted(names))}.")
            wanted.update(found)
        elif target != "all-linear" and target not in names:
            raise UsageError(f"target '{target}' is no linear layer of {type(model).__name__}"
                             f"{did_you_mean(target, ['all-linear', 'query-value', *sorted(names)])}.")
        else:
            wanted.update(names if target == "all-linear" else [target])
    return [layer for layer in layers if {layer.kind, layer.kind.rpartition(".")[2]} & wanted]


def with_masks(config: LoraConfig, masked: bool) -> LoraConfig:
    if masked:
        config._register_custom_module({nn.Linear: MaskedLinear, Conv1D: MaskedLinear})
    return config


def attach(model: nn.Module, config: LoraConfig, masked: bool, seed: int) -> PeftModel:
    """Put new adapters into the model. Raises UsageError where a merge would change another module."""
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with torch.random.fork_rng(), quiet_peft():
        torch.manual_seed(seed)
        adapters = get_peft_model(model, with_masks(config, masked))
    adapters.trained_before = trained
    places = list(model.named_parameters(remove_duplicate=False))
    uses = Counter(id(parameter) for _, parameter in places)
    for name, parameter in places:
        plain = re.sub(r"\.(base_layer|original_module)\b", "", name)
        if uses[id(parameter)] > 1 and plain != name:
            detach(adapters, model)
            raise UsageError(f"{plain} is shared with another module, which a merge would change with it; "
                             "leave it out of the adapters' target_modules.")
    return adapters


_KNOWN = frozenset((
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out",
    "init_lora_weights", "eva_config", "megatron_core", "qalora_group_size"))  # the last two alone do nothing
_KNOWN_UNMASKED = _KNOWN | {"bias", "modules_to_save", "use_dora"}
_ONE_OF = {"peft_type": ("LORA",), "bias": ("none", "all", "lora_only"),
           "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva")}  # others change base weights


def load_adapters(model: nn.Module, folder: Path, masked: bool) -> PeftModel:
    """Put saved adapters into the model, frozen. Raises UsageError unless they fit and can be merged."""
    known = _KNOWN if masked else _KNOWN_UNMASKED
    try:
        written = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        odd = [key for key, value in written.items()
               if (key not in known and value not in (None, False, "none", "", [], {}))
               or (key in _ONE_OF and value not in _ONE_OF[key])]
        if odd:
            value, how = json.dumps(written[odd[0]]), "through masks" if masked else "here"
            raise UsageError(f"the adapters in {folder} have {odd[0]} = {value}, which cannot be merged "
                             f"{how}; merge them with peft, or train plain LoRA.")
        plain = {key: value for key, value in written.items() if key in known}
        config = LoraConfig(**plain | {"init_lora_weights": True})
        state = load_file(folder / ADAPTER_FILE)
        adapters = attach(model, config, masked, seed=0)
    except UsageError:
        raise
    except Exception as error:  # whatever peft makes of a broken file
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise UsageError(f"the adapters in {folder} cannot be put into this model: {reason}") from error
    try:
        _fill(adapters, state, folder)
    except BaseException:
        detach(adapters, model)
        raise
    return adapters.requires_grad_(False).eval()


def _fill(adapters: PeftModel, state: dict[str, Tensor], folder: Path) -> None:
    """Every adapter from the file, all of the file into adapters. Else UsageError, before any is filled."""
    def refuse(what: str, key: str) -> None:
        raise UsageError(f"the adapters in {folder} {what.format(key.removeprefix('base_model.model.'))}.")

    for name, module in adapters.named_modules():
        if isinstance(module, BaseTunerLayer) and not isinstance(module, LoraLinear):
            refuse("go to {}, which is no linear layer: merge with peft, or train without it", name)
    needed, own = (get_peft_model_state_dict(adapters, save_embedding_layers=more) for more in (False, True))
    for key in sorted(needed.keys() - state.keys()):
        refuse("are of another model, or broken: {} is not in the file", key)
    for key in sorted(state.keys() - own.keys()):
        refuse("are of another model: it has no place for {}", key)
    for key, tensor in state.items():
        if tensor.shape != own[key].shape:
            there, here = tuple(tensor.shape), tuple(own[key].shape)
            refuse(f"are of another model: {{}} is {there} in the file and {here} here", key)
        if not (tensor.is_floating_point() and tensor.float().isfinite().all()):
            refuse("are broken: {} holds values that are no finite numbers", key)
    if left := set_peft_model_state_dict(adapters, state).unexpected_keys:
        refuse("are of another model: it has no place for {}", left[0])


@contextmanager
def quiet_peft() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks by names that transformers has deprecated
        yield


def detach(adapters: PeftModel, model: nn.Module) -> None:
    """Take the adapters out; what required a gradient before they came does so again."""
    adapters.unload()
    for parameter, flag in adapters.trained_before:
        parameter.requires_grad_(flag)


def merge_layer(module: LoraLinear, masked: bool) -> dict[str, Any]:
    """Merge one layer as peft does, but if masked leave each bit of its zeros: what became of these."""
    before, pattern = module.get_base_layer().weight.detach().clone(), _pattern(module)
    module.merge()
    weight, zero = module.get_base_layer().weight.data, before == 0
    if masked:
        torch.where(zero, before, weight, out=weight)
    return {"numel": weight.numel(), "zeros_before": int(zero.sum()), "zeros": int((weight == 0).sum()),
            "lost": int((zero & (weight != 0)).sum()), "pattern_before": pattern, "pattern": _pattern(module)}


def _pattern(module: LoraLinear) -> str:
    """The N:M pattern that the weight has: 2:4, else 4:8, else none ("")."""
    weight = module.get_base_layer().weight
    zero = (weight.T if module.fan_in_fan_out else weight) == 0
    return next((f"{n}:{m}" for n, m in ((2, 4), (4, 8)) if zero.shape[1] % m == 0
                 and bool((zero.reshape(-1, m).sum(1) >= n).all())), "")
