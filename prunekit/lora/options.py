"""The options of a LoRA fine-tuning, checked."""
from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from prunekit.errors import UsageError

_RULES: dict[str, tuple[Any, ...]] = {  # what is taken (numpy's, too) and kept (for JSON), and its bounds
    "rank batch eval_batch save_every": (Integral, int, lambda n: n >= 1, "a whole number, at least 1"),
    "eval_samples": (Integral, int, lambda n: n >= 0, "a whole number, at least 0"),
    "seed": (Integral, int, lambda n: 0 <= n < 2**32, "a whole number, at least 0 and below 2**32"),
    "alpha learning_rate epochs": (Real, float, lambda x: 0 < x < math.inf, "finite and greater than 0"),
    "dropout validation": (Real, float, lambda x: 0 <= x < 1, "a share, at least 0 and below 1"),
}


@dataclass(frozen=True)
class LoraOptions:
    """Of the adapters and their training; defaults as in the published finetune_lm.py."""

    rank: int = 8
    alpha: float = 16.0  # the product is scaled by alpha / rank
    dropout: float = 0.05  # on the input of the low-rank path only, as in peft
    target_modules: tuple[str, ...] = ("query-value",)  # names of linear layers, or "query-value", or "all-linear"
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
        if not isinstance(self.target_modules, (list, tuple)) or {type(name) for name in self.target_modules} != {str}:
            raise UsageError(f"target_modules = {self.target_modules!r} must be a list of names of layers, as ['q_proj'].")
        object.__setattr__(self, "target_modules", tuple(self.target_modules))
        for names, (kind, plain, fits, what) in _RULES.items():
            for name in names.split():
                value = getattr(self, name)
                if isinstance(value, bool) or not isinstance(value, kind) or not fits(value):
                    raise UsageError(f"{name} = {value!r} must be {what}.")
                object.__setattr__(self, name, plain(value))
