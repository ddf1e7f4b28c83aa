"""What parameters may hold, by name: one small check per name, each returning what is wrong, or None."""
from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prunekit.choices import CORPORA, DTYPES, EMBEDDED, SAMPLINGS, Target, parse_pattern
from prunekit.errors import UsageError, did_you_mean

PATHS = ("model", "corpus", "gradient_corpus", "test_corpus", "windows", "gradients", "tree")


def _one_of(*known: str) -> Callable[[str], str | None]:
    def check(value: str) -> str | None:
        return None if value in known else "must be one of " + ", ".join(repr(k) for k in known)
    return check


def _like(shape: str, sentence: str) -> Callable[[str], str | None]:
    return lambda value: None if re.fullmatch(shape, value) else sentence


def _above(bound: float, unit: str = "") -> Callable[[float], str | None]:
    return lambda value: None if value > bound else f"must be greater than {bound}{unit}"


def _share(what: str = "") -> Callable[[float], str | None]:
    return lambda value: None if 0 <= value < 1 else f"must be a share{what}, at least 0 and below 1"


def _at_least(least: int, unit: str) -> Callable[[float], str | None]:
    return lambda value: None if value >= least else f"must be at least {least} ({unit})"


def model(value: str) -> str | None:
    """An embedded model, a directory with a config.json, or something shaped like a hub id."""
    allowed = "an embedded model ('embedded/llama', 'embedded/opt'), an existing directory, or a hub id 'org/name'"
    if value in EMBEDDED:
        return None
    if not value:
        return f"names no model: give {allowed}"
    path = Path(value).expanduser()
    if path.exists():
        return None if (path / "config.json").is_file() else "is not a model directory: it holds no config.json"
    if value.startswith("embedded"):
        return f"is not an embedded model{did_you_mean(value, EMBEDDED)}"
    looks_like_path = value.startswith((".", "~", "/")) or value.count("/") != 1 or Path(value).parts[0] in _folders_here()
    if looks_like_path or not re.fullmatch(r"[\w.-]+/[\w.-]+", value):
        return f"does not exist; allowed are {allowed}"
    return None


def _folders_here() -> set[str]:
    return {path.name for path in Path.cwd().iterdir() if path.is_dir()}


def corpus(value: str) -> str | None:
    """A known corpus, `embedded:REGISTER+REGISTER`, or something on this disk."""
    if value in CORPORA or (value and Path(value).expanduser().exists()):
        return None
    if value.startswith("embedded:"):
        from prunekit.embedded.world import REGISTERS

        unknown = [name for name in value.partition(":")[2].split("+") if name not in REGISTERS]
        return f"has no register '{unknown[0]}'{did_you_mean(unknown[0], REGISTERS)}" if unknown else None
    return f"is neither a known corpus ({', '.join(CORPORA)}) nor an existing file or folder"


def _optional(check: Callable[[str], str | None]) -> Callable[[str], str | None]:
    return lambda value: check(value) if value else None


def existing_file(value: str) -> str | None:
    return None if Path(value).expanduser().is_file() else "does not exist: give the path of a file, or \"\" for none"


_N_OF_M = "'n:m' with 0 < n < m (n zeros in every m consecutive inputs, as in '2:4')"


def pattern(value: str) -> str | None:
    return None if value == "unstructured" or n_of_m(value) is None else f"must be 'unstructured' or {_N_OF_M}"


def n_of_m(value: str) -> str | None:
    try:
        return None if parse_pattern(value) else f"must be {_N_OF_M}"
    except UsageError:
        return f"must be {_N_OF_M}"


def target(value: str) -> str | None:
    try:
        Target.parse(value)
    except UsageError:
        return f"must be a sparsity such as '0.6', or {_N_OF_M}"
    return None


def preset(value: str) -> str | None:
    from prunekit.search.presets import PRESETS

    return None if value in PRESETS else f"is no preset of the search{did_you_mean(value, PRESETS)}"


def method(value: str) -> str | None:
    from prunekit.metric.catalogue import resolve

    try:
        resolve(value)
    except UsageError as error:
        return "is no method: " + str(error).rstrip(".")
    return None


def data_folders(value: str) -> str | None:
    for entry in value.split(","):
        name, _, folder = entry.partition("=")
        if not (name and folder and Path(folder).expanduser().is_dir()):
            return f"must be TASK=FOLDER (several separated by commas) with existing folders, and '{entry}' is not"
    return None


# Those of sweeps and of `verify` lie in folders.
profile = _like(r"\w[\w.-]*(/\w[\w.-]*)*", "must be a plain name (letters, digits, '-', '_', '.')")


def seed(value: int) -> str | None:
    return None if 0 <= value < 2**32 else "must be a whole number from 0 to 4294967295"


CHECKS: dict[str, Callable[[Any], str | None]] = {
    "profile": profile,
    "model": model,
    "corpus": corpus,
    "gradient_corpus": _optional(corpus),
    "test_corpus": _optional(corpus),
    "windows": _optional(existing_file),
    "gradients": _optional(existing_file),
    "roles": _one_of(*SAMPLINGS),
    "seqlen": _at_least(2, "tokens per window"),
    "nsamples": _at_least(1, "windows"),
    "gradient_samples": _at_least(1, "windows"),
    "search_windows": _at_least(1, "windows"),
    "test_windows": _at_least(0, "windows; 0 means all"),
    "seed": seed,
    "dtype": _one_of("auto", *DTYPES),
    "device": _like(r"auto|balanced|cpu|mps|cuda(:\d+)?", "must be 'auto', 'cpu', 'cuda', 'cuda:N', 'mps' or 'balanced'"),
    "norm": _one_of("l1", "l2", "signed"),
    "scale": _above(0),
    "method": method,
    "update_method": method,
    "sparsity": _share(" of zeros"),
    "pattern": pattern,
    "target": target,
    "update_target": target,
    "test_target": target,
    "other_target": target,
    "preset": preset,
    "budget": _at_least(1, "evaluations"),
    "population": _at_least(2, "trees"),
    "census_trees": _at_least(1, "random trees"),
    "threads": _at_least(1, "threads of one evaluation"),
    "workers": _at_least(0, "processes; 0: none but this one"),
    "other_model": _optional(model),
    "other_corpus": _optional(corpus),
    "top": _at_least(3, "metrics"),
    "eval_windows": _at_least(2, "windows"),
    "shuffles": _at_least(1, "null runs"),
    "search_dtype": _one_of("fast", "auto", *DTYPES),
    "group": _one_of("", "row", "layer", "variant"),
    "update": _one_of("", "obs", "obs-iter"),
    "train_samples": _at_least(1, "windows"),
    "block": _at_least(2, "tokens per training window"),
    "target_module": _like(r"[\w.-]+", "must be the name of a linear layer as q_proj, or query-value, or all-linear"),
    "rank": _at_least(1, "columns of A and B"),
    "alpha": _above(0),
    "dropout": _share(),
    "learning_rate": _above(0),
    "epochs": _above(0),
    "batch": _at_least(1, "windows per step"),
    "eval_batch": _at_least(1, "windows"),
    "eval_samples": _at_least(0, "windows; 0: no validation"),
    "validation": _share(),
    "save_every": _at_least(1, "steps"),
    "plain_method": method,
    "task_documents": _at_least(-1, "documents; 0: no tasks, -1: all"),
    "zero_shot_task": _like(r"[\w.+-]+", "must be the name of a task of lm-eval"),
    "task_method": method,
    "reference_method": method,
    "folders": _optional(data_folders),
    "documents": _at_least(0, "of each task; 0: all"),
    "divergence_windows": _at_least(2, "windows"),
    "calibration_samples": _at_least(1, "disjoint parts of the calibration windows"),
    "limit": _above(0, " (documents, or a share below 1)"),
    "num_fewshot": _at_least(0, "worked examples"),
    "batch_size": _at_least(1, "questions at a time"),
}
PLURALS = {"sparsities": "sparsity", "windows": "windows", "documents": "documents"}


def problem(key: str, value: Any) -> str | None:
    """What is wrong with one value of the parameter `key` (or of an entry of the list `key`s); None if nothing is."""
    singular = PLURALS.get(key, key.removesuffix("s"))
    check = CHECKS.get(key) or CHECKS.get(singular)
    return check(value) if check else None


def combination_problem(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """(key, sentence) when single values do not go together: an n:m pattern removes exactly n/m."""
    shape, share = values.get("pattern"), values.get("sparsity")
    ratio = parse_pattern(shape) if isinstance(shape, str) and share is not None else None
    if ratio and not math.isclose(share, ratio[0] / ratio[1]):
        return "sparsity", (f"sparsity = {share!r} does not go with pattern = {shape!r}, which removes exactly "
                            f"{ratio[0] / ratio[1]:g}")
    return None
