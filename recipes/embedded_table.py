"""The measured part of README.md, made anew: `python -m recipes.embedded_table [--readme PATH]`."""
from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from tqdm import tqdm

import prunekit

HERE = Path(prunekit.__file__).parent / "embedded"
MARKS = ("<!-- measured: python -m recipes.embedded_table -->", "<!-- end of measured -->")
MODELS = {"llama": "LLaMA", "opt": "OPT"}
METHODS = ("magnitude", "wanda", "pruner-zero", "sparsegpt")
SETTINGS = tuple((share / 100, "unstructured") for share in range(30, 90, 10)) + ((0.5, "2:4"), (0.5, "4:8"))
SEQLEN, CALIBRATION, TEST = 128, 32, 256  # tokens a window, windows
ANSWERED, QUESTIONS = (0.5, 0.6, 0.7), 500  # sparsities at which the tasks are scored, questions a task


def row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def dense_table(records: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Perplexity by register, next to the unigram's, as recorded after training."""
    yield row("register", "unigram", *(f"{MODELS[name]} dense" for name in records))
    yield row("---", *["---:"] * (1 + len(records)))
    for register, values in next(iter(records.values()))["perplexity"].items():
        dense = [f"{record['perplexity'][register]['dense']:.2f}" for record in records.values()]
        yield row(register, f"{values['unigram']:.1f}", *dense)


def recipe_table(records: dict[str, dict[str, Any]]) -> Iterator[str]:
    """What each model is and what making it took."""
    yield row("", *(MODELS[name] for name in records))
    yield row("---", *["---:"] * len(records))
    for label, text in (("parameters", "{parameters:,}"), ("training tokens", "{tokens:,}"),
                        ("seconds", "{seconds:,}"), ("seed", "{recipe[seed]}"),
                        ("last training loss", "{loss:.3f}"), ("torch", "{torch}"),
                        ("transformers", "{transformers}")):
        yield row(label, *(text.format(**record, loss=record["curve"][-1][1]) for record in records.values()))


def pruned_table(name: str) -> Iterator[str]:
    """Perplexity of every method and setting with its 95 % interval over windows."""
    import prunekit as pk

    model, tokenizer = pk.load_model(f"embedded/{name}")
    calibration, gradient, test = (pk.token_windows("embedded", tokenizer, role, n, SEQLEN) for role, n in (
        ("calibration", CALIBRATION), ("gradient", CALIBRATION), ("test", TEST)))
    gradients = pk.collect_gradients(model, gradient, progress=False)

    def cell(pruned: Any) -> str:
        found = pk.perplexity(pruned, test, SEQLEN, progress=False)
        return f"{found.value:.2f} [{found.interval[0]:.2f}, {found.interval[1]:.2f}]"

    yield f"{MODELS[name]}, dense {cell(model)}:\n"
    labels = [f"{sparsity:.0%}" if pattern == "unstructured" else pattern for sparsity, pattern in SETTINGS]
    results: dict[tuple[str, str], str] = {}
    cases = [(method, setting) for method in METHODS for setting in zip(labels, SETTINGS)]
    for method, (label, (sparsity, pattern)) in tqdm(cases, desc=name):
        pruned = copy.deepcopy(model)
        pk.prune(pruned, calibration, method, sparsity, pattern, gradients=gradients, progress=False)
        results[label, method] = cell(pruned)
    yield row("sparsity", *METHODS)
    yield row("---", *["---:"] * len(METHODS))
    for label in labels:
        yield row(label, *(results[label, method] for method in METHODS))


def answers_table(name: str) -> Iterator[str]:
    """Share of right answers by task: guessing, dense, and pruned with Wanda, with its standard error."""
    import prunekit as pk
    from prunekit.embedded.tasks import TASKS

    model, tokenizer = pk.load_model(f"embedded/{name}")
    calibration = pk.token_windows("embedded", tokenizer, "calibration", CALIBRATION, SEQLEN)
    found: list[list[float]] = []
    for sparsity in tqdm((0.0, *ANSWERED), desc=f"{name}, tasks"):
        pruned = copy.deepcopy(model)
        if sparsity:
            pk.prune(pruned, calibration, "wanda", sparsity, progress=False)
        frame = pk.zero_shot(pruned, tokenizer, ["embedded"], limit=QUESTIONS, progress=False)
        right = frame[frame["metric"] == "acc"].set_index("task").loc[[f"embedded_{task}" for task in TASKS]]
        found = [right["chance"].tolist(), *found[1:], right["value"].tolist()]
    yield f"{MODELS[name]}, right answers in percent:\n"
    yield row("task", "guessing", "dense", *(f"Wanda {sparsity:.0%}" for sparsity in ANSWERED))
    yield row("---", *["---:"] * len(found))
    for task, guess, *shares in zip(TASKS, *found):
        errors = [100 * math.sqrt(share * (1 - share) / QUESTIONS) for share in shares]
        cells = (f"{100 * share:.1f} ± {error:.1f}" for share, error in zip(shares, errors))
        yield row(task, f"{guess:.0%}"[:-1], *cells)
    yield row("mean", *(f"{100 * mean(column):.1f}" for column in found))


def measured() -> str:
    """The whole measured part, as Markdown."""
    records = {name: json.loads((HERE / name / "training.json").read_text()) for name in MODELS}
    parts = ["\n".join(recipe_table(records)), "Perplexity of the dense models on the test role:",
             "\n".join(dense_table(records)), *("\n".join(pruned_table(name)) for name in records),
             *("\n".join(answers_table(name)) for name in records)]
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.embedded_table", description=__doc__)
    parser.add_argument("--readme", type=Path, default=HERE / "README.md",
                        help="the file whose measured part is replaced")
    readme = parser.parse_args(arguments).readme
    text = readme.read_text()
    if not all(mark in text for mark in MARKS):
        parser.error(f"{readme} lacks the lines {MARKS[0]} and {MARKS[1]}")
    head, tail = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
    readme.write_text(f"{head}{MARKS[0]}\n\n{measured()}\n\n{MARKS[1]}{tail}")


if __name__ == "__main__":
    main()
