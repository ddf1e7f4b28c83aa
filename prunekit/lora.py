"""Fine-tuning a pruned model with LoRA so that its zeros stay: peft's adapters, transformers' Trainer, a mask between.

    W' = W + keep ∘ (B A) · alpha / r,    keep = (W != 0)

The mask acts during training too, so what is trained is what is merged. LoRA: Hu et al., arXiv 2106.09685.
"""
from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from prunekit.evaluate.intervals import mean_of

from .errors import UsageError
from .lora_layers import (
    MaskedLinear,
    attach,
    detach,
    load_keep,
    merge_layer,
    quiet_peft,
    refuse_adapters,
    save_keep,
    target_layers,
    with_masks,
)
from .lora_training import train
from .models import Layer, prunable_layers

if TYPE_CHECKING:
    import pandas as pd

    from .evaluate.perplexity import Perplexity

KEEP_FILE, ADAPTER_FILE = "keep.safetensors", "adapter_model.safetensors"


@dataclass(frozen=True)
class LoraOptions:
    """Of the adapters and their training; defaults as in the published finetune_lm.py."""

    rank: int = 8
    alpha: float = 16.0  # the product is scaled by alpha / rank
    dropout: float = 0.05  # on the input of the low-rank path only, as in peft
    targets: tuple[str, ...] = ("query-value",)  # names of linear layers, or "query-value", or "all-linear"
    learning_rate: float = 1e-4  # at the first step, then linearly to 0
    epochs: float = 1.0
    batch: int = 1  # windows per step and device
    eval_batch: int = 8
    eval_samples: int = 128  # windows of the validation split that are read, at most
    validation: float = 0.05  # share of the windows, the first ones, held out for the learning curve
    bf16: bool = False  # train a float32 model in bfloat16 (autocast); a model in bfloat16 or float16 stays in its own
    gradient_checkpointing: bool = False
    save_every: int = 200  # steps between checkpoints, if a folder for them is given
    seed: int = 0  # of the adapters' start, the order of the windows, and dropout

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        for name, least in {"rank": 1, "batch": 1, "eval_batch": 1, "eval_samples": 0, "save_every": 1}.items():
            if getattr(self, name) < least:
                raise UsageError(f"{name} = {getattr(self, name)} must be at least {least}.")
        for name in ("alpha", "learning_rate", "epochs"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} = {getattr(self, name)} must be greater than 0.")
        for name in ("dropout", "validation"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} = {getattr(self, name)} must be a share, at least 0 and below 1.")


def finetune_lora(model: nn.Module, windows: Tensor, options: LoraOptions = LoraOptions(), *, masked: bool = True,
                  checkpoints: str | Path | None = None, progress: bool = True) -> Tuned:
    """Train low-rank adapters on token windows (n, seqlen), LongTensor; they stay inside the model until `.merge()`.

    masked: multiply the low-rank product by the kept mask, so that no zero of a target layer can move; otherwise plain
    LoRA as in peft. checkpoints: a folder; a call that was killed goes on from its last whole checkpoint there, to the
    same adapter. Several GPUs: start the process with accelerate or torchrun. Dropout acts on the input of the
    low-rank path only, so the merged model is the expectation of the trained one.

    Raises UsageError on targets that the model does not have, on a model that already carries adapters, on windows of
    another shape, and on checkpoints of another fine-tuning.
    """
    layers = target_layers(model, options.targets)
    held = _held_out(windows, options)
    job = {"options": json.loads(json.dumps(asdict(options))), "masked": masked, "windows": _digest([windows]),
           "model": _digest(part for layer in layers for part in (layer.weight.flatten()[:2**16], (layer.weight != 0).sum()))}
    adapters = attach(model, _config(layers, options), masked, options.seed)
    try:
        with tempfile.TemporaryDirectory() as nowhere:
            records, costs = train(adapters, windows[held:], windows[:min(held, options.eval_samples)], options, job,
                                   Path(checkpoints or nowhere), bool(checkpoints), progress)
    except BaseException:
        detach(adapters, model)
        raise
    return Tuned(model, adapters, [layer.name for layer in layers], masked, records, costs, job)


def load_lora(model: nn.Module, folder: str | Path) -> Tuned:
    """Put saved adapters back into the pruned model that they were trained on, masked if masks lie beside them.

    Raises UsageError if the folder holds no adapter in safetensors, or if the model's zeros are not those of the masks.
    """
    folder = Path(folder)
    if not (folder / ADAPTER_FILE).is_file() or not (folder / "adapter_config.json").is_file():
        raise UsageError(f"folder {folder} holds no {ADAPTER_FILE} with its adapter_config.json; give one that was saved "
                         "by `save` or by peft (pickled adapters are never loaded).")
    refuse_adapters(model)
    masked = (folder / KEEP_FILE).is_file()
    weights = {layer.name: layer.weight for block in prunable_layers(model) for layer in block}
    for name, keep in load_keep(folder / KEEP_FILE).items() if masked else ():
        if name not in weights or not torch.equal(keep, weights[name].cpu() != 0):
            raise UsageError(f"the zeros of layer {name} are not those that the adapters in {folder} were trained with; give "
                             "the pruned model that was fine-tuned.")
    config = with_masks(LoraConfig.from_pretrained(str(folder)), masked)
    with quiet_peft():
        adapters = PeftModel.from_pretrained(model, str(folder), config=config).eval()
    names = [name.removeprefix("base_model.model.") for name, module in adapters.named_modules()
             if isinstance(module, LoraLinear)]
    return Tuned(model, adapters, names, masked)


@dataclass
class Tuned:
    """A model with trained adapters inside. `model` is the model itself, and computes with them.

    records: the learning curve: step, tokens, seconds, loss or eval_loss (nats per token), learning_rate. costs:
    steps, tokens, seconds, tokens_per_second, memory_mb (peak; `memory` says of what), trainable (parameters).
    zeros: after `merge`, one row per target layer.
    """

    model: nn.Module
    adapters: PeftModel | None
    layers: list[str]
    masked: bool
    records: list[dict[str, Any]] = field(default_factory=list)
    costs: dict[str, Any] = field(default_factory=dict)
    job: dict[str, Any] = field(default_factory=dict)
    zeros: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def unmasked(self) -> Iterator[nn.Module]:
        """Inside, the model computes W x + B A x · alpha / r: what peft alone makes of the saved adapters."""
        modules = [module for module in self._open().modules() if isinstance(module, MaskedLinear)]
        try:
            for module in modules:
                module.masked = False
            yield self.model
        finally:
            for module in modules:
                module.masked = True

    def merge(self, masked: bool | None = None) -> nn.Module:
        """Add the adapters to the weights, take them out, and return the model; `zeros` then says what became of those.

        masked: None: as trained. True: masked also when training was not. False: the plain merge, which fills zeros in.
        """
        adapters, masked = self._open(), self.masked if masked is None else masked
        with torch.no_grad():
            self.zeros = [{"layer": name, **merge_layer(self.model.get_submodule(name), masked)} for name in self.layers]
        detach(adapters, self.model)
        self.adapters = None
        broken = [row["layer"] for row in self.zeros if masked and (row["lost"] or row["pattern"] != row["pattern_before"])]
        if broken:
            raise RuntimeError(f"the masked merge of layer {broken[0]} filled zeros in")  # cannot be, so it is checked
        return self.model

    def to_frame(self) -> pd.DataFrame:
        """One row per merged layer: weights, zeros before and after, how many were lost, and the N:M pattern that holds."""
        import pandas as pd

        return pd.DataFrame(self.zeros)

    def save(self, folder: str | Path) -> Path:
        """Write the adapters as peft does, the kept masks beside them, and prunekit.json. Raises UsageError once merged."""
        folder = Path(folder)
        self._open().save_pretrained(str(folder))
        if self.masked:
            keep = {name: self.model.get_submodule(name).kept for name in self.layers}
            save_keep(keep, folder / KEEP_FILE)
        (folder / "prunekit.json").write_text(json.dumps({"job": self.job, "costs": self.costs, "records": self.records}, indent=1))
        return folder

    def _open(self) -> PeftModel:
        if self.adapters is None:
            raise UsageError("the adapters are merged already; call this before `merge`.")
        return self.adapters


def recovered(dense: Perplexity, pruned: Perplexity, tuned: Perplexity) -> tuple[float, float, float]:
    """The share of the perplexity gap that fine-tuning closes, (pruned - tuned) / (pruned - dense), and its 95 % interval.

    All three on the same windows; the interval is that of the windows' first-order parts in the share (delta
    method). Raises UsageError if they are not.
    """
    if len({len(found.nll) for found in (dense, pruned, tuned)}) > 1:
        raise UsageError("the three perplexities are not over the same windows; evaluate all on the same.")
    gap = pruned.value - dense.value
    share = (pruned.value - tuned.value) / gap
    # What each window adds to a perplexity, to first order.
    d, p, t = (found.value * (found.nll - found.nll.mean()) for found in (dense, pruned, tuned))
    low, high = mean_of(share + (p - t - share * (p - d)) / gap, running=True).interval()
    return share, low, high


def mask_weights(model: nn.Module, keep: Mapping[str, Tensor]) -> None:
    """Set what is not kept to zero again, in place: keep as of `kept_weights`, layer name -> bool (out, in)."""
    for block in prunable_layers(model):
        for layer in block:
            if layer.name in keep:
                layer.weight.masked_fill_(~keep[layer.name].to(layer.weight.device), 0)


# --- inside ---------------------------------------------------------------------------------------------------------------


def _config(layers: list[Layer], options: LoraOptions) -> LoraConfig:
    return LoraConfig(r=options.rank, lora_alpha=options.alpha, lora_dropout=options.dropout, task_type="CAUSAL_LM",
                      target_modules=[layer.name for layer in layers], fan_in_fan_out=layers[0].transposed)


def _held_out(windows: Tensor, options: LoraOptions) -> int:
    """How many of the windows are for validation. Raises UsageError if none would be left to train on."""
    if windows.ndim != 2:
        raise UsageError(f"windows of shape {tuple(windows.shape)} are no token windows (n, seqlen).")
    held = round(options.validation * len(windows)) if options.eval_samples else 0
    if held >= len(windows):
        raise UsageError(f"{len(windows)} windows leave none to train on; give more.")
    return held


def _digest(tensors: Any) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
