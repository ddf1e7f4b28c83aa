"""Files that are there whole or not at all; what a disk says against them, in one sentence; deep JSON."""
from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import lock_descriptor
from safetensors import SafetensorError

from prunekit.errors import UsageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ELOOP,
            errno.ENAMETOOLONG, errno.EIO, errno.EBUSY)


@contextmanager
def writing_to(path: str | Path | None = None) -> Iterator[None]:
    """What is written inside is for `path` (None: for what the error names). A disk that is full, read-only
    or not ours, or a folder where a file should be, is a UsageError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        of_safetensors = re.search(r"os error (\d+)", str(error))  # which has no errno
        number = int(of_safetensors[1]) if of_safetensors else getattr(error, "errno", None)
        if number not in (*_FULL, *_REFUSED):
            raise
        advice = "make room" if number in _FULL else "give another place"
        named = getattr(error, "filename", None) or "a file"
        what = f"{path} cannot be written" if path else f"{named} cannot be used"
        raise UsageError(f"{what} ({os.strerror(number)}): {advice}, then start this again.") from error


def check_folder(folder: str | Path) -> Path:
    """The folder, if files can be written in it: tried now, there or where it would be made.

    Raises UsageError if they cannot."""
    above = Path(folder).resolve()
    with writing_to(folder):
        while not above.exists():
            above = above.parent
        with tempfile.TemporaryFile(dir=above) as file:
            file.write(b"0")
    return Path(folder)


def check_file(path: str | Path) -> Path:
    """The path, if a file can be written there: tried now, so that nothing is computed in vain.

    Raises UsageError if it cannot."""
    path = Path(path)
    with writing_to(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "")
        check_folder(path.resolve().parent)
    return path


def check_room(folder: str | Path, needed: int, what: str) -> None:
    """Raise UsageError unless the disk of a folder, or of where it would be made, has so many bytes free."""
    there = Path(folder).absolute()
    free = shutil.disk_usage(next(path for path in (there, *there.parents) if path.exists())).free
    if needed > free:
        raise UsageError(f"{what} {folder} needs {needed / 1e9:.2f} GB of disk where {free / 1e9:.2f} GB are "
                         "free; make room or give another directory.")


@contextmanager
def replacing_file(path: str | Path) -> Iterator[Path]:
    """A file beside this one (or what a link leads to) that takes its place when the block ends: there is the
    new one whole or, after an error, a kill or a power cut, the old one. UsageError as of `writing_to`."""
    path = Path(path)
    with writing_to(path):
        there = path.resolve()
        if there.exists() and not there.is_file() and not there.is_dir():
            raise UsageError(f"{path} is a device or a pipe, which no file replaces: give another place.")
        there.parent.mkdir(parents=True, exist_ok=True)
        mode = stat.S_IMODE(there.stat().st_mode) if there.is_file() else 0o644
        handle, temporary = tempfile.mkstemp(dir=there.parent, prefix=".", suffix=there.suffix)
        os.close(handle)
        try:
            yield Path(temporary)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.chmod(temporary, mode)
            os.replace(temporary, there)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def read_json(text: str | bytes, **how: Any) -> Any:
    """`json.loads`, but what is nested too deeply is a ValueError like every other defect."""
    try:
        return json.loads(text, **how)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """The environment with these variables as well, for as long as the block lasts."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside this one that takes its place when the block ends; until then, after an error and
    after a kill, there is the old one (after a kill in the moment of the exchange, from the next call on)."""
    folder = folder.resolve()
    new, old = (folder.with_name(f".{folder.name}.{word}") for word in ("building", "old"))
    with writing_to(folder):
        if old.exists() and not folder.exists():
            old.rename(folder)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
        try:
            new.mkdir(parents=True)
            yield new
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        finally:
            if old.exists() and not folder.exists():
                old.rename(folder)
            for left in (new, old):
                shutil.rmtree(left, ignore_errors=True)


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all, even through a power cut."""
    with replacing_file(path) as file:
        file.write_text(text, encoding="utf-8")


def refuse_other(place: Path, had: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise UsageError if what a file or folder holds was computed with other settings than are asked for."""
    for key, value in asked.items():
        if key not in ("recorded", "machine") and str(had.get(key)) != str(value):
            raise UsageError(f"{place} holds what was computed with another {key} ({had.get(key)}): ask for "
                             "the same, or give another place.")


def keep_request(folder: Path, asked: Mapping[str, Any], begun: bool) -> None:
    """Write down in a folder, as asked.json, what its files are computed with, before they are.

    begun: whether any was; if not, a request of before, which came to nothing, counts no more. Raises
    UsageError if they were computed with something else."""
    file, had = folder / "asked.json", asked
    if begun and file.exists():
        try:
            had = dict(read_json(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UsageError(f"{file} is damaged, so nobody knows what those beside it were computed with: "
                             "give another place.") from error
    refuse_other(folder, had, asked)
    write_atomic(file, json.dumps(asked, indent=1) + "\n")


def file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lock(handle: int, sentence: str = "") -> None:
    """Lock an open file while it is open. If another process has it: UsageError; without a sentence, wait."""
    if not lock_descriptor(handle, blocking=not sentence):
        raise UsageError(sentence)


@contextmanager
def locked(path: Path, sentence: str = "") -> Iterator[None]:
    """For a while, hold the lock on a file that is for nothing else. Waits or raises UsageError as `lock`."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        lock(handle, sentence)
        yield
    finally:
        os.close(handle)
