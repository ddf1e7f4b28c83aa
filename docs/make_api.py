"""Writes docs/api.md: every public name of `prunekit`, its signature and the first lines of its docstring.

`make docs` runs it, and a test says when the page is stale. griffe reads the sources without running them.
"""
from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path
from textwrap import fill

import griffe

import prunekit

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# API

Every public name of [prunekit](../README.md), from the docstrings by `make docs`. Only the first lines stand
here; `help(pk.prune)` shows the rest: equations, shapes, units, errors, sources. Results such as `Report` or
`Perplexity` are documented where they are made.
"""


def signature(thing: griffe.Object, name: str) -> str:
    """As in the source, without the implied first argument, broken between arguments."""
    if thing.is_attribute:
        return f"{name}: {thing.annotation}" if thing.annotation else f"{name} = {thing.value}"
    text = re.sub(r"\((?:self|cls)(?:, )?", "(", thing.signature(name=name) or name)
    text = re.sub(r"Annotated\[(\w+(?:\[[^]]*\])?), Field\([^()]*\)\]", r"\1", text)  # bounds say themselves
    words = re.sub(r"(?<!,) | (?=[^\[]*\])", "\0", text)  # only blanks between arguments are left to break at
    lines = fill(words, 110, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return lines.replace("\0", " ")


def first_lines(thing: griffe.Object) -> str:
    return " ".join(thing.docstring.value.split("\n\n")[0].split()) if thing.docstring else ""


def entry(thing: griffe.Object) -> str:
    """Heading, signature, first lines, and the public methods and properties of a class."""
    file = thing.filepath.relative_to(ROOT).as_posix()
    word = "class " if thing.is_class else ""
    heading = thing.name.replace("__", r"\_\_")  # else bold
    lines = [f"### {heading}\n", f"```python\n{word}{signature(thing, thing.name)}\n```\n",
             f"{first_lines(thing)} [`{file}`](../{file})\n".lstrip()]
    if thing.is_class:
        lines += [f"- `{' '.join(signature(member, f'.{name}').split())}`: {first_lines(member)}"
                  for name, member in thing.members.items() if member.docstring and not name.startswith("_")]
    return "\n".join(lines).rstrip() + "\n"


def page() -> str:
    package = griffe.load("prunekit", search_paths=[ROOT], allow_inspection=False)
    homes = prunekit._PUBLIC
    places = [f"{homes[name]}.{name}" if name in homes else name for name in prunekit.__all__]
    rooms = groupby(places, key=lambda place: place.partition(".")[0] if "." in place else "prunekit")
    return "\n".join([HEAD, *(part for room, members in rooms
                              for part in (f"## {room}\n", *(entry(package[place]) for place in members)))])


if __name__ == "__main__":
    (ROOT / "docs" / "api.md").write_text(page(), encoding="utf-8")
