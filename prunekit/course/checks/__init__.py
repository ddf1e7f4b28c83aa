"""What makes an answer right, a module for each notebook: `exercise_3(answer, lesson)` returns one sentence
about what is wrong, or nothing. Answers are computed here, not written down; sentences name a mistake."""
from __future__ import annotations

from typing import Any

import torch


def unlike(found: Any, wanted: torch.Tensor, tolerance: float = 1e-4) -> str:
    """How a tensor that an answer returned differs from the right one, as the end of a sentence, or ""."""
    if not isinstance(found, torch.Tensor):
        return f"returns {type(found).__name__}, not a tensor"
    if found.shape != wanted.shape:
        return f"returns the shape {tuple(found.shape)}, not {tuple(wanted.shape)}"
    off = (found.double() - wanted.double()).abs().max().item() if wanted.numel() else 0.0
    largest = wanted.double().abs().max().item() if wanted.numel() else 0.0
    return "" if off <= tolerance * max(largest, 1e-30) else f"is off by up to {off:.3g} (of {largest:.3g})"
