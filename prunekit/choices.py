"""What may be chosen: names that parameters hold and code acts on; a value checked by its type. No torch."""
from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from prunekit.errors import UsageError

EMBEDDED = {name: Path(__file__).parent / name for name in ("embedded/llama", "embedded/opt")}
CORPORA = ("embedded", "wikitext2", "c4", "ptb")
SAMPLINGS = ("disjoint", "published")
BEGINNINGS = ("auto", "never", "always")
DTYPES = ("float32", "bfloat16", "float16")
# The seven tasks of the Wanda and Pruner-Zero papers, and their folders in lm-eval.
TASKS = {"boolq": "super_glue/boolq", "rte": "glue/rte", "hellaswag": "hellaswag",
         "winogrande": "winogrande", "arc_easy": "arc", "arc_challenge": "arc", "openbookqa": "openbookqa"}
# What people know a method as: from the literature, or by where it was found; and the pattern of such names.
CALLED = {
    "magnitude": "Magnitude", "wanda": "Wanda", "ria": "RIA", "sparsegpt": "SparseGPT", "admm": "ADMM",
    "pruner-zero": "Pruner-Zero", "gblm": "GBLM-Pruner", "wanda++": "Wanda++", "grad-weight": "SNIP on norms",
    "fisher": "OBD, diagonal Fisher", "obd-layer": "OBD of the layer", "wanda-variant": "Wanda, variant",
    "pruner-zero-variant": "Pruner-Zero, variant", "embedded line": "the embedded model's line",
    "wikitext2": "WikiText-2", "ptb": "PTB", "c4": "C4"}
NAMED = r"(?<![\w+/-])(?:{})(?![\w+/-])".format("|".join(map(re.escape, CALLED)))


def default_tasks(model: str) -> list[str]:
    """What a model is asked unless said: the package's own world for its own models, else the papers'."""
    return ["embedded"] if model.startswith("embedded/") else list(TASKS)


def called(name: str) -> str:
    """A method, or one with something ("wanda, plain", "ria + obs"), as people name it."""
    return re.sub(NAMED, lambda found: CALLED[found[0]], str(name))


def percent(place: object) -> str:
    """A target as sentences have it: 0.5 as "50 %"; every other name as it is."""
    return f"{100 * float(str(place)):g} %" if re.fullmatch(r"0\.\d+", str(place)) else str(place)


def parse_pattern(pattern: str) -> tuple[int, int] | None:
    """`"unstructured"` -> None; `"n:m"` -> (n, m): n zeros in every m consecutive inputs of a row, 0 < n < m.

    Raises UsageError for anything else.
    """
    if pattern == "unstructured":
        return None
    match = re.fullmatch(r"(\d{1,3}):(\d{1,3})", pattern) if isinstance(pattern, str) else None
    if not match or not 0 < int(match[1]) < int(match[2]):
        raise UsageError(f"pattern {pattern!r} is not known; give \"unstructured\" or \"n:m\" with "
                         "0 < n < m, such as \"2:4\" (quoted).")
    return int(match[1]), int(match[2])


def check_sparsity(sparsity: float, pattern: str = "unstructured") -> float:
    """The share of zeros as a float in [0, 1), equal to n/m for an N:M pattern; else UsageError."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)) or not 0 <= sparsity < 1:
        raise UsageError(f"sparsity {sparsity!r} is not a share of zeros; give a number from 0 up to "
                         "(not including) 1.")
    ratio = parse_pattern(pattern)
    if ratio and not math.isclose(sparsity, ratio[0] / ratio[1]):
        raise UsageError(f"sparsity = {sparsity!r} does not go with pattern = {pattern!r}, which removes "
                         f"exactly {ratio[0] / ratio[1]:g}.")
    return float(sparsity)


def check_bos(bos: str, roles: str = "disjoint", windows: object = None) -> None:
    """Raise UsageError if windows that are what they are, published or ready ones, are to begin otherwise."""
    fixed = "ready windows (windows=)" if windows else "published ones (roles: published)"
    if bos != "auto" and (windows or roles == "published"):
        raise UsageError(f"bos = {bos!r} does not go with {fixed}, which are taken as they are: leave bos at "
                         "'auto', or draw windows of the package's own (roles: disjoint).")


def text_name(corpus: str) -> str:
    """What a text is called beside others: `wikitext2`, of data/c4.jsonl `c4`."""
    return Path(corpus).name.partition(".")[0]


def check_texts(first: str, further: Sequence[str], windows: object = None) -> None:
    """Raise UsageError if further test texts cannot be told apart, or come with ready windows."""
    if windows and any(further):
        raise UsageError("test_corpora does not go with ready windows (windows=), which hold those of one "
                         "test text: leave it at [\"\"], or leave windows empty.")
    names = [text_name(text) for text in (first, *further) if text]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"test_corpora and the first test text have two texts called {twice[0]!r}, which "
                         "results could not tell apart: leave one out, or rename its file.")


def task_folders(entries: str | Sequence[str]) -> dict[str, str]:
    """By task, of TASK=FOLDER: a list, or a text with commas. UsageError names what is none."""
    named = {}
    for entry in filter(None, entries.split(",") if isinstance(entries, str) else entries):
        name, _, named[name] = entry.partition("=")
        if not (name and named[name]):
            raise UsageError(f"data set {entry!r} is not TASK=FOLDER.")
    return named


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
            raise UsageError(f"target {word!r} is none: give a sparsity such as 0.6, or a pattern such as "
                             "\"2:4\".")
        return cls(sparsity)

    @classmethod
    def of(cls, value: float | str, pattern: str = "unstructured") -> Target:
        """A number, which goes with the pattern, or a word, which brings its own; UsageError as of both."""
        return cls.parse(value) if isinstance(value, str) else cls(check_sparsity(value, pattern), pattern)

    def __str__(self) -> str:
        return str(self.sparsity) if self.pattern == "unstructured" else self.pattern


# What each layer is pruned to: one target for all, one per decoder block, or one for every pattern of names
Sparsity = float | str | Sequence[float | str] | Mapping[str, float | str]


def read_sparsity(text: Sparsity) -> Sparsity:
    """From the command line: 0.6, "2:4", or JSON, itself or in a file; UsageError of all else."""
    if not isinstance(text, str):
        return text
    try:
        text = Path(text).read_text(encoding="utf-8") if text.endswith(".json") else text
        return text if ":" in text and text[0] not in "[{" else json.loads(text)
    except (OSError, ValueError) as error:
        raise UsageError(f"sparsity {text!r:.60} is none: give a share such as 0.6, a pattern such as "
                         "2:4, or JSON as '{\"*\": 0.6, \"*.down_proj\": \"2:4\"}', itself or in a file."
                         ) from error


def targets_in(sparsity: Sparsity, pattern: str = "unstructured") -> list[Target]:
    """All targets that are named, in their order. Raises UsageError where one is none."""
    if isinstance(sparsity, Mapping):
        return [Target.of(value, pattern) for value in sparsity.values()]
    several = isinstance(sparsity, Sequence) and not isinstance(sparsity, str)
    return [Target.of(value, pattern) for value in (sparsity if several else [sparsity])]


# ---------------------------------------------------------------- a value and its annotated type

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
_BOUNDS = {"Ge": "at least", "Gt": "greater than", "Le": "at most", "Lt": "below"}


def entry(kind: Any) -> Any:
    """The type of the entries of a list or tuple; None of anything else."""
    kind = FieldInfo.from_annotation(kind).annotation
    return kind.__args__[0] if getattr(kind, "__origin__", None) in (list, tuple) else None


def checked(name: str, value: Any, kind: Any, hint: Callable[[Any, Any], str] | None = None) -> Any:
    """The value, strictly of its type (no text for a number), within the bounds of the type's `Field`.

    Raises UsageError: name, value, what it must be; and what `hint(value, type)` adds to a wrong type.
    """
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
    field = FieldInfo.from_annotation(entry(kind) if first["loc"] else kind)
    said = f"{name}{''.join(f'[{index}]' for index in first['loc'])} = {first['input']!r}"
    if first["type"] == "value_error":  # of a check of our own
        raise UsageError(f"{said} {first['ctx']['error']}.")
    if first["type"] == "finite_number":
        raise UsageError(f"{said} must be a finite number.")
    if first["type"] == "too_short":
        raise UsageError(f"{said} is an empty list; it needs at least one entry.")
    if first["type"].startswith(("greater_than", "less_than")):
        bounds = [f"{_BOUNDS[type(rule).__name__]} {getattr(rule, type(rule).__name__.lower())}"
                  for rule in field.metadata if type(rule).__name__ in _BOUNDS]
        words = f" ({field.description})" if field.description else ""
        raise UsageError(f"{said} must be {' and '.join(bounds)}{words}.")
    if first["type"] == "string_pattern_mismatch":
        raise UsageError(f"{said} must be {field.description}.")
    of = entry(field.annotation)
    plain = FieldInfo.from_annotation(of).annotation if of else field.annotation
    what = f"a list, each entry {_WORDS[plain]}" if of else _WORDS[plain]
    said += f" must be {what}{hint(first['input'], list[plain] if of else plain) if hint else ''}."
    raise UsageError(said)


@cache
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False))
