"""The options of a LoRA fine-tuning, checked."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, get_type_hints

from pydantic import Field

from prunekit.choices import checked

_Module = Annotated[str, Field(
    pattern=r"^[\w.-]+$", description="the name of a linear layer as q_proj, or query-value, or all-linear")]
_Share = {"ge": 0, "lt": 1}


@dataclass(frozen=True)
class LoraOptions:
    """Of the adapters and their training; defaults as in the published finetune_lm.py. Raises UsageError."""

    rank: Annotated[int, Field(ge=1, description="columns of A and B")] = 8
    alpha: Annotated[float, Field(gt=0, description="the low-rank product is scaled by alpha / rank")] = 16.0
    dropout: Annotated[float, Field(**_Share, description="share, on the input of the low-rank path")] = 0.05
    target_modules: Annotated[tuple[_Module, ...], Field(min_length=1, strict=False,
        description="names of linear layers, query-value, or all-linear")] = ("query-value",)
    learning_rate: Annotated[float, Field(gt=0, description="at the first step, then linearly to 0")] = 1e-4
    epochs: Annotated[float, Field(gt=0, description="passes over the windows")] = 1.0
    batch: Annotated[int, Field(ge=1, description="windows per step and device")] = 1
    eval_batch: Annotated[int, Field(ge=1, description="validation windows at a time")] = 8
    eval_samples: Annotated[int, Field(ge=0, description="validation windows that are read, at most")] = 128
    validation: Annotated[float, Field(
        **_Share, description="share of the windows, the first ones, held out for the learning curve")] = 0.05
    bf16: Annotated[bool, Field(description="train a float32 model in bfloat16")] = False
    gradient_checkpointing: Annotated[bool, Field(description="less memory, more time")] = False
    save_every: Annotated[int, Field(ge=1, description="steps between checkpoints")] = 200
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # of the adapters' start, order, dropout

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            plain = value.item() if hasattr(value, "item") else value  # numpy's, too
            object.__setattr__(self, name, checked(name, plain, kind))
