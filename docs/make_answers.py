"""Writes what the recorded studies license into README.md and docs/study.md, between their marks.

`make docs` runs it, and a test says when they are stale: no sentence that compares is typed there.
"""
from __future__ import annotations

import re
from pathlib import Path
from textwrap import fill

from prunekit.evaluate.sentences import Claim
from prunekit.ledger import study
from prunekit.workbook.display import typeset

ROOT = Path(__file__).resolve().parents[1]
MARKS = "<!-- recorded: make docs -->\n", "<!-- end of recorded -->\n"


def bullets(said: list[Claim]) -> str:
    """As a list; no line breaks inside a formula, whose minus would begin a list, or before %."""
    whole = [re.sub("`[^`]*`| %", lambda found: found[0].replace(" ", "\0"), typeset(each.sentence))
             for each in said]
    return "\n".join(fill(f"- {each}", 110, subsequent_indent="  ", break_long_words=False,
                          break_on_hyphens=False) for each in whole).replace("\0", " ")


def pages() -> dict[Path, str]:
    """The pages as they should be."""
    said = {"README.md": [study.answer(name) for name in study.leading()],
            "docs/study.md": [each for name in study.studies() for each in study.sentences(name)]}
    made = {}
    for name, claims in said.items():
        head, _, rest = (ROOT / name).read_text(encoding="utf-8").partition(MARKS[0])
        made[ROOT / name] = f"{head}{MARKS[0]}\n{bullets(claims)}\n\n{MARKS[1]}{rest.partition(MARKS[1])[2]}"
    return made


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
