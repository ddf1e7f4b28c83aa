"""One writer at a time: a lock on an open file, which ends with the process that holds it, however that ends."""
from __future__ import annotations

import fcntl

from prunekit.errors import UsageError


def lock(handle: int, sentence: str) -> None:
    """Lock an open file for as long as it is open. Raises UsageError with the sentence if another process has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UsageError(sentence) from error
