"""How a result was measured, in every row of its table: what is not of one protocol is not put side by side.

What the parameters decide, the run's own and those of the runs that it reads, is filled in; what only the
notebook knows (that it read half of the test windows, say) is a column of its table.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.choices import text_name
from prunekit.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

SETTING = ("model", "method", "sparsity", "pattern")  # what a number is of
# How it was measured. roles: how the windows of its statistics were drawn; bos: as `data.begins` says.
PROTOCOL = ("metric", "corpus_or_tasks", "context", "split", "calibration", "calibration_windows",
            "gradient_corpus", "roles", "bos", "tokenizer", "few_shot", "documents", "harness")
# What every row of a result carries, so that a figure can be rebuilt from the table alone.
# leaks: `data.leaks` of the texts of the statistics that the metric reads, and of the text it is measured on.
_DERIVED = (*PROTOCOL[1:], "dtype", "leaks")
PROVENANCE = ("model", "method", "metric", "sparsity", "pattern", "seqlen", "corpus", "seed", "n",
              *_DERIVED)
_FROM_PARAMETERS = ("model", "seqlen", "corpus", "seed")


def label(value: Any) -> Any:
    """A model or corpus as tables name it: a directory or GGUF file by its last part, all else as it is."""
    if isinstance(value, str) and (Path(value).is_absolute() or value.endswith(".gguf")):
        return Path(value).name.removesuffix(".gguf")
    return value


def spoken(model: str) -> str:
    """The label of a model as sentences have it: "SmolLM2-135M.Q4_1" as "SmolLM2-135M (Q4_1)"."""
    return re.sub(r"\.((?:I?Q\d|B?F\d\d)\w*)$", r" (\1)", label(model))


def with_protocol(frame: pd.DataFrame, name: str, known: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of a result with all columns of PROVENANCE; what a column says already stays.

    As in the ledger: `-` does not apply, `unknown` cannot be known here. `known`: parameters by name. Rows
    with a `task` are `zero_shot`'s; all others are of the test windows, and say so if they are of a part of
    them. Raises UsageError for a table that lacks method, metric, sparsity, pattern or n.
    """
    from prunekit.data import leaks

    provided = {key: label(known[key]) for key in _FROM_PARAMETERS if key not in frame and key in known}
    frame = frame.assign(**provided)
    if absent := [column for column in PROVENANCE if column not in (*frame, *_DERIVED)]:
        many = "s" * (len(absent) > 1)
        raise UsageError(f"The result table '{name}' lacks the column{many} {', '.join(absent)}.")
    asked = _of_tasks(frame) if "task" in frame else _of_windows(frame, known)
    asked |= {"calibration": _text(known, "corpus"), "calibration_windows": known.get("nsamples", "unknown"),
              "gradient_corpus": _text(known, "gradient_corpus", "corpus"), "tokenizer": "model",
              "roles": "file" if known.get("windows") else known.get("roles", "unknown"),
              "bos": known.get("begins", "unknown"), "dtype": known.get("dtype", "unknown")}
    frame = frame.assign(**{column: value for column, value in asked.items() if column not in frame})
    updated = ~frame["update"].fillna("").isin(["", "none"]) if "update" in frame else False
    formula = _formula(frame)
    reads_g, reads_x = (formula.str.contains(letter) | formula.eq("") for letter in (r"\bG\b", r"\b[XHU]"))
    reads_x |= updated
    gradient = frame["gradient_corpus"].where(reads_g, "-")
    of_statistics = ["calibration", "calibration_windows", "roles", *(["bos"] if "task" in frame else [])]
    frame = frame.assign(gradient_corpus=gradient.mask(formula == "", "unknown"), **{
        column: frame[column].where(reads_g | reads_x, "-") for column in of_statistics})
    read = frame.assign(calibration=frame["calibration"].where(reads_x, "-"))  # of G it is the setting alone
    texts = read[["calibration", "gradient_corpus", "corpus_or_tasks", "roles"]]
    return frame.assign(leaks=["yes" if leaks(*row) else "no" for row in texts.itertuples(index=False)])


def _of_windows(frame: pd.DataFrame, known: Mapping[str, Any]) -> dict[str, Any]:
    first = _text(known, "test_corpus", "corpus")
    further = {text_name(one): _text({"text": one}, "text") for one in known.get("test_corpora", ()) if one}
    names = (frame if "text" in frame else frame.assign(text=""))["text"]
    corpus = names.map(lambda name: further.get(name, first))
    split = corpus.map(lambda text: "validation" if text == "c4" else "test")
    split = split if "test_windows" in known else split.where(corpus == "c4", "unknown")
    some = known.get("test_windows")
    return {"corpus_or_tasks": corpus, "context": known.get("seqlen", "unknown"), "few_shot": "-",
            "documents": "-", "harness": "-", "split": split + f", first {some} windows" * bool(some)}


def _of_tasks(frame: pd.DataFrame) -> dict[str, Any]:
    documents = frame["limit"].map(lambda limit: f"{limit:g} per task" if limit else "all")
    return {"corpus_or_tasks": frame["task"], "context": "-", "split": "harness",
            "few_shot": frame["num_fewshot"], "documents": documents}


def _text(known: Mapping[str, Any], *names: str) -> str:
    """The text that the first of these parameters with a value names; a file of windows stands for all."""
    value = next((known[name] for name in ("windows", *names) if known.get(name)), "unknown")
    # A folder called wikitext2 need not hold WikiText-2.
    return value if label(value) == value else f"{label(value)} (own)"


def _formula(frame: pd.DataFrame) -> pd.Series:
    """The metric of each row as text: its tree, or that of its method (H: SparseGPT's); "" where unknown."""
    from prunekit.metric.catalogue import METHODS

    known = {name: str(method.tree or "H") for name, method in METHODS.items()} | {"dense": "dense"}
    named = frame["method"].map(lambda text: known.get(text, text if re.match(r"\w+\(", text) else ""))
    return frame["tree"].fillna(named) if "tree" in frame else named
