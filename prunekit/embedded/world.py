"""The embedded world's text: endless documents by role and register, the same for the same arguments.

A document belongs to the role that a hash of its text names, and a stream drops what is not its own: two
roles can never share a document, whatever their seeds. Facts are shared (they are the world).
"""
from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from zlib import crc32

from prunekit.embedded.entities import SEED
from prunekit.embedded.registers import REGISTERS as _WRITERS
from prunekit.embedded.registers import SHARES
from prunekit.embedded.scribe import Scribe
from prunekit.errors import UsageError, did_you_mean

REGISTERS: tuple[str, ...] = tuple(_WRITERS)
ROLES: tuple[str, ...] = ("train", "calibration", "gradient", "search", "select", "test")
# Eight buckets of the hash: three are for training, one for each of the others.
_BUCKETS = ("train", "train", *ROLES)


def role_of(document: str) -> str:
    """The one role whose streams may hold this document."""
    return _BUCKETS[crc32(document.encode()) % len(_BUCKETS)]


def documents(role: str, seed: int = 0, registers: Iterable[str] | None = None) -> Iterator[str]:
    """Endless documents of about 50 to 300 tokens, each in one of `registers` (default all; by `SHARES`).

    Same arguments, same text; no document occurs under two roles. Unknown roles or registers raise
    `UsageError`.
    """
    chosen = REGISTERS if registers is None else tuple(registers)
    if role not in ROLES:
        raise UsageError(f"The embedded world has no role {role!r}{did_you_mean(role, ROLES)}.")
    for name in chosen or ("",):
        if name not in REGISTERS:
            raise UsageError(f"The embedded world has no register {name!r}{did_you_mean(name, REGISTERS)}.")
    return _stream(role, seed, [_WRITERS[name] for name in chosen for _ in range(SHARES[name])])


def _stream(role: str, seed: int, writers: list) -> Iterator[str]:
    scribe = Scribe(random.Random(f"{SEED}/{role}/{seed}"))
    while True:
        document = " ".join(scribe.pick(writers)(scribe))
        if role_of(document) == role:
            yield document
