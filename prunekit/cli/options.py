"""How a command is declared, and what is refused before torch is loaded."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit import choices
from prunekit.errors import UsageError
from prunekit.files import check_file, check_folder
from prunekit.workbook import checks

if TYPE_CHECKING:
    import pandas as pd

Option = tuple[tuple[str, ...], dict[str, Any]]
COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], int], tuple[str | Option, ...]]] = {}


def command(name: str, *options: str | Option) -> Callable:
    """Declare a command: its name ("search start" is one of a group) and options, which `argument` describes
    or `checks.ROWS` holds (a text names several). The function's docstring is the help."""
    def declare(function: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
        COMMANDS[name] = function, options
        return function
    return declare


def argument(*flags: str, **settings: Any) -> Option:
    """As for argparse's `add_argument`."""
    return flags, settings


def flags(**words: str) -> list[Option]:
    """Options that are on when they are given."""
    return [argument(dashed(name), action="store_true", help=text) for name, text in words.items()]


def dashed(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def sizes(command: str) -> dict[str, tuple[int, int]]:
    """Defaults of embedded models, and of others."""
    tuning = {"nsamples": (1600, 30_000)} if command == "finetune" else {}
    return {"nsamples": (32, 128), "seqlen": (128, 2048), "block": (128, 1024)} | tuning


def described(command: str, options: tuple[str | Option, ...]) -> Iterator[Option]:
    """All options of a command as `add_argument` takes them; type, default and help from the rows."""
    defaults = sizes(command)
    for option in options:
        if not isinstance(option, str):
            yield option
            continue
        for name in option.split():
            row = checks.ROWS[name]
            settings = {"help": row.description, "required": row.is_required()}
            if name in defaults:
                settings["help"] += " (default: {} for embedded models, else {})".format(*defaults[name])
            if row.annotation is bool:
                settings |= {"action": "store_true"}
            elif choices.entry(row.annotation):
                settings |= {"nargs": "+", "default": list(row.default)}
            else:
                kind = str if row.annotation is Any else row.annotation
                settings |= {"type": kind, "default": None if row.is_required() else row.default}
            yield argument(dashed(name), **settings)


DATA = (argument("--config", metavar="FILE", help="JSON or YAML with any of these; the command line wins"),
        "model corpus windows roles bos nsamples seqlen test_windows seed norm scale dtype device",
        argument("--cache-dir", metavar="DIR", help="where downloads are kept"))


def check_options(args: argparse.Namespace) -> None:
    """Fill in the defaults that depend on the model, and refuse what cannot be, before torch is loaded."""
    embedded = args.model in choices.EMBEDDED
    other = "wikitext2" if args.name == "evaluate" else "c4"
    args.corpus = args.corpus or ("embedded" if embedded else other)
    for key, (small, large) in sizes(args.name).items():
        if getattr(args, key, 0) is None:
            setattr(args, key, small if embedded else large)
    check_values(args)
    if args.name == "gradients":
        check_file(args.output)
    elif getattr(args, "output", None):
        check_folder(args.output)
    for name in ("results.csv", "zero_shot.csv") if getattr(args, "results", None) else ():
        stored_rows(check_file(Path(args.results, name)))


def check_values(args: argparse.Namespace) -> None:
    """Refuse what the rows do not allow."""
    values = {key: value for key, value in vars(args).items() if value is not None}
    for key, value in values.items():
        for item in value if isinstance(value, list) else [value]:
            if wrong := checks.problem(key, item):
                raise UsageError(f"{dashed(key)} {item} {wrong}.")
    if wrong := checks.together(values):
        raise UsageError(wrong[1])


def stored_rows(file: Path) -> list[pd.DataFrame]:
    """What a table of results holds already, if there is one: as text, so that it is written as it was."""
    import pandas as pd

    try:
        return [pd.read_csv(file, dtype=str, keep_default_na=False)] if file.exists() else []
    except ValueError as error:  # pandas' own, and text in another encoding
        raise UsageError(f"{file} is no table that rows can be added to: move it away, or give another "
                         "--results.") from error


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
