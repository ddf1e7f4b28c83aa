"""The commands that load a model: prune, gradients, evaluate, finetune."""
from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.cli.options import check_options, stored_rows
from prunekit.cli.workbook import say
from prunekit.errors import UsageError
from prunekit.files import check_folder, write_atomic, writing_to
from prunekit.workbook import manifest

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from prunekit.metric.catalogue import Method


def _load(args: argparse.Namespace) -> tuple[Any, Any]:
    import prunekit as pk

    return pk.load_model(args.model, dtype=args.dtype, device=args.device, cache_dir=args.cache_dir)


def _windows(args: argparse.Namespace, tokenizer: Any, role: str, corpus: str) -> Tensor:
    import prunekit as pk

    n = (args.test_windows or None) if role == "test" else args.nsamples
    return pk.token_windows(corpus, tokenizer, role, n, args.seqlen, args.seed, roles=args.roles,
                            windows=args.windows or None, cache_dir=args.cache_dir)


def _collect(args: argparse.Namespace, model: Any, tokenizer: Any, corpus: str) -> Any:
    import prunekit as pk

    meta = {"model": args.model, "corpus": corpus, "seed": args.seed, "roles": args.roles}
    return pk.collect_gradients(model, _windows(args, tokenizer, "gradient", corpus), norm=args.norm, scale=args.scale,
                                meta=meta)


def run_gradients(args: argparse.Namespace) -> int:
    check_options(args)
    output = Path(args.output)
    if output.suffix != ".safetensors":
        raise UsageError(f"--output {output} must end in .safetensors.")
    import torch

    import prunekit as pk

    model, tokenizer = _load(args)
    if args.activations:
        meta = {"model": args.model, "corpus": args.corpus, "seed": args.seed}
        found = pk.collect_activations(model, _windows(args, tokenizer, "calibration", args.corpus), norm=args.norm, meta=meta)
    else:
        found = _collect(args, model, tokenizer, args.corpus)
    found.save(output, dtype=torch.float16 if args.half else None)
    say(f"{len(found)} layers written to {output}")
    return 0


def run_evaluate(args: argparse.Namespace) -> int:
    text = args.zero_shot is None or args.corpus is not None
    check_options(args)
    tasks = _tasks(args)
    if args.lora_weights:
        from prunekit.lora.finetune import adapter_folder, load_lora

        adapter_folder(args.lora_weights)
    model, tokenizer = _load(args)
    if args.lora_weights:
        model = load_lora(model, args.lora_weights).model
    if text:
        _perplexity(args, model, tokenizer, args.corpus)
    if tasks:
        _zero_shot(args, model, tokenizer, tasks, {"model": args.model})
    return 0


def _tasks(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `zero_shot`, tried out before anything expensive; empty if no tasks are asked for."""
    if args.zero_shot is None:
        return {}
    from prunekit.evaluate import harness, zero_shot

    wrong = [entry for entry in args.datasets if not all(entry.partition("=")[::2])]
    if wrong:
        raise UsageError(f"--datasets {wrong[0]} is not NAME=FOLDER.")
    data = {"datasets": dict(entry.split("=", 1) for entry in args.datasets), "include_path": args.include_path,
            "allow_code": args.allow_code}
    tasks = [name.strip() for name in args.zero_shot.split(",")] if args.zero_shot else zero_shot.default_tasks(args.model)
    with harness.quiet(progress=False):
        harness.load_tasks(tasks, **data)
    return {"tasks": tasks, "limit": args.limit, "num_fewshot": args.num_fewshot, "batch_size": args.batch_size, **data}


def _zero_shot(args: argparse.Namespace, model: Any, tokenizer: Any, asked: dict[str, Any], row: dict[str, Any]) -> None:
    import prunekit as pk

    frame = pk.zero_shot(model, tokenizer, **asked)
    for found in frame.itertuples():
        chance = "" if found.chance != found.chance else f", chance {found.chance:.4f}"
        say(f"{found.task:<22} {found.metric:<10} {found.value:.4f} [{found.low:.4f}, {found.high:.4f}], {found.n} documents{chance}")
    for metric in dict.fromkeys(frame["metric"]):
        try:
            mean = pk.mean_over(frame, metric)
            say(f"mean of {mean['tasks']:<2} tasks       {metric:<10} {mean['value']:.4f} [{mean['low']:.4f}, {mean['high']:.4f}]")
        except UsageError as error:
            say(f"no mean of {metric}: {error}")
    if args.results:
        _add_rows(Path(args.results) / "zero_shot.csv", frame.assign(**{f"run_{key}": value for key, value in row.items()}))


def run_finetune(args: argparse.Namespace) -> int:
    check_options(args)
    if any(Path(args.output).glob("adapter_*")):
        raise UsageError(f"--output {args.output} holds adapters already: give a new directory.")
    target = _empty_directory(args.save_model) if args.save_model else None
    output = Path(args.output)
    if (output / "config.json").exists() or (target and target.resolve() == output.resolve()):
        raise UsageError(f"--output {output} is the directory of a model, to which adapters would be added "
                         "a second time: give one of their own.")
    import prunekit as pk

    options = pk.LoraOptions(**{field: getattr(args, field) for field in pk.LoraOptions.__annotations__})
    if args.device == "auto" and "LOCAL_RANK" in os.environ:  # started by accelerate or torchrun: one process per GPU
        args.device = f"cuda:{os.environ['LOCAL_RANK']}"
    first = os.environ.get("RANK", "0") == "0"
    model, tokenizer = _load(args)
    windows = pk.token_windows(args.corpus, tokenizer, "train", args.nsamples, args.block, args.seed, roles=args.roles,
                               windows=args.windows or None, cache_dir=args.cache_dir)
    found = {}

    def measure(when: str) -> None:
        if first and not args.no_evaluate:
            found[when] = _perplexity(args, model, tokenizer, _test_corpus(args), f"{when}: ")

    measure("before")
    tuned = pk.finetune_lora(model, windows, options, masked=not args.plain, checkpoints=Path(args.output, "checkpoints"))
    if not first:
        return 0
    say(f"adapters written to {tuned.save(args.output)}")
    say(f"{tuned.costs['steps']} steps, {tuned.costs['tokens']:,} tokens in {tuned.costs['seconds']:.1f} s")
    with tuned.unmasked():
        measure("unmasked")
    tuned.merge()
    zeros = {key: sum(layer[key] for layer in tuned.zeros) for key in ("zeros_before", "zeros")}
    say(f"merged: {zeros['zeros']:,} zeros in the layers with adapters, of {zeros['zeros_before']:,}")
    measure("merged")
    row = _tuned_row(args, tuned, found) | zeros
    if target:
        _save(model, tokenizer, target, row)
    if args.results:
        _add_rows(Path(args.results) / "results.csv", [row])
    return 0


def _tuned_row(args: argparse.Namespace, tuned: Any, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {**_asked(args), "method": "LoRA" if args.plain else "masked LoRA", "block": args.block, **tuned.job["options"],
            "target_modules": " ".join(args.target_modules), **tuned.costs,
            **{f"{key}_{when}": row[key] for when, row in found.items() for key in ("ppl", "low", "high")}}


def _perplexity(args: argparse.Namespace, model: Any, tokenizer: Any, corpus: str, what: str = "") -> dict[str, Any]:
    import prunekit as pk

    row = pk.perplexity(model, _windows(args, tokenizer, "test", corpus), args.seqlen).row()
    say(f"{what}perplexity {row['ppl']:.4f} [{row['low']:.4f}, {row['high']:.4f}] on {corpus}, {row['windows']} windows of "
        f"{args.seqlen} tokens")
    return row


def run_prune(args: argparse.Namespace) -> int:
    check_options(args)
    method = _method(args)
    target = _empty_directory(args.save_model) if args.save_model else None
    tasks = _tasks(args)
    import prunekit as pk

    model, tokenizer = _load(args)
    gradients = None
    if "G" in method.needs:
        if args.gradients:
            gradients = pk.Gradients.load(args.gradients)
        else:
            corpus = args.gradient_corpus or args.corpus
            say(f"{method.name} reads G and no --gradients are given: collecting them on {corpus}")
            gradients = _collect(args, model, tokenizer, corpus)
    windows = _windows(args, tokenizer, "calibration", args.corpus) if {"X", "H"} & method.needs else None
    report = pk.prune(model, windows, method, args.sparsity, args.pattern, gradients=gradients, one_shot=args.one_shot)
    row = _asked(args) | report.meta | {
        "gradient_corpus": (args.gradients or args.gradient_corpus or args.corpus) if "G" in method.needs else "",
        "target": args.sparsity, "sparsity": report.sparsity, "seqlen": args.seqlen}
    say(f"{method.name}: {report.sparsity:.4%} of the prunable weights are zero")
    if target:
        _save(model, tokenizer, target, row)
    if not args.no_evaluate:
        row |= _perplexity(args, model, tokenizer, _test_corpus(args))
    if args.results:
        _add_rows(Path(args.results) / "results.csv", [row])
    if tasks:
        _zero_shot(args, model, tokenizer, tasks, row)
    return 0


def _method(args: argparse.Namespace) -> Method:
    from prunekit.metric.catalogue import resolve
    from prunekit.metric.tree import Tree

    if bool(args.method) == bool(args.tree):
        raise UsageError("give either --method or --tree.")
    chosen = Tree.from_json(args.tree) if args.tree else args.method
    return resolve(chosen, "variant" if args.variant else None, args.update)


def _test_corpus(args: argparse.Namespace) -> str:
    if args.test_corpus:
        return args.test_corpus
    return "wikitext2" if args.corpus == "c4" else args.corpus


def _empty_directory(name: str) -> Path:
    path = Path(name)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"--save-model {path} exists and is not an empty directory: give a new one.")
    return check_folder(path)


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    """What every row of results says about model, text and versions."""
    from prunekit.models import fingerprint

    return {"model": args.model, "model_hash": fingerprint(args.model), "corpus": args.corpus, "test_corpus": _test_corpus(args),
            "roles": args.roles, "windows_file": args.windows or "", "nsamples": args.nsamples, "seqlen": args.seqlen,
            "seed": args.seed, **{f"version_{name}": number for name, number in manifest.versions().items()}}


def _save(model: Any, tokenizer: Any, target: Path, row: dict[str, Any]) -> None:
    with writing_to(target):
        model.save_pretrained(target)
        if tokenizer is not None:
            tokenizer.save_pretrained(target)
    write_atomic(target / "prunekit.json", json.dumps(row, indent=1, ensure_ascii=False) + "\n")
    say(f"model written to {target}")


def _add_rows(file: Path, rows: pd.DataFrame | list[dict[str, Any]]) -> None:
    import pandas as pd

    frame = pd.DataFrame(rows)
    write_atomic(file, pd.concat([*stored_rows(file), frame]).to_csv(index=False))
    say(f"{len(frame)} row{'s' * (len(frame) > 1)} added to {file}")

