"""The command line: `prunekit …`, also `python -m prunekit …`."""
from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit import names
from prunekit.errors import UsageError, did_you_mean
from prunekit.files import check_file, check_folder, writing_to
from prunekit.workbook import commands as workbook
from prunekit.workbook import manifest, params, project, vocabulary
from prunekit.workbook.commands import say

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from prunekit.metric.catalogue import Method


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, 1 when a notebook failed, 2 when something asked for cannot be done."""
    parser = _parser()
    try:
        args = parser.parse_args(_with_config(parser, list(sys.argv[1:] if argv is None else argv)))
        with writing_to():
            return args.command(args)
    except BrokenPipeError:  # `head`, say, has read enough: what is left is not flushed at the end either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except UsageError as error:
        sys.stderr.write(f"prunekit: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("prunekit: stopped\n")
        return 130


_TASKS = "lm-eval's tasks, separated by commas (default: the papers' seven; for embedded models the package's seven)"


# ---------------------------------------------------------------- arguments

def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prunekit", description="Symbolic pruning of language models.", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(command=function)
        return sub

    run = command("run", _run, "Run the notebooks of a profile that are not up to date, and render the report.")
    run.add_argument("profile", help="a folder of params/")
    run.add_argument("topics", nargs="*", metavar="TOPIC", help="only these notebooks and what they read from, as 03_baselines")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a parameter; may be repeated")
    run.add_argument("--force", action="store_true", help="run the notebooks even when they are up to date")
    run.add_argument("--workers", type=int, default=1, metavar="N", help="notebooks at a time, which share cores and memory")
    workbook.add_status(command("status", workbook.run_status, "Say what is fresh, stale (and why), missing or failed."))
    workbook.add_sweep(command("sweep", workbook.run_sweep, "Run notebooks over a grid of parameters, join their tables."))
    workbook.add_diff(command("diff", workbook.run_diff, "What changed between two executed runs, as text or as a page."))
    workbook.add_verify(command("verify", workbook.run_verify, "Run a profile anew and compare every number in its tables."))
    record = command("record", workbook.run_record, "Put a profile's search tables into the package, where 04 and 05 show them.")
    record.add_argument("profile", nargs="?", default="study", help="a folder of params/ (default: study)")
    figures = command("figures", _figures, "Draw the figures of a profile again from their CSVs alone, and render the report.")
    figures.add_argument("profile")
    figures.add_argument("topics", nargs="*", metavar="TOPIC", help="only those of these notebooks")
    paper = command("paper", _paper, "Collect a profile's figures, tables and takeaways as LaTeX, with a main.tex that compiles.")
    paper.add_argument("folder", metavar="DIR", help="a new folder, or one that this command has written")
    paper.add_argument("--profile", default="embedded", help="a folder of params/ (default: embedded)")
    workbook.add_student(command("student", workbook.run_student, "Write a copy of the notebooks without solutions."))
    workbook.add_check(command("check", workbook.run_check, "Grade the exercises of students' copies."))
    _prune_arguments(command("prune", _prune, "Prune a model, evaluate it, and save it."))
    gradients = command("gradients", _gradients, "Collect the gradients G (or the input norms) of a model and save them.")
    _data_arguments(gradients)
    gradients.add_argument("--output", required=True, metavar="FILE", help="the .safetensors file to write")
    gradients.add_argument("--activations", action="store_true", help="norms of the layers' inputs instead of gradients")
    gradients.add_argument("--half", action="store_true", help="store float16, as published")
    explain = command("explain", _explain, "What a metric is, how far it simplifies and why, and which metrics have the same masks.")
    explain.add_argument("tree", help="a name of the catalogue, an expression such as 'mul(W, sqrt(X))', or a JSON file")
    explain.add_argument("--group", default="row", help="what scores are compared within: row, layer or variant")
    from prunekit.search.commands import add_search

    add_search(command("search", _search, "Evolve metrics: start, status, resume, export."), _data_arguments)
    evaluate = command("evaluate", _evaluate, "Perplexity of a model on a test text, and lm-eval's tasks, with intervals.")
    _data_arguments(evaluate)
    evaluate.add_argument("--tasks", "--zero-shot", dest="zero_shot", nargs="?", const="", metavar="TASKS",
                          help=f"{_TASKS}; without --corpus, nothing else")
    evaluate.add_argument("--results", metavar="DIR", help="add the tasks' rows to DIR/zero_shot.csv")
    evaluate.add_argument("--lora-weights", metavar="DIR", help="adapters of `finetune` or peft; masked if masks lie beside them")
    _task_arguments(evaluate)
    _finetune_arguments(command("finetune", _finetune, "Fine-tune a pruned model with LoRA that keeps its zeros."))
    return parser


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", metavar="FILE", help="a JSON or YAML file with any of these options; the command line wins")
    add("--model", required=True, help="embedded/llama, embedded/opt, a directory, or a hub id")
    add("--corpus", help="embedded, wikitext2, c4, ptb, or a path (default: embedded for embedded models; else c4 to "
                         "calibrate, wikitext2 to evaluate)")
    add("--windows", metavar="FILE", help="ready token windows (.safetensors) instead of sampling")
    add("--roles", default="disjoint", help="disjoint, or published: the published sampling")
    add("--nsamples", type=int, help="windows (default: 32 for embedded models, else 128)")
    add("--seqlen", type=int, help="tokens per window (default: 128 for embedded models, else 2048)")
    add("--test-windows", type=int, default=0, help="windows to evaluate on; 0: all")
    add("--seed", type=int, default=0)
    add("--norm", default="l2", help="of G: l2, l1 or signed")
    add("--scale", type=float, default=100.0, help="factor on gradients, as published")
    add("--dtype", default="auto", help="auto, float32, bfloat16, float16")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N, mps, balanced")
    add("--cache-dir", metavar="DIR", help="where downloads are kept")


def _task_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--limit", type=float, help="only the first documents of each task (a number, or a share below 1)")
    add("--num-fewshot", type=int, default=0, help="worked examples before each question")
    add("--batch-size", type=int, default=32, help="questions at a time")
    add("--datasets", action="append", default=[], metavar="NAME=FOLDER", help="a task's data set (or hub id) from this disk")
    add("--include-path", metavar="DIR", help="a folder of lm-eval YAML tasks of your own")
    add("--allow-code", action="store_true", help="also tasks that run code")


def _prune_arguments(parser: argparse.ArgumentParser) -> None:
    _data_arguments(parser)
    add = parser.add_argument
    add("--method", help="a name of the catalogue, or a metric such as 'mul(W, sqrt(X))'")
    add("--tree", metavar="FILE", help="a metric as a JSON tree, instead of --method")
    add("--sparsity", type=float, default=0.5, help="share of zeros")
    add("--pattern", default="unstructured", help="unstructured, or n:m as 2:4")
    add("--variant", action="store_true", help="compare by cumulated score (Wanda's variant)")
    add("--update", help="weight update: obs or obs-iter")
    add("--one-shot", action="store_true", help="all statistics from the dense model")
    add("--gradients", metavar="FILE", help="G from a file (.safetensors, or the published .pth)")
    add("--gradient-corpus", help="where to collect G when no file is given (default: --corpus)")
    add("--test-corpus", help="what to evaluate on (default: as --corpus of `evaluate`; a path given as --corpus)")
    add("--no-evaluate", action="store_true", help="do not compute the perplexity")
    add("--zero-shot", nargs="?", const="", metavar="TASKS", help=_TASKS)
    _task_arguments(parser)
    add("--results", metavar="DIR", help="add a row to DIR/results.csv, and the tasks' to DIR/zero_shot.csv")
    add("--save-model", metavar="DIR", help="write the pruned model, its tokenizer and prunekit.json")


def _finetune_arguments(parser: argparse.ArgumentParser) -> None:
    _data_arguments(parser)
    add = parser.add_argument
    add("--output", required=True, metavar="DIR", help="where adapters, masks and checkpoints go; the same call again goes on "
                                                       "after a kill")
    add("--save-model", metavar="DIR", help="write the merged model, its tokenizer and prunekit.json")
    add("--block", type=int, help="tokens per training window (default: 128 for embedded models, else 1024)")
    add("--targets", nargs="+", default=["query-value"], metavar="NAME", help="linear layers as q_proj, query-value, or all-linear")
    add("--rank", type=int, default=8)
    add("--alpha", type=float, default=16.0, help="the low-rank product is scaled by alpha / rank")
    add("--dropout", type=float, default=0.05)
    add("--learning-rate", type=float, default=1e-4)
    add("--epochs", type=float, default=1.0)
    add("--batch", type=int, default=1, help="windows per step and device")
    add("--eval-batch", type=int, default=8)
    add("--eval-samples", type=int, default=128, help="windows of the validation split that are read, at most")
    add("--validation", type=float, default=0.05, help="share of the windows held out for the learning curve")
    add("--save-every", type=int, default=200, help="steps between checkpoints")
    add("--bf16", action="store_true", help="train a float32 model in bfloat16")
    add("--gradient-checkpointing", action="store_true", help="less memory, more time")
    add("--plain", action="store_true", help="plain LoRA: its merge fills the zeros in")
    add("--test-corpus", help="what to evaluate on (default: as of `prune`)")
    add("--no-evaluate", action="store_true", help="do not compute perplexities")
    add("--results", metavar="DIR", help="add a row to DIR/results.csv")


def _with_config(parser: argparse.ArgumentParser, argv: list[str]) -> list[str]:
    """The options of `--config FILE`, put before those of the command line, which therefore win."""
    at = next((i for i, word in enumerate(argv) if word == "--config" or word.startswith("--config=")), None)
    if at is None or not argv[1:]:
        return argv
    file = argv[at].partition("=")[2] or next(iter(argv[at + 1:]), "")
    depth = 0
    while commands := next((a for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None):
        if argv[depth] not in commands.choices:
            return argv  # argparse says what there is
        parser, depth = commands.choices[argv[depth]], depth + 1
    known = {name.lstrip("-"): action for action in parser._actions if action.dest not in ("help", "config")
             for name in action.option_strings}
    options: list[str] = []
    for key, value in params.load_yaml(Path(file)).items():
        action = known.get(key.replace("_", "-"))
        if action is None:
            raise UsageError(f"{file}: `{parser.prog}` has no option '{key}'{did_you_mean(key, known)}.")
        option, kind = action.option_strings[0], action.type or str
        several = action.nargs == "+" or isinstance(action, argparse._AppendAction)
        try:
            value = params.typed(key, value, bool if action.nargs == 0 else list[kind] if several else kind)
        except UsageError as error:
            raise UsageError(f"{file}: {error}.") from None
        if action.nargs == "+":
            options += [option, *map(str, value)]
        elif action.nargs == 0:
            options += [option] * value
        else:
            options += [f"{option}={one}" for one in (value if several else [value])]
    return [*argv[:depth], *options, *argv[depth:]]


def _check(args: argparse.Namespace) -> None:
    """Fill in the defaults that depend on the model, and refuse what cannot be, before torch is loaded."""
    embedded = args.model in names.EMBEDDED
    calibrating = args.command is not _evaluate
    args.corpus = args.corpus or ("embedded" if embedded else "c4" if calibrating else "wikitext2")
    if args.command is _finetune:
        args.nsamples = args.nsamples if args.nsamples is not None else 1600 if embedded else 30_000
        args.block = args.block if args.block is not None else 128 if embedded else 1024
    args.nsamples = args.nsamples if args.nsamples is not None else 32 if embedded else 128
    args.seqlen = args.seqlen if args.seqlen is not None else 128 if embedded else 2048
    _check_values(args)
    if args.command is _gradients:
        check_file(args.output)
    elif getattr(args, "output", None):
        check_folder(args.output)
    for name in ("results.csv", "zero_shot.csv") if getattr(args, "results", None) else ():
        _rows(check_file(Path(args.results, name)))


def _check_values(args: argparse.Namespace) -> None:
    """Refuse what the vocabulary does not allow."""
    values = {key: value for key, value in vars(args).items() if value is not None}
    for key, value in values.items():
        for item in value if isinstance(value, list) else [value]:
            if wrong := vocabulary.problem(key, item):
                raise UsageError(f"--{key.replace('_', '-')} {item} {wrong}.")
    if wrong := vocabulary.combination_problem(values):
        raise UsageError(f"{wrong[1]}.")


# ---------------------------------------------------------------- notebooks

def _run(args: argparse.Namespace) -> int:
    from prunekit.workbook import batch

    overrides = dict(params.parse_override(text) for text in args.set)
    if args.workers < 1:
        raise UsageError(f"--workers {args.workers}: give 1 or more.")
    if args.workers > 1:
        batch.share_cores(args.workers)
    run = batch.run_profile(args.profile, args.topics, overrides, force=args.force, workers=args.workers)
    check_folder(project.report_folder(args.profile))
    records = []
    for record in run:
        say(f"{record.topic:<17} {record.outcome:<8} {record.seconds:7.1f} s  {record.reason}".rstrip())
        records.append(record)
    from prunekit.workbook import site

    say(f"report: {site.render(args.profile)}")
    return int(any(record.outcome in ("failed", "skipped") for record in records))


def _figures(args: argparse.Namespace) -> int:
    from prunekit.workbook import redraw, site

    params.resolve_profile(args.profile)
    check_folder(project.report_folder(args.profile))
    counts: dict[str, int] = {}
    for figure in redraw.rebuild(args.profile, args.topics):
        say(f"{figure.topic:<17} {figure.name:<20} {figure.outcome}")
        counts[figure.outcome] = counts.get(figure.outcome, 0) + 1
    say(f"{sum(counts.values())} figures ({', '.join(f'{n} {outcome}' for outcome, n in counts.items()) or 'none drawn yet'}); "
        f"report: {site.render(args.profile)}")
    return 0


def _paper(args: argparse.Namespace) -> int:
    from prunekit.workbook import paper

    for section in paper.write(args.profile, Path(args.folder)):
        found = f"{len(section.files):3} figures and tables" if section.run else "no finished run"
        say(f"{section.topic:<17} {found}")
    say(f"paper: {Path(args.folder) / 'main.tex'}")
    return 0


def _explain(args: argparse.Namespace) -> int:
    from prunekit.metric.catalogue import resolve
    from prunekit.metric.rank import explain
    from prunekit.metric.tree import Tree

    method = resolve(Tree.from_json(args.tree) if args.tree.endswith(".json") else args.tree, args.group)
    if method.tree is None:
        raise UsageError(f"{method.name} scores inside its solver (w²/U_ii²), so it is no expression over W, G and X.")
    say(explain(method.tree, args.group))
    return 0


def _search(args: argparse.Namespace) -> int:
    from prunekit.search.commands import run_search

    (_check if hasattr(args, "model") else _check_values)(args)
    return run_search(args, say)


# ---------------------------------------------------------------- models

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


def _gradients(args: argparse.Namespace) -> int:
    _check(args)
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


def _evaluate(args: argparse.Namespace) -> int:
    text = args.zero_shot is None or args.corpus is not None
    _check(args)
    tasks = _tasks(args)
    if args.lora_weights:
        from prunekit.lora import adapter_folder, load_lora

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


def _finetune(args: argparse.Namespace) -> int:
    _check(args)
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
            "targets": " ".join(args.targets), **tuned.costs,
            **{f"{key}_{when}": row[key] for when, row in found.items() for key in ("ppl", "low", "high")}}


def _perplexity(args: argparse.Namespace, model: Any, tokenizer: Any, corpus: str, what: str = "") -> dict[str, Any]:
    import prunekit as pk

    row = pk.perplexity(model, _windows(args, tokenizer, "test", corpus), args.seqlen).row()
    say(f"{what}perplexity {row['ppl']:.4f} [{row['low']:.4f}, {row['high']:.4f}] on {corpus}, {row['windows']} windows of "
        f"{args.seqlen} tokens")
    return row


def _prune(args: argparse.Namespace) -> int:
    _check(args)
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
    manifest.write_atomic(target / "prunekit.json", json.dumps(row, indent=1, ensure_ascii=False) + "\n")
    say(f"model written to {target}")


def _rows(file: Path) -> list[pd.DataFrame]:
    """What a table of results holds already, if there is one."""
    import pandas as pd

    try:
        return [pd.read_csv(file)] if file.exists() else []
    except ValueError as error:  # pandas' own, and text in another encoding
        raise UsageError(f"{file} is no table that rows can be added to: move it away, or give another "
                         "--results.") from error


def _add_rows(file: Path, rows: pd.DataFrame | list[dict[str, Any]]) -> None:
    import pandas as pd

    frame = pd.DataFrame(rows)
    manifest.write_atomic(file, pd.concat([*_rows(file), frame]).to_csv(index=False))
    say(f"{len(frame)} row{'s' * (len(frame) > 1)} added to {file}")


if __name__ == "__main__":
    sys.exit(main())
