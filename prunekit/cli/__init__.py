"""The command line: `prunekit …`, also `python -m prunekit …`."""
from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunekit.cli import workbook
from prunekit.cli.models import run_evaluate, run_finetune, run_gradients, run_prune
from prunekit.cli.options import (
    TASKS,
    add_data_arguments,
    add_finetune_arguments,
    add_prune_arguments,
    add_task_arguments,
)
from prunekit.cli.search import add_search, run_explain, run_search
from prunekit.cli.workbook import run_figures, run_paper, run_profile
from prunekit.errors import UsageError, did_you_mean
from prunekit.files import writing_to
from prunekit.workbook import params


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prunekit", description="Symbolic pruning of language models.", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(command=function, name=name)
        return sub

    run = command("run", run_profile, "Run the notebooks of a profile that are not up to date, and render the report.")
    run.add_argument("profile", help="a folder of params/")
    run.add_argument("topics", nargs="*", metavar="TOPIC", help="only these notebooks and what they read from, as 03_baselines")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a parameter; may be repeated")
    run.add_argument("--force", action="store_true", help="run the notebooks even when they are up to date")
    run.add_argument("--workers", type=int, default=1, metavar="N", help="notebooks at a time, which share cores and memory")
    workbook.add_status(command("status", workbook.run_status, "Say what is fresh, stale (and why), missing or failed."))
    workbook.add_sweep(command("sweep", workbook.run_sweep, "Run notebooks over a grid of parameters, join their tables."))
    workbook.add_diff(command("diff", workbook.run_diff, "What changed between two executed runs."))
    workbook.add_verify(command("verify", workbook.run_verify, "Run a profile anew and compare every number in its tables."))
    record = command("record", workbook.run_record, "Put a profile's search tables into the package, where 04 and 05 show them.")
    record.add_argument("profile", nargs="?", default="study", help="a folder of params/ (default: study)")
    figures = command("figures", run_figures, "Draw the figures of a profile again from their CSVs alone, and render the report.")
    figures.add_argument("profile")
    figures.add_argument("topics", nargs="*", metavar="TOPIC", help="only those of these notebooks")
    paper = command("paper", run_paper, "Collect a profile's figures, tables and takeaways as LaTeX, with a main.tex that compiles.")
    paper.add_argument("folder", metavar="DIR", help="a new folder, or one that this command has written")
    paper.add_argument("--profile", default="embedded", help="a folder of params/ (default: embedded)")
    workbook.add_student(command("student", workbook.run_student, "Write a copy of the notebooks without solutions."))
    workbook.add_check(command("check", workbook.run_check, "Grade the exercises of students' copies."))
    add_prune_arguments(command("prune", run_prune, "Prune a model, evaluate it, and save it."))
    gradients = command("gradients", run_gradients, "Collect the gradients G (or the input norms) of a model and save them.")
    add_data_arguments(gradients)
    gradients.add_argument("--output", required=True, metavar="FILE", help="the .safetensors file to write")
    gradients.add_argument("--activations", action="store_true", help="norms of the layers' inputs instead of gradients")
    gradients.add_argument("--half", action="store_true", help="store float16, as published")
    explain = command("explain", run_explain, "What a metric is, how far it simplifies and why, and which metrics have the same masks.")
    explain.add_argument("tree", help="a name of the catalogue, an expression such as 'mul(W, sqrt(X))', or a JSON file")
    explain.add_argument("--group", default="row", help="what scores are compared within: row, layer or variant")
    add_search(command("search", run_search, "Evolve metrics: start, status, resume, export."), add_data_arguments)
    evaluate = command("evaluate", run_evaluate, "Perplexity of a model on a test text, and lm-eval's tasks, with intervals.")
    add_data_arguments(evaluate)
    evaluate.add_argument("--tasks", "--zero-shot", dest="zero_shot", nargs="?", const="", metavar="TASKS",
                          help=f"{TASKS}; without --corpus, nothing else")
    evaluate.add_argument("--results", metavar="DIR", help="add the tasks' rows to DIR/zero_shot.csv")
    evaluate.add_argument("--lora-weights", metavar="DIR", help="adapters of `finetune` or peft; masked if masks lie beside them")
    add_task_arguments(evaluate)
    add_finetune_arguments(command("finetune", run_finetune, "Fine-tune a pruned model with LoRA that keeps its zeros."))
    return parser


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
