"""What several benchmarks need: where they ran, and a model with its windows and G."""
from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import torch

import prunekit as pk


def machine(threads: int) -> dict[str, Any]:
    return {"processor": platform.processor() or platform.machine(), "threads": threads,
            "torch": torch.__version__, "python": platform.python_version()}


def show(*cells: object) -> None:
    """A row of a Markdown table, at once."""
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def material(name: str, seqlen: int, counts: Mapping[str, int],
             dtype: str = "float32") -> tuple[Any, dict[str, torch.Tensor], pk.Gradients]:
    """The model on the processor, embedded windows of every role, and G from those of the role gradient."""
    model, tokenizer = pk.load_model(name, dtype=dtype, device="cpu")
    windows = {role: pk.token_windows("embedded", tokenizer, role, n, seqlen) for role, n in counts.items()}
    return model, windows, pk.collect_gradients(model, windows["gradient"], progress=False)
