"""What recipes that measure share: a command line made of their parameters, and what every row says."""
from __future__ import annotations

import argparse
import inspect
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch

from prunekit import data
from prunekit.errors import UsageError, told
from prunekit.models import fingerprint
from prunekit.workbook.manifest import machine
from prunekit.workbook.protocol import label

SAID = {"model": "a name or directory, as for load_model", "output": "the CSV file",
        "corpus": "of all windows: a known corpus, a file or a folder", "seqlen": "tokens a window",
        "calibration": "windows for X", "gradient": "windows for G", "seed": "of the windows",
        "threads": "of torch"}


def command(recipe: Callable[..., object], threads: int, arguments: Sequence[str] | None = None, **said: str
            ) -> None:
    """Call a recipe with what its command line says: its parameters are the options, all but `progress`, and
    `--threads` of torch (default: threads). said: help of the options."""
    parser = argparse.ArgumentParser(f"python -m recipes.{recipe.__name__}",
                                     description=sys.modules[recipe.__module__].__doc__.partition("\n")[0])
    kinds = get_type_hints(recipe) | {"threads": int}
    defaults = {name: each.default for name, each in inspect.signature(recipe).parameters.items()}
    for name, default in (defaults | {"threads": threads}).items():
        if name != "progress":
            text, required = (SAID | said).get(name, ""), default is inspect.Parameter.empty
            kind = ({"nargs": "+"} if kinds[name] == Sequence[str] else
                    {"type": next(iter(get_args(kinds[name])), kinds[name])})  # of `Path | None` the first
            kind |= {"required": True} if required else {"default": default}
            parser.add_argument(f"--{name.replace('_', '-')}", **kind,
                                help=text if required else f"{text} (default: %(default)s)")
    asked = vars(parser.parse_args(arguments))
    torch.set_num_threads(asked.pop("threads"))
    try:
        recipe(**asked)
    except (UsageError, RuntimeError) as error:
        if (sentence := told(error)) is None:
            raise
        parser.error(sentence)


def columns(model: str, corpus: str, dtype: str, seed: int) -> dict[str, Any]:
    """What was measured, when and where, for every row; content tells corpora of one name apart."""
    return {"model": label(model), "weights": fingerprint(model), "corpus": Path(corpus).name,
            "content": data.fingerprint(corpus), "dtype": dtype, "seed": seed,
            "recorded": time.strftime("%Y-%m-%d"), "machine": machine()}
