"""One writer at a time: a lock on an open file, which ends with the process that holds it, however that ends."""
from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunekit.errors import UsageError


def lock(handle: int, sentence: str) -> None:
    """Lock an open file for as long as it is open. Raises UsageError with the sentence if another process has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UsageError(sentence) from error


@contextmanager
def locked(path: Path, sentence: str) -> Iterator[None]:
    """For a while, hold the lock on a file that is for nothing else. Raises UsageError as `lock` does."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        lock(handle, sentence)
        yield
    finally:
        os.close(handle)
