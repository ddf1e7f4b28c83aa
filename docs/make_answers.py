"""Writes what the recorded studies license into README.md and docs/study.md, between their marks.

`make docs` runs it, and a test says when they are stale: no sentence that compares is typed there.
"""
from __future__ import annotations

import re
from pathlib import Path
from textwrap import fill

from prunekit.ledger import study
from prunekit.workbook.display import typeset

ROOT = Path(__file__).resolve().parents[1]
MARKS = "<!-- recorded: make docs -->\n", "<!-- end of recorded -->\n"


def wrapped(text: str, first: str = "") -> str:
    """Lines of 110; no break inside a formula, whose minus would begin a list, or before %."""
    whole = re.sub("`[^`]*`| %", lambda found: found[0].replace(" ", "\0"), typeset(text))
    return fill(first + whole, 110, subsequent_indent=" " * len(first), break_long_words=False,
                break_on_hyphens=False).replace("\0", " ")


def answered(name: str) -> str:
    """What the searches of a study found: a sentence, its numbers as a table, and how they were measured."""
    (said, read), numbers = study.found(name), study.beside(name).rename(columns=study.BESIDE)
    aligned = ["---"] * (numbers.shape[1] - 3) + ["---:", "---:", "---"]
    rows = ["| " + " | ".join(row) + " |" for row in (numbers.columns, aligned, *numbers.to_numpy())]
    return "\n\n".join([wrapped(said.sentence), "\n".join(rows), wrapped(f"{read[0].upper()}{read[1:]}.")])


def pages() -> dict[Path, str]:
    """The pages as they should be."""
    every = [each.sentence for name in study.studies() for each in study.sentences(name)]
    said = {"README.md": "\n\n".join(map(answered, study.leading())),
            "docs/study.md": "\n".join(wrapped(each, "- ") for each in every)}
    made = {}
    for name, text in said.items():
        head, first, rest = (ROOT / name).read_text(encoding="utf-8").partition(MARKS[0])
        _, last, rest = rest.partition(MARKS[1])
        if not (first and last):
            raise SystemExit(f"{name} lacks one of the marks {' and '.join(MARKS)}: put it back.")
        made[ROOT / name] = f"{head}{MARKS[0]}\n{text}\n\n{MARKS[1]}{rest}"
    return made


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
