"""The command line: `prunekit …`, also `python -m prunekit …`."""
from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import prunekit.cli.workbook  # isort: skip  (the modules declare the commands, in the order of the help)
import prunekit.cli.models  # isort: skip
import prunekit.cli.search  # noqa: F401  # isort: skip
from prunekit.cli.options import COMMANDS, described
from prunekit.errors import UsageError, did_you_mean, told
from prunekit.files import writing_to
from prunekit.workbook import checks, params

DESCRIPTION = "Symbolic pruning of language models."
GROUPS = {"models": "Bring a real model: get.", "search": "Evolve metrics: start, status, resume, export."}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, 1 when a notebook failed, 2 when something asked for cannot be done."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser(argv).parse_args(argv)
        with writing_to():
            return args.command(args)
    except BrokenPipeError:  # `head`, say, has read enough: what is left is not flushed at the end either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (UsageError, RuntimeError) as error:
        if (sentence := told(error)) is None:
            raise
        sys.stderr.write(f"prunekit: {sentence}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("prunekit: stopped\n")
        return 130


def _parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser; the defaults of the command in `argv` are those of its `--config FILE`."""
    parser = argparse.ArgumentParser("prunekit", description=DESCRIPTION, allow_abbrev=False)
    groups = {"": parser.add_subparsers(required=True, metavar="COMMAND")}
    for name, (function, options) in COMMANDS.items():
        group, _, last = name.rpartition(" ")
        if group not in groups:
            text = GROUPS[group]
            above = groups[""].add_parser(group, help=text, description=text, allow_abbrev=False)
            groups[group] = above.add_subparsers(required=True, metavar="ACTION")
        text = function.__doc__.partition("\n")[0]
        own = groups[group].add_parser(last, help=text, description=text, allow_abbrev=False)
        for names, settings in described(name, options):
            own.add_argument(*names, **settings)
        own.set_defaults(command=function, name=name)
        if " ".join(argv[:1 + bool(group)]) == name:
            _configure(own, argv)
    return parser


def _configure(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """The options of `--config FILE` as the defaults of a command: what the command line says wins."""
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    reader.add_argument("--config", metavar="FILE")
    known = {name.lstrip("-"): action for action in parser._actions for name in action.option_strings
             if action.dest not in ("help", "config")}
    file = reader.parse_known_args(argv)[0].config
    for key, value in params.load_yaml(Path(file)).items() if file else ():
        action = known.get(key.replace("_", "-"))
        if action is None:
            raise UsageError(f"{file}: `{parser.prog}` has no option '{key}'{did_you_mean(key, known)}.")
        row = checks.ROWS.get(action.dest)
        kind = bool if action.nargs == 0 else Any if row and row.annotation is Any else action.type or str
        kind = list[kind] if action.nargs == "+" or isinstance(action, argparse._AppendAction) else kind
        try:
            value = checks.typed(key.replace("-", "_"), value, kind, params.yaml_hint)
        except UsageError as error:
            raise UsageError(f"{file}: {error}") from None
        action.default, action.required = value, False
