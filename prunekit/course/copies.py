"""The student's copy: the notebooks without solutions, and what somebody wrote into them."""
from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

from prunekit.errors import UsageError
from prunekit.files import replacing
from prunekit.workbook import manifest, project
from prunekit.workbook.project import cells, tagged

_GRADED = re.compile(r"\bgrade\((\d+),")
MARKER = "student.json"  # makes a copy a project of its own, wherever the package is
_HANDED_OUT = """# The course

JupyterLab of the environment that prunekit is installed in opens these notebooks: `jupyter lab notebooks`.
Work through them in order; the lessons are complete, the exercises at their ends are yours. An answer
replaces the three dots in `answer_1 = ...`, or below `def answer_5(...):`; the cell after it says whether it
is right.

`prunekit check .` grades all of them in one go, `prunekit check . --profile smoke` the same in less time.
Results lie in `runs/`, and `prunekit run embedded` here renders them as pages.
"""


def write_copy(folder: Path) -> list[str]:
    """Write the notebooks without solutions and outputs, and the parameter files, to a folder; their topics.

    The copy is a project of its own: started anywhere inside it, notebooks and commands use it. It appears
    whole or not at all. Raises UsageError if there is something in the folder already.
    """
    folder = Path(folder).expanduser().resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an empty folder: give the copy a new one.")
    topics = project.topics()
    with replacing(folder) as inside:
        for topic in topics:
            lesson = [cell | {"source": cell["source"].replace(" Solutions are folded.", "")}
                      for cell in cells(project.notebook(topic)) if not tagged(cell, "solution")]
            write_notebook(inside / "notebooks", topic, lesson)
        shutil.copytree(project.root() / "params", inside / "params")
        (inside / "README.md").write_text(_HANDED_OUT, encoding="utf-8")
        made = {"made by": "prunekit student", "on": time.strftime("%Y-%m-%d"),
                **manifest.versions(), **manifest.commit()}
        (inside / MARKER).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return topics


def write_notebook(folder: Path, topic: str, lesson: list[dict[str, Any]]) -> None:
    """The project's notebook of that topic with other cells, without outputs."""
    notebook = json.loads(project.notebook(topic).read_text(encoding="utf-8"))
    empty = {"outputs": [], "execution_count": None}
    notebook["cells"] = [cell | empty if cell["cell_type"] == "code" else cell for cell in lesson]
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(notebook, indent=1, ensure_ascii=False)
    (folder / f"{topic}.ipynb").write_text(text + "\n", encoding="utf-8")


def answers(path: Path) -> dict[int, str]:
    """What a student wrote: number -> all code between question and check, in however many cells."""
    written, pending = {}, []
    for cell in cells(path) if path.is_file() else []:
        if tagged(cell, "exercise"):
            pending = []
        elif tagged(cell, "check"):
            if call := _GRADED.search(cell["source"]):
                written[int(call[1])] = "\n\n".join(pending)
            pending = []
        elif cell["cell_type"] == "code":
            pending.append(cell["source"])
    return written
