"""What changed between two executed runs: how they were made, code and what it shows (by nbdime), numbers."""
from __future__ import annotations

import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import nbformat

from prunekit.batch.verify import compare_tables
from prunekit.errors import UsageError, did_you_mean
from prunekit.workbook import manifest, project

_MADE = ("machine", "device", "threads", "commit", "dirty", "notebook")


class Difference:
    """The difference between two runs, given as PROFILE/TOPIC, run folders or notebooks.

    Attributes: names; made: (what, then, now) of parameters, versions and circumstances; changes: of cells,
    as nbdime has them; numbers: how many numbers in tables were compared; mismatches: those that differ.
    """

    def __init__(self, first: str, second: str):
        from nbdime.diffing.notebooks import diff_notebooks, set_notebook_diff_targets

        files = [_executed(name) for name in (first, second)]
        self.names = [project.relative(file) for file in files]
        self._before, after = (_essential(file) for file in files)
        set_notebook_diff_targets(attachments=False, metadata=False, identifier=False, details=False)
        self.changes = diff_notebooks(self._before, after)
        self.made = _made(*(manifest.there(file.parent) for file in files))
        self.numbers, self.mismatches = compare_tables(*(file.parent for file in files))

    @property
    def same(self) -> bool:
        return not (self.made or self.changes or self.mismatches)

    def text(self, color: bool = False) -> str:
        from nbdime.prettyprint import PrettyPrintConfig, pretty_print_notebook_diff

        lines = [f"{what}: {then} → {now}" for what, then, now in self.made]
        if self.mismatches:
            lines.append(f"{len(self.mismatches)} places in tables differ ({self.numbers} numbers compared)")
        lines += [f"{mismatch.place}: {mismatch.then} → {mismatch.now}" for mismatch in self.mismatches]
        out = io.StringIO()
        config = PrettyPrintConfig(out, use_color=color, use_git=False, use_diff=False)
        pretty_print_notebook_diff(*self.names, self._before, self.changes, config)
        return "\n".join([*lines, out.getvalue().rstrip()]).strip()


# ---------------------------------------------------------------- what is compared

def _executed(name: str) -> Path:
    """An .ipynb file, a run's folder, or PROFILE/TOPIC."""
    path, runs = Path(name).expanduser(), project.root() / "runs"
    if path.is_file() and path.suffix == ".ipynb":
        return path
    for file in (folder / f"{end}.ipynb" for folder in (path, runs / name) for end in ("executed", "failed")):
        if file.is_file():
            return file
    known = [file.parent.relative_to(runs).as_posix() for file in runs.glob("*/*/executed.ipynb")]
    raise UsageError(f"{name} is no executed run{did_you_mean(name, known)}: give PROFILE/TOPIC as "
                     "smoke/03_baselines, a run's folder, or an .ipynb file.")


def _made(then: dict[str, Any] | None, now: dict[str, Any] | None) -> list[tuple[str, Any, Any]]:
    if not (then and now):
        return []
    groups = [("", {key: then.get(key) for key in _MADE}, {key: now.get(key) for key in _MADE})]
    groups += [(kind, then.get(kind, {}), now.get(kind, {}))
               for kind in ("parameters", "versions", "inputs", "modules")]
    return [(f"{kind} {key}".strip(), _short(a.get(key)), _short(b.get(key))) for kind, a, b in groups
            for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key) and key != "profile"]


def _short(value: Any) -> Any:
    return value[:12] if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{40,}", value) else value


def _essential(file: Path) -> Any:
    """A notebook with what a person would compare: no progress, no times of cells; of a picture a hash."""
    try:
        notebook = nbformat.read(file, as_version=4)
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as a notebook: {error}.") from None
    if manifest.there(file.parent):  # which names all parameters
        notebook.cells = [cell for cell in notebook.cells
                          if "injected-parameters" not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata.get("tags", [])}
        if cell.cell_type == "code":
            cell.outputs = list(filter(None, map(_plain, cell.outputs)))
    return notebook


def _plain(output: Any) -> Any:
    if output.output_type == "stream":
        return output if output.name == "stdout" else None
    if 'class="pk-banner"' in output.get("data", {}).get("text/html", ""):
        return None  # versions and times, which manifests hold
    if output.output_type == "error":
        return nbformat.v4.new_output("stream", text=f"{output.ename}: {output.evalue}\n")
    text = output.data.get("text/plain", "")
    if "<img" in output.data.get("text/html", "") or any(kind.startswith("image/") for kind in output.data):
        content = json.dumps(output.data, sort_keys=True).encode()
        text += f"\n[picture {hashlib.sha256(content).hexdigest()[:8]}]"
    # A table's padding depends on its longest row.
    text = re.sub(r"^ +| +$", "", re.sub(r" {2,}", " ", text), flags=re.MULTILINE)
    return nbformat.v4.new_output("display_data", {"text/plain": text})
