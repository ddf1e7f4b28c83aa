"""What a terminal says while units run: notebooks, the headings they are at, about how much time is left."""
from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from prunekit.errors import UsageError
from prunekit.workbook import manifest, params, project


def took(profile: str, topic: str) -> tuple[float, float] | None:
    """Seconds (with the kernel's start, if papermill has said so) and peak megabytes (0: not known) of a
    notebook's last finished run; else as params/PROFILE/expected.yaml says; None where nothing is known."""
    made, file = manifest.read(profile, topic), project.run_folder(profile, topic) / "executed.ipynb"
    if made is None:
        said = project.root() / "params" / profile / "expected.yaml"
        return params.load_yaml(said).get(topic) if said.exists() else None
    seconds = made["seconds"]
    with suppress(OSError, ValueError, KeyError):
        seconds = json.loads(file.read_text(encoding="utf-8"))["metadata"]["papermill"]["duration"]
    return seconds, made.get("memory_mb", 0)


def expected(unit: Any) -> tuple[float, float] | None:
    """Seconds and peak megabytes (0: not known) of a unit: as its run took, else as its notebook's own table
    says; None where nobody knows."""
    known = took(unit.profile, unit.topic)
    seconds = None if known else stated(unit.topic, unit.parameters)
    return (seconds, 0.0) if seconds else known


def stated(topic: str, parameters: Mapping[str, Any]) -> float | None:
    """Seconds that a notebook's own table says it takes; None where parameters are not its defaults."""
    declared = params.read_parameters(project.notebook(topic))
    first = project.cells(project.notebook(topic))[0]["source"]
    time = re.search(r"\| *([\d.]+) (s|min) *\|$", first, re.MULTILINE)
    if not time or any(value != declared[name].default for name, value in parameters.items()):
        return None
    return float(time[1]) * (60 if time[2] == "min" else 1)


def left(units: Sequence[Any], expected: Mapping[Any, float | None], spent: Mapping[Any, float],
         workers: int, done: Mapping[Any, float]) -> float | None:
    """Seconds until all of `units`, which are in an order of the graph, have ended; None if that is unknown.

    Whatever is larger: the work over the workers, or the longest chain of units that read from each other.
    Both in the time that this machine takes for what it has `done`, in seconds, of what was expected of it.
    """
    known = {unit: seconds for unit, seconds in done.items() if expected[unit]}
    pace = sum(known.values()) / sum(expected[unit] for unit in known) if known else 1.0
    ends: dict[Any, float] = {}
    work = 0.0
    for unit in units:
        if expected[unit] is None:
            return None
        rest = max(0.0, expected[unit] * pace - spent.get(unit, 0.0))
        ends[unit] = rest + max((ends.get(above, 0.0) for above in unit.upstream), default=0.0)
        work += rest
    return max([work / workers, *ends.values()])


def heading(folder: Path) -> str:
    """The heading above the cell that runs in the attempt at this folder; "" where none is known."""
    try:
        cells = project.cells(project.attempt_folder(folder) / ".executing.ipynb")
    except UsageError:  # it begins, or is being written
        return ""
    above = ""
    for cell in cells:
        if cell["cell_type"] == "markdown":
            above = (re.findall(r"^##+ (.+)$", cell["source"], re.MULTILINE) or [above])[-1]
        elif cell["metadata"].get("papermill", {}).get("status") == "running":
            return above
    return ""


def told(running: Iterable[Any], remaining: float | None) -> str:
    """03_baselines · Perplexity, 04_gp_search · 3 Run, about 5 min left."""
    said = [f"{unit.topic} · {heading(unit.folder)}".removesuffix(" · ") for unit in running]
    if remaining is not None:
        said.append(f"about {remaining / 60:.0f} min left" if remaining > 60 else "a minute left, or less")
    return ", ".join(said)


class Bar:
    """A bar on a terminal that asks every two seconds what is going on. A context manager."""

    def __init__(self, total: int, describe: Callable[[], str], shown: bool):
        self._describe, self._over, self._free = describe, threading.Event(), threading.Lock()
        self._bar = tqdm(total=total, bar_format="{n}/{total} |{bar:10}| {elapsed} {desc}", leave=False,
                         disable=None if shown else True)
        self._teller = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> Self:
        if not self._bar.disable:
            self._teller.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        if self._teller.is_alive():
            self._teller.join()
        self._bar.close()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Out of the way of what is printed meanwhile; then one further."""
        with self._free:
            self._bar.clear()
            yield
            self._bar.update()

    def _tell(self) -> None:
        while not self._over.wait(2.0):
            said = self._describe()
            with self._free:
                self._bar.set_description_str(said)
