"""The search's only memory: an append-only JSONL file, one durable line per event, from which everything is
rebuilt.

Line 1 is the header; then, per candidate, `propose` and either `evaluate` or `reject`, in an order that does
not depend on how many workers there are. Each line carries the CRC-32 of itself and all lines before it, so a
changed byte is found wherever it is. A line at the end that a crash left without its line feed is dropped.
Losses are float32, base64.
"""
from __future__ import annotations

import base64
import json
import os
import shutil
from array import array
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Self
from zlib import crc32

from prunekit.errors import UsageError
from prunekit.files import lock, read_json, writing_to

FORMAT = 1
_UNSTABLE = ("seconds", "host", "started", "file")  # what two runs of the same search may differ in


def pack(losses: Iterable[float]) -> str:
    """float32 values as base64 text."""
    return base64.b64encode(array("f", losses).tobytes()).decode()


def unpack(text: str) -> array:
    values = array("f")
    values.frombytes(base64.b64decode(text, validate=True))
    return values


class Journal:
    """An open journal that nobody else can write. Use as a context manager; `events`: what it held when
    opened.

    Raises UsageError if another process has it open, if a whole line is damaged, or if its header is of
    another search than `header` (naming what differs; with `restart` that journal is renamed to …~ instead).
    """

    def __init__(self, path: str | Path, header: Mapping[str, Any], *, restart: bool = False):
        self.path = Path(path)
        self._aside = self.path.with_name(f"{self.path.name}~")
        self._file = -1
        try:
            self._open()
            differing = self._differing(header)
            if differing and restart:
                os.replace(self.path, self._aside)
                self._open()
            elif differing:
                what = ", ".join(differing[:6])
                raise UsageError(f"the journal {self.path} belongs to another search (it differs in {what}): "
                                 "give another journal, or set those as they were.")
            if not self.events:
                self.append({"event": "header", "format": FORMAT, **header})
        except BaseException:
            self._close()
            raise

    def _open(self) -> None:
        self._close()
        with writing_to(self.path):
            self.path.resolve().parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        lock(self._file, f"the journal {self.path} is being written by another process: wait for it, or give "
                         "another journal.")
        if not self._in_place():  # another process, begun at the same moment, put it aside
            return self._open()
        self._read()

    def _read(self) -> None:
        self.events, self._crc, self._size = _scan(self.path)
        os.ftruncate(self._file, self._size)
        os.lseek(self._file, self._size, os.SEEK_SET)

    def _in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)  # and with it the lock
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def append(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Write one event and wait until it is on the disk; returns it as it will be read back.

        Raises UsageError if it cannot be written (a full disk, say); the file then ends with the one before.
        """
        line, crc = _line(event, self._crc)
        try:
            if (written := os.write(self._file, line)) != len(line):
                os.write(self._file, line[written:])  # tells why it was cut
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, self._size, os.SEEK_SET)
            raise UsageError(f"the journal {self.path} cannot be written ({error.strerror}): make room and "
                             "start the search again, it goes on from its last event.") from error
        self._crc, self._size = crc, self._size + len(line)
        return json.loads(line)

    def cut(self, count: int) -> None:
        """Keep the first `count` of `events`; all of them are put aside, as …~."""
        with writing_to(self._aside):
            shutil.copyfile(self.path, self._aside)
        with open(self.path, "rb") as file:
            os.ftruncate(self._file, sum(map(len, islice(file, count))))
        self._read()

    def _differing(self, header: Mapping[str, Any]) -> list[str]:
        if not self.events:
            return []
        now = json.loads(json.dumps(stable(header)))
        return sorted(_differences(stable(self.events[0]), {"event": "header", "format": FORMAT, **now}))


def read(path: str | Path) -> list[dict[str, Any]]:
    """All whole events, also while it is being written. Raises UsageError for no journal or a damaged one."""
    if not Path(path).is_file():
        raise UsageError(f"there is no journal {path}: give the path of a journal.jsonl.")
    events = _scan(Path(path))[0]
    if not events:
        raise UsageError(f"{path} is no journal: it does not begin with a header.")
    return events


def stable(event: Mapping[str, Any]) -> dict[str, Any]:
    """An event without times and host names: two journals are the same when these agree."""
    return {key: value for key, value in event.items() if key not in _UNSTABLE}


def _line(event: Mapping[str, Any], before: int) -> tuple[bytes, int]:
    text = json.dumps(event, ensure_ascii=False, separators=(", ", ": "))
    crc = crc32(text.encode(), before)
    return f'{text[:-1]}, "crc": "{crc:08x}"}}\n'.encode(), crc


def _scan(path: Path) -> tuple[list[dict[str, Any]], int, int]:
    """(events, checksum, bytes) of all whole lines."""
    events: list[dict[str, Any]] = []
    crc = size = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            checked = _checked(line, crc)
            if checked is None and number == 1 and not _like_a_header(path):
                raise UsageError(f"{path} is no journal: its first line is no header; give another path.")
            if checked is None and not line.endswith(b"\n"):
                break  # torn: the last
            if checked is None:
                keep = f"keep its first {number - 1} lines (head -n {number - 1}) and resume from there"
                raise UsageError(f"line {number} of the journal {path} is damaged: put back a copy of the "
                                 f"file, or {keep if number > 1 else 'begin anew'}.")
            event, crc = checked
            if number == 1 and (event.get("event") != "header" or event.get("format") != FORMAT):
                raise UsageError(f"{path} is no journal of this version: it does not begin with a header of "
                                 f"format {FORMAT}.")
            events.append(event)
            size += len(line)
    return events, crc, size


def _checked(line: bytes, before: int) -> tuple[dict[str, Any], int] | None:
    """The event of a line and the running checksum; None if the line is not whole."""
    try:
        text, stated = line[:-len(b', "crc": "00000000"}\n')] + b"}", line[-11:-3]
        crc = crc32(text, before)
        if line[-1:] != b"\n" or int(stated, 16) != crc:
            return None
        event = read_json(text)
    except ValueError:
        return None
    return (event, crc) if isinstance(event, dict) else None


def _like_a_header(path: Path) -> bool:
    """Does the file begin as a header does, as far as it goes?"""
    start = b'{"event": "header"'
    with open(path, "rb") as file:
        return start.startswith(file.read(len(start)))


def _differences(then: Any, now: Any, where: str = "") -> Iterator[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        for key in {**then, **now}:
            yield from _differences(then.get(key), now.get(key), f"{where}.{key}" if where else key)
    elif then != now:
        yield where
