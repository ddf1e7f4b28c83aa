"""Where things are: the project's root, its notebooks, the graph between them, and the folders of a run.

A run is made in TOPIC.attempt, beside the last finished one in TOPIC, and takes its place when it is finished
itself: at `run.finish()`, or under `prunekit run` after the last cell. Readers know TOPIC only. What a run
that failed or was interrupted leaves stays until the next one begins, which goes on from its journals.
"""
from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

import prunekit
from prunekit.errors import UsageError, did_you_mean
from prunekit.files import lock, read_json

# Which notebooks a notebook reads from. The only statement of the order of things.
GRAPH: dict[str, tuple[str, ...]] = {
    "01_data": (),
    "02_gradients": ("01_data",),
    "03_baselines": ("01_data", "02_gradients"),
    "04_gp_search": ("01_data", "02_gradients"),
    "05_tree_analysis": ("01_data", "04_gp_search"),
    "06_zero_shot": ("01_data", "02_gradients", "04_gp_search"),
    "07_lora": ("01_data", "02_gradients", "04_gp_search"),
}

# What a notebook may hold otherwise than one it reads from: a metric that was searched at some targets is
# measured at others.
ITS_OWN = frozenset({"profile", "targets"})


def root() -> Path:
    """PRUNEKIT_HOME, else the student's copy around here, else the parent of the package, else the nearest
    ancestor of here that holds notebooks/."""
    home, here = os.environ.get("PRUNEKIT_HOME"), Path.cwd().resolve()
    beside = Path(prunekit.__file__).resolve().parents[1]
    around = [here, *here.parents]
    copies = [folder for folder in around if (folder / "student.json").is_file()]  # see course/copies.py
    for folder in [Path(home).resolve()] if home else [*copies, beside, *around]:
        if (folder / "notebooks").is_dir():
            return folder
    where = f"PRUNEKIT_HOME={home}" if home else f"neither {beside} nor any folder above {here}"
    raise UsageError(f"No workbook found: {where} holds no notebooks/ folder; set PRUNEKIT_HOME to a clone.")


def relative(path: Path) -> str:
    """A path as a person would type it: from the project's root if it lies inside, else as it was given."""
    try:
        return str(Path(path).resolve().relative_to(root()))
    except ValueError:  # outside the project (or, a UsageError too, there is none)
        return str(path)


def topics() -> list[str]:
    """The notebooks that exist, in the order of the graph."""
    return [topic for topic in GRAPH if notebook(topic, must_exist=False).is_file()]


def notebook(topic: str, must_exist: bool = True) -> Path:
    path = root() / "notebooks" / f"{topic}.ipynb"
    if must_exist and not (topic in GRAPH and path.is_file()):
        raise UsageError(f"There is no notebook '{topic}'{did_you_mean(topic, topics())}.")
    return path


def named(words: Iterable[str]) -> list[str]:
    """The notebooks that words name, each whole or as far as one alone so begins (`03`); of no word, all.

    Raises UsageError on a word that names none.
    """
    known, found = topics(), []
    for word in words:
        fits = [topic for topic in known if word and topic.startswith(word)]
        found.append(fits[0] if len(fits) == 1 else word)
        notebook(found[-1])
    return found or known


def upstream(topic: str) -> list[str]:
    """The existing notebooks that `topic` reads from directly."""
    return [other for other in GRAPH[topic] if notebook(other, must_exist=False).is_file()]


def closure(wanted: list[str]) -> list[str]:
    """The wanted notebooks and everything they build on, in order."""
    needed = set()
    for topic in reversed(list(GRAPH)):
        if topic in wanted or any(topic in GRAPH[other] for other in needed):
            needed.add(topic)
    return [topic for topic in topics() if topic in needed]


def run_folder(profile: str, topic: str) -> Path:
    """Where the last finished run of a notebook is."""
    return root() / "runs" / profile / topic


def attempt_folder(run: Path) -> Path:
    """Where the run is made, failed or was interrupted that would take the place of this one."""
    return run.with_name(f"{run.name}.attempt")


def begin(run: Path) -> None:
    """Make the folder of a new attempt, with the journals of the one before it, or else of the finished run.

    Raises UsageError while `prunekit run` is at that run.
    """
    attempt = attempt_folder(run)
    mend(run)
    if (attempt / "log.txt").exists():
        with open(attempt / "log.txt", "rb") as log:
            lock(log.fileno(), f"`prunekit run` is making {relative(run)} now: wait for it, or stop it.")
    if not attempt.is_dir():
        attempt.mkdir(parents=True)
        for journal in run.glob("*.jsonl"):
            shutil.copy(journal, attempt)
    for path in attempt.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.suffix not in (".jsonl", ".jsonl~"):
            path.unlink()
    (attempt / "running.json").write_text(json.dumps({"id": "", "process": os.getpid()}))


def take_place(run: Path) -> None:
    """Put the finished attempt in the place of the run; `mend` ends it after a kill."""
    before = run.with_name(f".{run.name}.old")
    (attempt_folder(run) / "running.json").unlink()
    shutil.rmtree(before, ignore_errors=True)
    if run.exists():
        run.rename(before)
    with suppress(FileNotFoundError):  # a reader has done it
        attempt_folder(run).rename(run)
    shutil.rmtree(before, ignore_errors=True)


def mend(run: Path) -> None:
    """Put a finished attempt in its place if `take_place` was killed half way."""
    if run.with_name(f".{run.name}.old").exists() and not run.exists():
        with suppress(OSError):
            attempt_folder(run).rename(run)


def report_folder(profile: str) -> Path:
    return root() / "reports" / profile


def profiles() -> list[str]:
    return sorted(path.parent.name for path in (root() / "params").glob("*/common.yaml"))


def cells(path: Path) -> list[dict[str, Any]]:
    """The cells of a notebook, each source as one text; UsageError if it cannot be read as one."""
    try:
        content = read_json(path.read_text(encoding="utf-8"))
        return [{**cell, "source": "".join(cell["source"])} for cell in content["cells"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{relative(path)} cannot be read as a notebook.") from None


def tagged(cell: Mapping[str, Any], tag: str) -> bool:
    return tag in cell.get("metadata", {}).get("tags", [])


def lesson(topic: str) -> list[dict[str, Any]]:
    """The cells of a notebook before its exercises."""
    return list(takewhile(lambda cell: not tagged(cell, "exercise"), cells(notebook(topic))))


def title(topic: str) -> tuple[str, str]:
    """The notebook's H1 without its number, and the paragraph below it."""
    text = next((cell["source"] for cell in cells(notebook(topic)) if cell["cell_type"] == "markdown"), "")
    heading = re.search(r"^# (?:\d+\s*[·.:-]?\s*)?(.+)$", text, re.MULTILINE)
    blocks = re.split(r"\n\s*\n", re.sub(r"^#.*$", "\n", text, flags=re.MULTILINE).strip())
    prose = next((block.strip() for block in blocks if not block.lstrip().startswith(("|", "<", "-"))), "")
    return heading[1] if heading else topic, re.sub(r"[*_`]|\$|\[([^]]*)\]\([^)]*\)", r"\1", prose)
