"""A run of one notebook: seeds, device, upstream checks, artifacts and, last of all, the manifest.

    run = pk.start_run("03_baselines", globals())
    gradients = run.load("02_gradients", "gradients")
    run.save("report", frame); run.figure(fig, "curves", "…"); run.table(frame, "ppl", "…", result=True)
    run.takeaway("…", problem=3)
    run.finish()
"""
from __future__ import annotations

import importlib
import json
import os
import random
import re
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.choices import text_name
from prunekit.errors import UsageError, did_you_mean
from prunekit.evaluate.sentences import Claim, comparing
from prunekit.files import file_hash, replacing_file, write_atomic
from prunekit.workbook import display, manifest, params, project
from prunekit.workbook.protocol import with_protocol

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Numbers about the machine: they differ between two runs of the same thing.
TIMINGS = ("seconds", "tokens_per_second", "memory_mb")
_LOADED = time.time()
_EDITED = "edited while in use"  # in place of a hash
_current: Run | None = None


def start_run(topic: str, variables: Mapping[str, Any]) -> Run:
    """Begin a run: check the parameters and what it reads from, set the seeds, choose the device.

    `variables` are the notebook's `globals()`; exactly the names declared in its parameters cell are taken.
    The run before stays until this one is finished. Raises UsageError for bad parameters, and for an upstream
    run that is missing or stale, naming the command that makes it.
    """
    declared = params.read_parameters(project.notebook(topic))
    absent = [name for name in declared if name not in variables]
    if absent:
        raise UsageError(f"{topic}: the parameter '{absent[0]}' is not defined; run the parameters cell.")
    parameters = params.validate(topic, {name: params.Setting(variables[name], topic) for name in declared})
    profile = parameters.get("profile", "embedded")
    for other in project.upstream(topic):
        state = manifest.state(profile, other, parameters, shared_only=True)
        if not state.fresh:
            raise UsageError(f"{topic} reads from {other}, which is {state.word} ({state.reason}): run that "
                             f"notebook first, or `prunekit run {profile} {other}`.")
    global _current
    _current = Run(topic, profile, parameters, variables)
    return _current


def current() -> Run | None:
    """The run that was begun last in this process, finished or not."""
    return _current


class Run:
    """A run in progress. Attributes: topic, profile, parameters, variables (the notebook's), folder (of the
    attempt), device, banner."""

    def __init__(self, topic: str, profile: str, parameters: dict[str, Any], variables: Mapping[str, Any]):
        self.topic, self.profile, self.parameters, self.variables = topic, profile, parameters, variables
        # As they are read: what is written into notebook, model or corpus from here on is not what has run.
        self._lesson = os.environ.get("PRUNEKIT_LESSON") or manifest.notebook_hash(topic)
        self._inputs = manifest.inputs(parameters)
        self._place = project.run_folder(profile, topic)
        self._batch = "PRUNEKIT_LOG" in os.environ  # which begins and ends the attempt itself
        if not self._batch:
            project.begin(self._place)
        self.folder = project.attempt_folder(self._place)
        self.started = time.time()
        self.id = uuid.uuid4().hex[:12]
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.loaded: dict[str, str] = {}
        self.takeaways: list[str] = []
        self.claims: list[dict[str, Any]] = []  # what those that compare rest on
        self.answers: list[dict[str, Any]] = []
        self._known = dict(parameters)  # these, and those of the runs that were read from
        write_atomic(self.folder / "running.json", json.dumps({"id": self.id, "process": os.getpid()}))
        self.device, self.threads = _set_up(parameters.get("seed", 0), parameters.get("device", "auto"))
        versions = [f"{name} {number}" for name, number in list(manifest.versions().items())[:5]]
        self.banner = display.show_text(" · ".join([
            *versions, f"{self.device}, {display.counted(self.threads, 'thread')}", f"profile {profile}",
            f"seed {parameters.get('seed', 0)}"]), "pk-banner")

    # ------------------------------------------------------------ artifacts

    def save(self, name: str, value: Any, **said: Any) -> Any:
        """Save a value under a name and return it.

        Tensors and dictionaries of tensors go to safetensors, DataFrames to CSV, lists of dictionaries to
        JSONL, trees and other dictionaries, lists and numbers to JSON, anything with `.save(path)` through
        that, and a Path inside the run's folder is taken as it is. `said`: what every result must say that
        is made from it (of windows, where they begin with BOS), for `workbook.protocol`.
        """
        kind, suffix, write = _writer(value)
        if kind == "file":
            file = value.resolve().relative_to(self.folder.resolve())
        else:
            file = Path(f"{name}{suffix}")
            self._write(file, write)
        return self._record(name, kind, [file], value, said=said)

    def load(self, topic: str, name: str) -> Any:
        """Read what an upstream run saved under `name`, if its content is what that run's manifest says."""
        made = manifest.read(self.profile, topic)
        if made is None:
            raise UsageError(f"{topic} has no finished run: run it first, or `prunekit run {self.profile} "
                             f"{topic}`.")
        saved = made["artifacts"]
        if name not in saved:
            raise UsageError(f"{topic} has saved nothing called '{name}'{did_you_mean(name, saved)}.")
        artifact = saved[name]
        path = project.run_folder(self.profile, topic) / next(iter(artifact["files"]))
        if not path.is_file() or file_hash(path) != artifact["sha256"]:
            raise UsageError(f"{project.relative(path)} is not what {topic} wrote: run that notebook again.")
        self.loaded[f"{topic}/{name}"] = artifact["sha256"]
        self._known = made["parameters"] | artifact.get("said", {}) | self._known
        return _read(path, artifact["kind"])

    def texts(self, windows: Mapping[str, Any]) -> dict[str, Any]:
        """The test windows among those of 01, by the name of their text; where there is one text, by ""."""
        further = {role.removeprefix("test "): ids for role, ids in windows.items()
                   if role.startswith("test ")}
        first = text_name(self._known.get("test_corpus") or self._known["corpus"]) if further else ""
        return {first: windows["test"], **further}

    def figure(self, figure: Figure, name: str, caption: str, *, headline: bool = False) -> display.Shown:
        """Save a figure as SVG and PDF (figures/), close it, and return it for display.

        The caption is its alt text. The data of one drawn by `prunekit.figures` is saved beside it as CSV,
        for `prunekit figures`. `headline` offers it to the report's front page.
        """
        import matplotlib.pyplot as plt

        contents = display.figure_files(figure)
        plt.close(figure)
        files = [Path("figures", name + suffix) for suffix in contents]
        for file, content in zip(files, contents.values(), strict=True):
            self._write(file, lambda path, content=content: path.write_bytes(content))
        drawn = display.recipe(figure)
        if drawn:
            files.append(Path("figures", f"{name}.csv"))
            self._write(files[-1], lambda path: drawn[1].to_csv(path, index=False))
        picture = display.show_figure(contents[".svg"], str(files[0]), caption)
        return self._record(f"figures/{name}", "figure", files, picture, caption=caption, headline=headline,
                            drawn=drawn[0] if drawn else None)

    def table(self, frame: pd.DataFrame, name: str, caption: str, *, result: bool = False,
              columns: list[str] | None = None, headline: bool = False) -> display.Shown:
        """Save a table as CSV and LaTeX (tables/) and return it for display.

        Rows of a `result` carry where they come from and how they were measured, see `workbook.protocol`;
        what parameters decide is filled in. The ledger puts them beside published numbers: those of the
        columns `value`, or `ppl` where the metric is perplexity, with `low` and `high`. `columns` chooses
        what is displayed and typeset; the CSV always holds everything.
        """
        if result:
            frame = with_protocol(frame, name, self._known)
        part = frame[columns] if columns else frame
        files = [Path("tables", f"{name}.csv"), Path("tables", f"{name}.tex")]
        self._write(files[0], lambda path: frame.to_csv(path, index=False))
        latex = display.latex_table(part, name, caption)
        self._write(files[1], lambda path: path.write_text(latex, encoding="utf-8"))
        sight = display.show_table(part, str(files[0]), caption)
        return self._record(f"tables/{name}", "table", files, sight, caption=caption, headline=headline,
                            result=result, html=sight.html if headline else "")

    def takeaway(self, said: str | Claim | None, *, problem: int | None = None) -> display.Shown | None:
        """A generated sentence (`code` and **strong** allowed); nothing for None, where nothing was asked.

        One that compares is a `claim`, and is shown with a link to the table whose rows it rests on, which
        must have been saved. `problem`: the number of the known problem (`ledger/claims.yaml`) of which it
        says what was measured. The first of a run stands on the report's front page. Raises UsageError for a
        plain sentence that compares, and for a table that this run has not.
        """
        if said is None:
            return None
        if isinstance(said, str):
            if words := comparing(said):
                raise UsageError(f"the takeaway '{said[:60]}' says '{words[0]}' without a test: build it "
                                 "with pk.claim from the rows that show it.")
            sentence, table = said, ""
        else:
            sentence, table = said.sentence, said.table
            if f"tables/{table}" not in self.artifacts:
                raise UsageError(f"the takeaway '{sentence[:60]}' rests on a table {table}, which this run "
                                 "has not saved: show it with run.table first.")
            self.claims.append(said.as_dict())
        self.takeaways.append(sentence)
        if problem is not None:
            self.answers.append({"problem": problem, "sentence": sentence})
        return display.show_takeaway(sentence, table)

    def finish(self) -> display.Shown:
        """Write the manifest: the run counts as finished, and takes the place of the one before it."""
        self._still_mine()
        content = {
            "id": self.id, "topic": self.topic, "profile": self.profile, "parameters": self.parameters,
            "versions": manifest.versions(), **manifest.commit(), "machine": manifest.machine(),
            "device": self.device, "threads": self.threads, "seed": self.parameters.get("seed", 0),
            "started": _clock(self.started), "finished": _clock(time.time()),
            "seconds": round(time.time() - self.started, 1), "memory_mb": manifest.peak_memory(),
            "log": os.environ.get("PRUNEKIT_LOG"), "notebook": self._notebook(),
            "modules": self._modules(), "inputs": self._read(), "loaded": self.loaded,
            "artifacts": self.artifacts, "takeaways": self.takeaways, "claims": self.claims,
            "answers": self.answers,
        }
        write_atomic(self.folder / "manifest.json", json.dumps(content, indent=1, default=display.as_plain))
        if not self._batch:
            project.take_place(self._place)
            self.folder = self._place
        return display.show_text(f"Finished in {content['seconds']:g} s: {len(self.artifacts)} artifacts in "
                               f"`{project.relative(self._place)}`.", "pk-banner")

    # ------------------------------------------------------------ inside

    def _modules(self) -> dict[str, str]:
        """Hashes of the imported modules; a file edited since it was imported has none, as its code did not
        run."""
        hashes = manifest.module_hashes(manifest.imported_modules())
        for name in hashes:
            if _LOADED < manifest.module_path(name).stat().st_mtime <= time.time():
                hashes[name] = _EDITED
        return hashes

    def _notebook(self) -> str:
        """Hash of the lesson, which whoever runs its cells by hand may save after they ran."""
        executed = () if self._batch else map(str.strip, self.variables.get("In", ()))  # IPython's history
        written = {source.strip() for source in manifest.lesson_code(self.topic)}
        now = manifest.notebook_hash(self.topic)
        return now if now == self._lesson or written <= {"", *executed} else _EDITED

    def _read(self) -> dict[str, str]:
        """Fingerprints of what was read; a name alone was of something that has been downloaded since."""
        now, names = manifest.inputs(self.parameters), self.parameters.values()
        return now | {key: _EDITED for key, then in self._inputs.items()
                      if now.get(key) != then and then not in (*names, key.partition(" ")[2])}

    def _still_mine(self) -> None:
        try:
            owner = json.loads((self.folder / "running.json").read_text(encoding="utf-8"))["id"]
        except (OSError, ValueError):
            owner = None
        if owner != self.id or (self.folder / "manifest.json").exists():
            raise UsageError(f"{self.topic} was started anew elsewhere or is already finished: run this "
                             "notebook from its set-up cell again.")

    def _write(self, file: Path, write: Any) -> None:
        if not re.fullmatch(r"(?:(?:figures|tables)/)?\w[\w.-]*", file.as_posix()):
            raise UsageError(f"'{file.stem}' is no name for an artifact: letters, digits, '-', '_' and '.' "
                             "only.")
        self._still_mine()
        with replacing_file(self.folder / file) as temporary:
            write(temporary)

    def _record(self, name: str, kind: str, files: list[Path], value: Any, **more: Any) -> Any:
        self.artifacts[name] = {
            "kind": kind, **manifest.artifact_files(self.folder, [file.as_posix() for file in files]),
            "made by": f"{self.topic}, run {self.id}", **more,
        }
        return value


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _set_up(seed: int, device: str) -> tuple[str, int]:
    """Seed every generator; the device ("auto": the GPU if there is one) and the number of threads."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if chosen.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device = '{device}': there is no CUDA device here; use 'auto' or 'cpu'.")
    return chosen, torch.get_num_threads()


def _writer(value: Any) -> tuple[str, str, Any]:
    """(kind, suffix, function of a path) for a value; UsageError when there is no way to save it."""
    import pandas as pd
    import torch

    def text(*contents: Any, indent: int | None = None) -> Any:
        lines = [json.dumps(content, indent=indent, default=display.as_plain) + "\n" for content in contents]
        return lambda path: path.write_text("".join(lines), encoding="utf-8")

    owner = f"{type(value).__module__}:{type(value).__qualname__}"
    tensors = {"tensor": value} if isinstance(value, torch.Tensor) else value
    if isinstance(value, Path):
        return "file", "", None
    if isinstance(tensors, dict) and tensors and all(isinstance(t, torch.Tensor) for t in tensors.values()):
        from safetensors.torch import save_file

        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        kind = "tensors" if tensors is value else "tensor"
        return kind, ".safetensors", lambda path: save_file(stored, path)
    if isinstance(value, pd.DataFrame):
        return "frame", ".csv", lambda path: value.to_csv(path, index=False)
    if hasattr(value, "to_json"):
        return owner, ".json", text(value.to_json(), indent=1)
    if hasattr(value, "save"):
        return owner, ".safetensors", value.save
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return "records", ".jsonl", text(*value)
    if isinstance(value, (dict, list, str, int, float)):
        return "json", ".json", text(value, indent=1)
    raise UsageError(f"run.save cannot save a {type(value).__name__}: give tensors, a DataFrame, records or "
                     "a dictionary.")


def _read(path: Path, kind: str) -> Any:
    if kind == "file":
        return path
    if kind in ("tensor", "tensors"):
        from safetensors.torch import load_file

        tensors = load_file(path)
        return tensors["tensor"] if kind == "tensor" else tensors
    if kind in ("frame", "table"):
        import pandas as pd

        return pd.read_csv(path)
    if kind == "records":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if kind == "json":
        return json.loads(path.read_text(encoding="utf-8"))
    module, _, name = kind.partition(":")
    if not module.startswith("prunekit."):
        raise UsageError(f"{path.name} holds a '{kind}', which cannot be read back.")
    cls = getattr(importlib.import_module(module), name)
    return cls.from_json(path) if path.suffix == ".json" else cls.load(path)
