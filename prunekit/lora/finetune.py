"""Fine-tuning a pruned model with LoRA so that its zeros stay: peft, transformers' Trainer, a mask between.

    W' = W + keep ∘ (B A) · alpha / r,    keep = (W != 0)

The mask acts during training too, so what is trained is what is merged. LoRA: Hu et al., arXiv 2106.09685.
"""
from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn

from prunekit.errors import UsageError
from prunekit.evaluate.compare import loss_differences
from prunekit.evaluate.intervals import mean_of
from prunekit.files import writing_to
from prunekit.lora import layers as lora
from prunekit.lora.options import LoraOptions
from prunekit.lora.training import train
from prunekit.models import Layer, check_windows, in_eval_mode, prunable_layers, refuse_offloaded

if TYPE_CHECKING:
    import pandas as pd

    from prunekit.evaluate.perplexity import Perplexity

KEEP_FILE = "keep.safetensors"


def finetune_lora(model: nn.Module, windows: Tensor, options: LoraOptions = LoraOptions(), *,
                  masked: bool = True, checkpoints: str | Path | None = None, progress: bool = True) -> Tuned:
    """Train low-rank adapters on token windows (n, seqlen), LongTensor; they stay inside until `.merge()`.

    masked: multiply the low-rank product by the kept mask, so that no zero of a target layer can move;
    otherwise plain LoRA as in peft. checkpoints: a folder; a call that was killed goes on from its last whole
    checkpoint there, to the same adapter. Several GPUs: start the process with accelerate or torchrun.
    Dropout acts on the input of the low-rank path only, so the merged model is the expectation of the trained
    one.

    Raises UsageError on target_modules that the model does not have, on a rank above theirs, on a model that
    already carries adapters, on windows that it cannot read, on checkpoints of another fine-tuning, and on
    divergence.
    """
    layers, held = planned(model, windows, options)
    job = {"options": json.loads(json.dumps(asdict(options))), "masked": masked,
           "windows": _digest([windows]),
           "model": _digest(part for parameter in model.parameters()
                            for part in (parameter.flatten()[:2**16], (parameter != 0).sum()))}
    config = LoraConfig(r=options.rank, lora_alpha=options.alpha, lora_dropout=options.dropout,
                        target_modules=[layer.name for layer in layers], task_type="CAUSAL_LM",
                        fan_in_fan_out=layers[0].transposed)
    with in_eval_mode(model), tempfile.TemporaryDirectory() as nowhere:
        adapters = lora.attach(model, config, masked, options.seed)
        try:
            records, costs = train(adapters, windows[held:], windows[:min(held, options.eval_samples)],
                                   options, job, Path(checkpoints or nowhere), bool(checkpoints), progress)
            trained = ((name, part) for name, part in model.named_parameters() if part.requires_grad)
            if broken := next((name for name, part in trained if not part.isfinite().all()), ""):
                raise UsageError(f"the training diverged, and {broken} is no longer finite; give a lower "
                                 "learning_rate, or load the model in float32 if it is float16.")
        except BaseException:
            lora.detach(adapters, model)
            raise
    return Tuned(model, adapters, [layer.name for layer in layers], masked, records, costs, job)


def planned(model: nn.Module, windows: Tensor, options: LoraOptions) -> tuple[list[Layer], int]:
    """The layers that adapters go to, and how many windows are held back to validate on.

    Raises UsageError as `finetune_lora` does, for what is seen without a computation.
    """
    check_windows(model, windows)
    layers = lora.target_layers(model, options.target_modules)
    if options.rank > (full := max(min(layer.weight.shape) for layer in layers)):
        raise UsageError(f"rank = {options.rank} is more than that of the layers, at most {full}; give less.")
    held = round(options.validation * len(windows)) if options.eval_samples else 0
    if held >= len(windows):
        raise UsageError(f"{len(windows)} windows leave none to train on; give more.")
    return layers, held


def load_lora(model: nn.Module, folder: str | Path) -> Tuned:
    """Put saved adapters back into the pruned model they were trained on, masked if masks lie beside them.

    `merge` knows LoRA on linear layers, and without masks also DoRA, trained biases and whole modules
    (`modules_to_save`). Raises UsageError for any other kind, if the folder holds no whole adapter in
    safetensors, if that is of another model, and if the model's zeros are not those of the masks.
    """
    folder = adapter_folder(folder)
    refuse_offloaded(model)
    masked = os.path.lexists(folder / KEEP_FILE)  # a dangling link is no sign of plain LoRA
    weights = {layer.name: layer.weight for block in prunable_layers(model) for layer in block}
    masks = lora.load_keep(folder / KEEP_FILE) if masked else {}
    for name, keep in masks.items():
        if name not in weights or not torch.equal(keep, weights[name].cpu() != 0):
            raise UsageError(f"the zeros of layer {name} are not those that the adapters in {folder} were "
                             "trained with; give the pruned model that was fine-tuned.")
    adapters = lora.load_adapters(model, folder, masked)
    names = [name for name, module in model.named_modules() if isinstance(module, lora.LoraLinear)]
    if masked and masks.keys() != set(names):
        lora.detach(adapters, model)
        raise UsageError(f"the masks in {folder} are not of the layers that its adapters go to; tune again.")
    return Tuned(model, adapters, names, masked)


def adapter_folder(folder: str | Path) -> Path:
    """The folder, if adapters lie there; UsageError otherwise."""
    folder = Path(folder)
    if not (folder / lora.ADAPTER_FILE).is_file() or not (folder / lora.CONFIG_FILE).is_file():
        raise UsageError(f"folder {folder} holds no {lora.ADAPTER_FILE} with its {lora.CONFIG_FILE}; give "
                         "one that was saved by `save` or by peft (pickled adapters are never loaded).")
    return folder


@dataclass
class Tuned:
    """A model with trained adapters inside. `model` is the model itself, and computes with them.

    records: the learning curve: step, tokens, seconds, loss or eval_loss (nats per token), learning_rate.
    costs: steps, tokens, seconds, tokens_per_second, memory_mb (peak; `memory` says of what), trainable
    (parameters). zeros: after `merge`, one row per target layer.
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
        modules = [module for module in self._open().modules() if isinstance(module, lora.MaskedLinear)]
        try:
            for module in modules:
                module.masked = False
            yield self.model
        finally:
            for module in modules:
                module.masked = True

    def merge(self, masked: bool | None = None) -> nn.Module:
        """Add the adapters to the weights, take them out, and return the model; `zeros` then tells.

        The model then computes what it did with them, to rounding. masked: None: as trained. True: also when
        training was not. False: the plain merge, which fills zeros in. Raises UsageError if a sum overflows.
        """
        adapters, masked = self._open(), self.masked if masked is None else masked
        with torch.no_grad(), nullcontext() if masked else self.unmasked():
            self.zeros = [{"layer": name, **lora.merge_layer(self.model.get_submodule(name), masked)}
                          for name in self.layers]
        lora.detach(adapters, self.model)
        self.adapters = None
        for name in self.layers:
            if not self.model.get_submodule(name).weight.isfinite().all():
                raise UsageError(f"layer {name} is no longer finite with its adapter merged; load the model "
                                 "anew, in float32 if this is float16.")
        for row in self.zeros:
            if masked and (row["lost"] or row["pattern"] != row["pattern_before"]):  # cannot be: a check
                raise RuntimeError(f"the masked merge of layer {row['layer']} filled zeros in")
        return self.model

    def to_frame(self) -> pd.DataFrame:
        """One row per merged layer: weights, zeros before and after, those that were lost, the patterns."""
        import pandas as pd

        return pd.DataFrame(self.zeros)

    def save(self, folder: str | Path) -> Path:
        """Write the adapters as peft does, their masks, and prunekit.json. Raises UsageError once merged.

        All is written aside first. Without its config no folder holds adapters, so that goes first and comes
        last: at no moment do adapters lie there without their own masks, or with others'.
        """
        adapters, folder = self._open(), Path(folder)
        with writing_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as aside:
            if self.masked:
                keep = {name: self.model.get_submodule(name).kept for name in self.layers}
                lora.save_keep(keep, Path(aside, KEEP_FILE))
            record = {"job": self.job, "costs": self.costs, "records": self.records}
            Path(aside, "prunekit.json").write_text(json.dumps(record, indent=1))
            adapters.save_pretrained(aside, save_embedding_layers=False)  # they are not trained
            for old in (lora.CONFIG_FILE, KEEP_FILE):
                (folder / old).unlink(missing_ok=True)
            for file in sorted(Path(aside).iterdir(), key=lambda file: file.name == lora.CONFIG_FILE):
                os.replace(file, folder / file.name)
        return folder

    def _open(self) -> PeftModel:
        if self.adapters is None:
            raise UsageError("the adapters are merged already; call this before `merge`.")
        return self.adapters


def recovered(dense: Perplexity, pruned: Perplexity, tuned: Perplexity) -> tuple[float, float, float]:
    """The closed share of the perplexity gap, (pruned - tuned) / (pruned - dense), with its 95 % interval.

    All three on the same windows; the interval is that of the windows' first-order parts in the share (delta
    method). NaN where nothing was lost. Raises UsageError if they are not of the same windows.
    """
    for measured in (pruned, tuned):
        loss_differences(measured, dense)
    if (gap := pruned.value - dense.value) <= 0:
        return (math.nan,) * 3
    share = (pruned.value - tuned.value) / gap
    # What each window adds to a perplexity, to first order.
    d, p, t = (measured.value * (measured.nll - measured.nll.mean()) for measured in (dense, pruned, tuned))
    low, high = mean_of(share + (p - t - share * (p - d)) / gap, running=True).interval()
    return share, low, high


def mask_weights(model: nn.Module, keep: Mapping[str, Tensor]) -> None:
    """Set what is not kept to zero again, in place. keep: layer -> bool (out, in), as of `kept_weights`."""
    for block in prunable_layers(model):
        for layer in block:
            if layer.name in keep:
                layer.weight.masked_fill_(~keep[layer.name].to(layer.weight.device), 0)


# --- inside ----------------------------------------------------------------------------------------


def _digest(tensors: Any) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


# --- in a table ---------------------------------------------------------------------------------------------


def recovery(dense: Perplexity, pruned: Perplexity, tuned: Perplexity) -> dict[str, float]:
    """`recovered` as columns of a result, all intervals of 95 %: tuned, tuned_low, tuned_high (perplexity
    after fine-tuning), recovered, recovered_low, recovered_high (NaN where nothing was lost).
    """
    names = ("tuned", "tuned_low", "tuned_high", "recovered", "recovered_low", "recovered_high")
    return dict(zip(names, (tuned.value, *tuned.interval, *recovered(dense, pruned, tuned)), strict=True))
