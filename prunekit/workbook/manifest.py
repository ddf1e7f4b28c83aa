"""What a finished run says about itself, and whether that still holds.

A manifest is written last and in one step, so a run that was killed has none, and the run before it stays. A
run is fresh when the parameters, the lesson's code, the prunekit modules it imported, its model and corpora,
and what it read from other runs are all as its manifest says.

Its fields, all that a page about a run needs: `id`, `topic`, `profile`, `notebook` (its lesson's hash);
`parameters`; `versions` of Python and packages; `commit` and `dirty` of the clone; `machine`, `device`,
`threads`, `seed`; `started`, `finished`, `seconds`; `log`, a path from the project's root (null outside
`prunekit run`); `modules`, the modules of this package that were imported, with hashes; `inputs`,
fingerprints of models, texts and data; `loaded`, what was read from other runs ("topic/name") with
hashes; `artifacts` by name ("tables/…", "figures/…" or plain): `kind`, `sha256` of the first of its `files`,
these with sizes, their `hashes`, `made by`, `caption`, `headline`, `result` (a table whose rows carry their
protocol); `takeaways`,
and of those `claims` (of each that compares: its template, table, rows of it, and how they are read, see
`evaluate.sentences`) and `answers` (what was measured of a known problem, by its number).
"""
from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import prunekit
from prunekit.choices import task_folders
from prunekit.errors import UsageError
from prunekit.files import file_hash, read_json
from prunekit.workbook import project

PACKAGE = Path(prunekit.__file__).resolve().parent
# Rooms that decide how a run is started and shown, not what it computes; and what computes in them anyhow.
_AROUND = re.compile(r"prunekit\.(workbook|ledger|batch|report|cli|course)\b")
_RESULTS = ("prunekit.workbook.run", "prunekit.workbook.protocol", "prunekit.ledger.published",
            "prunekit.ledger.study")
# Packages whose version can change a number.
_PACKAGES = ("torch", "transformers", "numpy", "scipy", "pandas", "datasets", "tokenizers", "accelerate",
             "peft", "lm_eval")
# What a module reads from the package beside its own source.
_DATA = {"prunekit.embedded.entities": "embedded/words.yaml",
         "prunekit.evaluate.harness": "embedded/lm_eval/*",
         "prunekit.ledger.study": "ledger/recorded/*/*", "prunekit.ledger.published": "ledger/published.csv"}
_LARGE = 1 << 22  # bytes; of an artifact's file that is larger, only the size is looked at until it is loaded


# ---------------------------------------------------------------- files and hashes

def lesson_code(topic: str) -> list[str]:
    """The lesson's code cells but the parameters cell, whose values are compared one by one; without the
    exercises behind its end, where a student writes answers."""
    return [cell["source"] for cell in project.lesson(topic)
            if cell["cell_type"] == "code" and not project.tagged(cell, "parameters")]


def notebook_hash(topic: str) -> str:
    return hashlib.sha256("\0".join(lesson_code(topic)).encode()).hexdigest()


def module_path(name: str) -> Path:
    path = PACKAGE.joinpath(*name.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def module_hashes(names: Iterable[str]) -> dict[str, str]:
    """Module name -> hash of its file and of the data that it reads from the package ("" when it is gone)."""
    def digest(name: str) -> str:
        files = [module_path(name), *(sorted(PACKAGE.glob(_DATA[name])) if name in _DATA else ())]
        hashes = [file_hash(path) for path in files if path.is_file()]
        return hashlib.sha256("".join(hashes).encode()).hexdigest() if hashes[1:] else "".join(hashes)

    return {name: digest(name) for name in sorted(names)}


def imported_modules() -> list[str]:
    """The modules of this package that the present process has imported and that can change a result."""
    return [name for name, module in sys.modules.items() if module is not None
            and name.startswith("prunekit.") and (name in _RESULTS or not _AROUND.match(name))]


@cache
def _read_once(fingerprint: Callable[[Any], str], name: str | Path, then: object) -> str:
    return fingerprint(name)


def _fingerprint(key: str, text: str) -> str:
    """Of the model or text that a parameter names; what is not on this disk may come within the process."""
    from prunekit import data, models

    reads = {"model": models.fingerprint, "other_models": models.fingerprint, "folders": data.content}
    read = reads.get(key.partition(" ")[0], data.fingerprint)
    try:
        then = data.stamp(models.locate(text) if read is models.fingerprint else text)
        return _read_once(read, text, then) if then else read(text)
    except UsageError:  # a model that is gone
        return ""


def inputs(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Fingerprints of the models, corpora, data sets, and files of windows and targets that parameters name.

    The embedded corpus has none: it is made by modules, and those that were used are known by name.
    """
    single = ("model", "corpus", "gradient_corpus", "test_corpus", "other_corpus")
    named = {key: parameters.get(key) for key in single} | {
        f"{key} {text}": text for key in ("test_corpora", "other_models") for text in parameters.get(key, ())}
    data_sets = task_folders(parameters.get("folders") or "")
    named |= {f"folders {task}": folder for task, folder in data_sets.items()}
    prints = {key: _fingerprint(key, text) for key, text in named.items()
              if text and text.partition(":")[0] != "embedded"}
    files = {"windows": parameters.get("windows") or ""} | {
        f"layer_targets {text}": text for text in parameters.get("layer_targets", ())}
    there = {key: Path(text).expanduser() for key, text in files.items() if text}
    return prints | {key: file_hash(file) for key, file in there.items() if os.path.isfile(file)}


def artifact_files(folder: Path, files: Iterable[str]) -> dict[str, Any]:
    """What a manifest says of an artifact's files, for `altered`."""
    hashes = {file: file_hash(folder / file) for file in files}
    return {"sha256": next(iter(hashes.values())), "hashes": hashes,
            "files": {file: (folder / file).stat().st_size for file in hashes}}


def altered(folder: Path, artifact: Mapping[str, Any]) -> list[str]:
    """Those of an artifact's files that are missing, or not what its run wrote."""
    from prunekit.data import stamp

    def intact(file: str, size: int) -> bool:
        then, path = artifact["hashes"][file], folder / file
        return path.is_file() and path.stat().st_size == size and (
            size > _LARGE or _read_once(file_hash, path, stamp(path)) == then)

    return [file for file, size in artifact["files"].items() if not intact(file, size)]


# ---------------------------------------------------------------- where a run was made

def versions() -> dict[str, str]:
    numbers = {"prunekit": prunekit.__version__, "python": sys.version.split()[0]}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            numbers[package] = version(package).split("+")[0]
    return numbers


def peak_memory() -> int:
    """The most that this process has held, in megabytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1000 if sys.platform == "linux" else 10**6)


def machine() -> str:
    """System, processor and GPU: where these and the versions are the same, so should be every digit."""
    processor, torch = platform.processor(), sys.modules.get("torch")
    with suppress(OSError, TypeError):
        cpus = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        processor = re.search(r"^model name\s*:\s*(.+)$", cpus, re.MULTILINE)[1]
    gpu = [torch.cuda.get_device_name()] if torch and torch.cuda.is_available() else []
    return ", ".join([f"{platform.system()} {platform.machine()}", processor, *gpu])


def commit() -> dict[str, Any]:
    """The git commit and whether the tree differs from it, looking at neither reports/ nor runs/."""
    def git(*arguments: str) -> str | None:
        with suppress(OSError, subprocess.CalledProcessError):
            return subprocess.run(["git", *arguments], cwd=project.root(), capture_output=True, text=True,
                                  check=True).stdout.strip()
        return None

    changed = git("status", "--porcelain", "--", ".", ":!reports", ":!runs")
    head = git("rev-parse", "--verify", "HEAD")
    return {"commit": head, "dirty": None if changed is None else bool(changed)}


# ---------------------------------------------------------------- state

@dataclass(frozen=True)
class State:
    """`word` is fresh, stale, missing, failed, interrupted or running; `reason` one clause for people."""

    word: str
    reason: str = ""

    @property
    def fresh(self) -> bool:
        return self.word == "fresh"


def read(profile: str, topic: str) -> dict[str, Any] | None:
    folder = project.run_folder(profile, topic)
    project.mend(folder)
    return there(folder)


def there(folder: Path) -> dict[str, Any] | None:
    """The manifest in a folder; None if there is none, or one that cannot be read."""
    try:
        content = read_json((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content else None


def state(profile: str, topic: str, parameters: Mapping[str, Any], shared_only: bool = False,
          above: Mapping[str, State] | None = None) -> State:
    """Whether the last finished run of a notebook is still what `parameters` and today's files would give.

    Where it is not, the word is that of the attempt to make another one, if there is one beside it.
    `shared_only` compares just the parameters that are given: what a notebook can say about another one.
    `above`: the states of what it reads from, for whoever knows them already.
    """
    manifest = read(profile, topic)
    attempt = _attempt(project.attempt_folder(project.run_folder(profile, topic)))
    if manifest is None:
        return attempt or State("missing", "never run")
    reason = (_changed_parameters(manifest["parameters"], parameters, shared_only)
              or _changed_sources(topic, manifest) or _changed_files(profile, topic, manifest)
              or _changed_above(profile, topic, manifest["parameters"], above))
    if attempt is None:
        return State("stale", reason) if reason else State("fresh")
    if not reason:
        return State("fresh", f"last attempt {attempt.word}: {attempt.reason}")
    return State(attempt.word, f"{attempt.reason.rstrip('.')}; the run of {manifest['finished']} is kept")


def _attempt(folder: Path) -> State | None:
    """What became of the attempt in this folder; None if there is none."""
    if not folder.is_dir():
        return None
    with suppress(OSError):
        return State("failed", (folder / "reason.txt").read_text(encoding="utf-8").strip())
    with suppress(OSError, ValueError):
        process = json.loads((folder / "running.json").read_text(encoding="utf-8"))["process"]
        os.kill(process, 0)
        return State("running", f"in process {process}")
    return State("interrupted", "started, but not finished")


def _changed_parameters(then: Mapping[str, Any], now: Mapping[str, Any], shared_only: bool) -> str:
    keys = ((then.keys() & now.keys()) - project.ITS_OWN if shared_only
            else (then.keys() | now.keys()) - {"profile"})
    return next((f"{key} was {then.get(key)!r}, is {now.get(key)!r}" for key in sorted(keys)
                 if then.get(key) != now.get(key)), "")


def _changed_sources(topic: str, manifest: Mapping[str, Any]) -> str:
    if manifest["notebook"] != notebook_hash(topic):
        return f"notebooks/{topic}.ipynb changed"
    now = module_hashes(manifest["modules"])
    changed = [name for name, digest in manifest["modules"].items() if now[name] != digest]
    return f"{', '.join(changed)} changed" if changed else ""


def _changed_files(profile: str, topic: str, manifest: Mapping[str, Any]) -> str:
    folder = project.run_folder(profile, topic)
    for artifact in manifest["artifacts"].values():
        if changed := altered(folder, artifact):
            return f"{changed[0]} is missing or was changed"
    now = inputs(manifest["parameters"])
    for key, digest in manifest["inputs"].items():
        if now.get(key) != digest:
            name, _, text = key.partition(" ")  # of several test texts, which one
            return f"the {name} {text or manifest['parameters'][name]} changed"
    for key, digest in manifest["loaded"].items():
        other, name = key.split("/", 1)
        made = read(profile, other)
        if made and made["artifacts"].get(name, {}).get("sha256") != digest:  # if not made, `state` says why
            return f"{other} has made '{name}' anew"
    return ""


def _changed_above(profile: str, topic: str, parameters: Mapping[str, Any],
                   above: Mapping[str, State] | None) -> str:
    for other in project.upstream(topic):
        there = above[other] if above else state(profile, other, parameters, shared_only=True)
        if not there.fresh:
            return f"{other} is {there.word}" + f" ({there.reason})" * bool(there.reason)
    return ""
