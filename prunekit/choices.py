"""Names that parameters may hold and code acts on: one list of each, without torch, so that checks need not load it."""
from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from prunekit.errors import UsageError

EMBEDDED = {name: Path(__file__).parent / name for name in ("embedded/llama", "embedded/opt")}  # models, and their directories
CORPORA = ("embedded", "wikitext2", "c4", "ptb")
SAMPLINGS = ("disjoint", "published")
DTYPES = ("float32", "bfloat16", "float16")


def parse_pattern(pattern: str) -> tuple[int, int] | None:
    """`"unstructured"` -> None; `"n:m"` -> (n, m): n zeros in every m consecutive inputs of a row, 0 < n < m.

    Raises UsageError for anything else.
    """
    if pattern == "unstructured":
        return None
    match = re.fullmatch(r"(\d{1,3}):(\d{1,3})", pattern) if isinstance(pattern, str) else None
    if not match or not 0 < int(match[1]) < int(match[2]):
        raise UsageError(f"pattern {pattern!r} is not known; give \"unstructured\" or \"n:m\" with 0 < n < m, "
                         "such as \"2:4\" (quoted).")
    return int(match[1]), int(match[2])


def check_sparsity(sparsity: float, pattern: str = "unstructured") -> float:
    """The share of zeros as a float in [0, 1), equal to n/m for an N:M pattern. Raises UsageError otherwise."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)) or not 0 <= sparsity < 1:
        raise UsageError(f"sparsity {sparsity!r} is not a share of zeros; give a number from 0 up to (not including) 1.")
    ratio = parse_pattern(pattern)
    if ratio and not math.isclose(sparsity, ratio[0] / ratio[1]):
        raise UsageError(f"sparsity {sparsity} does not fit pattern {pattern}, which removes exactly "
                         f"{ratio[0] / ratio[1]:g}; set sparsity to that or the pattern to \"unstructured\".")
    return float(sparsity)


def per_block(sparsity: float | Sequence[float], pattern: str, blocks: int) -> list[float]:
    """One checked sparsity per decoder block. Raises UsageError if a list has another length."""
    if not isinstance(sparsity, Sequence) or isinstance(sparsity, str):
        return [check_sparsity(sparsity, pattern)] * blocks
    if len(sparsity) != blocks:
        raise UsageError(f"{len(sparsity)} sparsities were given for a model of {blocks} decoder blocks; give one number "
                         "or one per block.")
    return [check_sparsity(value, pattern) for value in sparsity]


class Target(NamedTuple):
    """What to prune to: a share of zeros, and the pattern that they form. In one word: "0.6" or "2:4"."""

    sparsity: float
    pattern: str = "unstructured"

    @classmethod
    def parse(cls, word: float | str) -> Target:
        """From 0.6, "0.6" or "2:4". Raises UsageError for anything else."""
        if isinstance(word, str) and ":" in word and (ratio := parse_pattern(word)):
            return cls(ratio[0] / ratio[1], word)
        try:
            sparsity = float(word)
        except (TypeError, ValueError):
            sparsity = math.nan
        if isinstance(word, bool) or not 0 < sparsity < 1:
            raise UsageError(f"target {word!r} is none: give a sparsity such as 0.6, or a pattern such as \"2:4\".")
        return cls(sparsity)

    def __str__(self) -> str:
        return str(self.sparsity) if self.pattern == "unstructured" else self.pattern
