"""The training loop behind `finetune_lora`: transformers' Trainer, and checkpoints to go on from."""
from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from prunekit.errors import UsageError
from prunekit.evaluate.harness import generators_kept
from prunekit.files import file_hash, read_json, write_atomic
from prunekit.progress import tqdm

if TYPE_CHECKING:
    from prunekit.lora.options import LoraOptions

_MARK = "prunekit.json"  # written into a checkpoint last: no mark, no checkpoint
_LOGGED, _VALIDATED = 40, 8  # points of the learning curve


def train(model: nn.Module, training: Tensor, validation: Tensor, options: LoraOptions, job: dict[str, Any],
          folder: Path, keep: bool, progress: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Train what requires a gradient on windows (n, seqlen): the learning curve's records, and what it cost.

    With `keep`, checkpoints go to the folder, and a run with the same `job` goes on from the last whole one.
    Raises UsageError if the checkpoints there are another job's.
    """
    last = resumable(folder, job) if keep else None
    validate = bool(len(validation))
    arguments = _arguments(model, options, folder, len(training), keep, validate, fresh=last is None)
    watch = Watch(job, progress)
    read, held = ([{"input_ids": window, "labels": window} for window in part]
                  for part in (training, validation))
    memory = Memory(arguments.device)
    with generators_kept(), _quiet(), _as_configured(model, options.gradient_checkpointing):
        trainer = Trainer(model, arguments, train_dataset=read, eval_dataset=held or None, callbacks=[watch])
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    model.eval()
    tokens = training.shape[1] * options.batch * max(1, arguments.world_size)
    batches = -(-training.numel() // tokens)  # of an epoch, whose last one may be smaller

    def seen(step: int) -> int:
        return step // batches * training.numel() + step % batches * tokens

    kept = ("loss", "eval_loss", "learning_rate", "seconds")
    records = [{"step": entry["step"], "tokens": seen(entry["step"]),
                **{key: entry[key] for key in kept if key in entry}}
               for entry in trainer.state.log_history if {"loss", "eval_loss"} & entry.keys()]
    steps, seconds = trainer.state.global_step, watch.seconds
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return records, {"steps": steps, "tokens": seen(steps), "seconds": round(seconds, 2),
                     "tokens_per_second": round(seen(steps) / max(seconds, 1e-9), 1), **memory.peak(),
                     "trainable": trainable}


def _arguments(model: nn.Module, options: LoraOptions, folder: Path, windows: int, keep: bool, validate: bool,
               fresh: bool) -> TrainingArguments:
    parameter = next(model.parameters())
    on_cpu = parameter.device.type == "cpu"
    steps = windows / options.batch / int(os.environ.get("WORLD_SIZE", "1")) * options.epochs
    logged = max(1, round(steps / _LOGGED))
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=options.batch, per_device_eval_batch_size=options.eval_batch,
        learning_rate=options.learning_rate, num_train_epochs=options.epochs, lr_scheduler_type="linear",
        seed=options.seed, data_seed=options.seed, use_cpu=on_cpu, dataloader_pin_memory=not on_cpu,
        bf16=options.bf16 or parameter.dtype == torch.bfloat16,
        fp16=parameter.dtype == torch.float16 and not on_cpu,
        **_checkpointing(options.gradient_checkpointing),
        eval_strategy="steps" if validate else "no", eval_on_start=validate and fresh,
        eval_steps=max(1, round(steps / _VALIDATED)), prediction_loss_only=True, logging_steps=logged,
        # Between logs, the loss since the last one would be lost.
        save_strategy="steps" if keep else "no", save_steps=-(-options.save_every // logged) * logged,
        save_total_limit=2, disable_tqdm=True, report_to="none", remove_unused_columns=False,
        ddp_find_unused_parameters=False)


@contextmanager
def _as_configured(model: nn.Module, recomputed: bool) -> Iterator[None]:
    """Afterwards the cache is as before the Trainer switched it off, and activations are kept again."""
    cache = model.config.use_cache
    try:
        yield
    finally:
        model.config.use_cache = cache
        if recomputed:
            name = next(iter(_checkpointing(True)))  # the method is called as the argument is
            getattr(model, f"{name}_disable")()
            model.disable_input_require_grads()


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _checkpointing(wanted: bool) -> dict[str, Any]:
    """Recompute activations in the backward pass; transformers renamed the switch within version 5."""
    known = {field.name for field in fields(TrainingArguments)}
    name = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if name in known)
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}} if wanted else {}


def resumable(folder: Path, job: dict[str, Any]) -> Path | None:
    """The last whole checkpoint of this job; None if there is none. Unmarked and damaged ones are never read.

    (A run that goes on from an earlier checkpoint ends at the same adapter.) The Trainer reads optimizer and
    generator states as tensors and numbers only (`weights_only`), so that no file can run code.
    """
    marks = folder.glob(f"checkpoint-*/{_MARK}")
    for file in sorted(marks, key=lambda file: file.stat().st_mtime_ns, reverse=True):
        try:
            mark = read_json(file.read_bytes())
            other = ", ".join(key for key in job if mark["job"].get(key) != job[key])
            files = mark["files"]
        except (ValueError, TypeError, KeyError, AttributeError):  # damaged
            continue
        if other:
            raise UsageError(f"the checkpoints in {folder} are of another fine-tuning (other {other}); give "
                             "another folder, or remove them.")
        if files == _hashes(file.parent):
            return file.parent
    return None


def _hashes(checkpoint: Path) -> dict[str, str]:
    return {file.name: file_hash(file) for file in sorted(checkpoint.iterdir())
            if file.is_file() and file.name != _MARK}


class Watch(TrainerCallback):
    """Progress, the time at each point of the curve (earlier sittings too), the mark in a checkpoint."""

    def __init__(self, job: dict[str, Any], progress: bool):
        self.job, self.progress, self.before, self.started = job, progress, 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.started

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.before = max((entry.get("seconds", 0.0) for entry in state.log_history), default=0.0)
        self.started = time.perf_counter()
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="fine-tuning",
                        disable=not self.progress, leave=False)

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        state.log_history[-1]["seconds"] = round(self.seconds, 3)

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # every process has written its generators' state
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_atomic(checkpoint / _MARK, json.dumps({"job": self.job, "files": _hashes(checkpoint)}))

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


class Memory:
    """Peak memory from now on: allocated on the GPU, or (Linux) resident in the process, else None."""

    def __init__(self, device: torch.device):
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif sys.platform == "linux":
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # the kernel's own counter, back to now

    def peak(self) -> dict[str, Any]:
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device) / 1e6
            return {"memory_mb": round(peak, 1), "memory": "allocated on the GPU"}
        status = Path("/proc/self/status")
        kilobytes = re.search(r"VmHWM:\s+(\d+)", status.read_text()) if status.exists() else None
        peak = int(kilobytes[1]) * 1024 / 1e6 if kilobytes else None
        return {"memory_mb": peak, "memory": "resident in the process"}
