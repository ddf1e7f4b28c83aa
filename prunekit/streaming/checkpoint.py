"""Safetensors files read and written one tensor at a time, so that memory holds no more than is asked for.

(The safetensors library maps a whole file, whose pages then count as the process's memory.)
"""
from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunekit.errors import UsageError

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
           "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
           "BOOL": torch.bool}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_CHUNK = 2**24  # numbers converted from one dtype to another at a time
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies: bytes `start` to `stop` of a file."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int

    def read(self, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor in memory of its own; a conversion to `dtype` holds little more than the result."""
        result = torch.empty(self.shape, dtype=dtype or self.dtype)
        flat, width = result.view(-1), self.dtype.itemsize
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start)
            step = flat.numel() if flat.dtype == self.dtype else _CHUNK
            for begin in range(0, flat.numel(), step or 1):
                part = flat[begin:begin + step]
                target = part if flat.dtype == self.dtype else torch.empty(len(part), dtype=self.dtype)
                self._fill(file, memoryview(target.view(torch.uint8).numpy()), len(part) * width)
                if target is not part:
                    part.copy_(target)
        return result

    def _fill(self, file: Any, buffer: memoryview, size: int) -> None:
        done = 0
        while done < size:  # one call reads at most 2 GB
            read = file.readinto(buffer[done:])
            if not read:
                raise UsageError(f"checkpoint file {self.path} ends too early; copy it again.")
            done += read


class Checkpoint(Mapping[str, Stored]):
    """The tensors of a directory's safetensors files (one, or else shards with an index), or of one file."""

    def __init__(self, path: str | Path):
        path = Path(path)
        self.path = path
        self.metadata: dict[str, str] = {}
        self._tensors: dict[str, Stored] = {}
        for file in _files(path):
            self._tensors |= self._header(file)

    def __getitem__(self, name: str) -> Stored:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def _header(self, file: Path) -> dict[str, Stored]:
        try:
            with file.open("rb") as handle:
                length, = struct.unpack("<Q", handle.read(8))
                size = file.stat().st_size
                header = json.loads(handle.read(length if length < size else 0))
            self.metadata |= header.pop("__metadata__", None) or {}
            tensors = {}
            for name, entry in header.items():
                place = (8 + length + offset for offset in entry["data_offsets"])
                tensors[name] = Stored(file, _DTYPES[entry["dtype"]], tuple(entry["shape"]), *place)
            torn = next((name for name, tensor in tensors.items() if tensor.stop > size), None)
        except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"checkpoint file {file} is damaged or holds a dtype that is not known "
                             f"({error}).") from error
        if torn:
            raise UsageError(f"checkpoint file {file} ends before its tensor {torn} does; copy it again.")
        return tensors


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    index, single = path / INDEX, path / "model.safetensors"
    if index.is_file() and not single.is_file():  # where both are, transformers reads the single one, too
        try:
            places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = sorted({path / file for file in places.values()})
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UsageError(f"checkpoint index {index} is damaged; copy it again.") from error
    else:
        files = [single]
    missing = next((file for file in files if not file.is_file()), None)
    if missing:
        raise UsageError(f"{path} holds no {missing.name}; give a directory with a safetensors checkpoint "
                         "(pickled weights are never loaded).")
    return files


# --- writing: to another name, onto the disk, then renamed, so that a file is whole or not there ------------


@dataclass(frozen=True)
class Entry:
    """A tensor to be written, made when its turn comes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]


def write_safetensors(path: Path, entries: Mapping[str, Entry]) -> str:
    """Write a .safetensors file, one tensor in memory at a time; its SHA-256. Same tensors, same bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, entry in entries.items():
        size = entry.dtype.itemsize * torch.Size(entry.shape).numel()
        header[name] = {"dtype": _NAMES[entry.dtype], "shape": list(entry.shape),
                        "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    digest = hashlib.sha256()

    def write(file: Any) -> None:
        def put(part: bytes | memoryview) -> None:
            digest.update(part)
            file.write(part)

        put(struct.pack("<Q", len(text)) + text)
        for entry in entries.values():
            put(memoryview(entry.make().contiguous().reshape(-1).view(torch.uint8).numpy()))

    _atomically(path, write)
    return digest.hexdigest()


def write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    _atomically(path, lambda file: file.write(text.encode()))


def _atomically(path: Path, write: Callable[[Any], None]) -> None:
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself must survive too
    finally:
        os.close(folder)
