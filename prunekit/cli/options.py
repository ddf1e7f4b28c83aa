"""What the commands that touch a model can be asked for, and what they refuse before torch is loaded."""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit import choices
from prunekit.errors import UsageError
from prunekit.files import check_file, check_folder
from prunekit.workbook import checks

if TYPE_CHECKING:
    import pandas as pd

TASKS = "lm-eval's tasks, separated by commas (default: the papers' seven; for embedded models the package's seven)"


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
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


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--limit", type=float, help="only the first documents of each task (a number, or a share below 1)")
    add("--num-fewshot", type=int, default=0, help="worked examples before each question")
    add("--batch-size", type=int, default=32, help="questions at a time")
    add("--datasets", action="append", default=[], metavar="NAME=FOLDER", help="a task's data set (or hub id) from this disk")
    add("--include-path", metavar="DIR", help="a folder of lm-eval YAML tasks of your own")
    add("--allow-code", action="store_true", help="also tasks that run code")


def add_prune_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser)
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
    add("--zero-shot", nargs="?", const="", metavar="TASKS", help=TASKS)
    add_task_arguments(parser)
    add("--results", metavar="DIR", help="add a row to DIR/results.csv, and the tasks' to DIR/zero_shot.csv")
    add("--save-model", metavar="DIR", help="write the pruned model, its tokenizer and prunekit.json")


def add_finetune_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser)
    add = parser.add_argument
    add("--output", required=True, metavar="DIR", help="where adapters, masks and checkpoints go; the same call again goes on "
                                                       "after a kill")
    add("--save-model", metavar="DIR", help="write the merged model, its tokenizer and prunekit.json")
    add("--block", type=int, help="tokens per training window (default: 128 for embedded models, else 1024)")
    add("--target-modules", nargs="+", default=["query-value"], metavar="NAME", help="linear layers as q_proj, query-value, or all-linear")
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


def check_options(args: argparse.Namespace) -> None:
    """Fill in the defaults that depend on the model, and refuse what cannot be, before torch is loaded."""
    embedded = args.model in choices.EMBEDDED
    calibrating = args.name != "evaluate"
    args.corpus = args.corpus or ("embedded" if embedded else "c4" if calibrating else "wikitext2")
    if args.name == "finetune":
        args.nsamples = args.nsamples if args.nsamples is not None else 1600 if embedded else 30_000
        args.block = args.block if args.block is not None else 128 if embedded else 1024
    args.nsamples = args.nsamples if args.nsamples is not None else 32 if embedded else 128
    args.seqlen = args.seqlen if args.seqlen is not None else 128 if embedded else 2048
    check_values(args)
    if args.name == "gradients":
        check_file(args.output)
    elif getattr(args, "output", None):
        check_folder(args.output)
    for name in ("results.csv", "zero_shot.csv") if getattr(args, "results", None) else ():
        stored_rows(check_file(Path(args.results, name)))


def check_values(args: argparse.Namespace) -> None:
    """Refuse what the vocabulary does not allow."""
    values = {key: value for key, value in vars(args).items() if value is not None}
    for key, value in values.items():
        for item in value if isinstance(value, list) else [value]:
            if wrong := checks.problem(key, item):
                raise UsageError(f"--{key.replace('_', '-')} {item} {wrong}.")
    if wrong := checks.combination_problem(values):
        raise UsageError(f"{wrong[1]}.")


def stored_rows(file: Path) -> list[pd.DataFrame]:
    """What a table of results holds already, if there is one."""
    import pandas as pd

    try:
        return [pd.read_csv(file)] if file.exists() else []
    except ValueError as error:  # pandas' own, and text in another encoding
        raise UsageError(f"{file} is no table that rows can be added to: move it away, or give another "
                         "--results.") from error
