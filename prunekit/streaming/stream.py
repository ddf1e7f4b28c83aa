"""Pruning a checkpoint larger than memory: block by block, from disk to disk, by the same walk."""
from __future__ import annotations

import ctypes
import hashlib
import json
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunekit import __version__
from prunekit.choices import Sparsity
from prunekit.errors import UsageError
from prunekit.files import check_folder, check_room, file_hash, locked, replacing
from prunekit.metric.catalogue import Method, resolve
from prunekit.metric.tree import Tree
from prunekit.models import Layer, fingerprint, load_config, load_model, locate, prunable_layers, save_model
from prunekit.pruning import walk
from prunekit.pruning.admm import AdmmOptions
from prunekit.pruning.gradients import Gradients, Unread, is_safetensors
from prunekit.pruning.obs import ObsOptions
from prunekit.pruning.prune import Plan, Report, refuse_not_finite
from prunekit.streaming.checkpoint import INDEX, Checkpoint, Entry, write_json, write_safetensors
from prunekit.streaming.skeleton import Skeleton, Streamed, build

PROGRESS, PROVENANCE, LOCK = "prunekit.progress.json", "prunekit.json", "prunekit.lock"
_COPIED = {".json", ".txt", ".model", ".jinja", ".tiktoken"}  # configuration, tokenizer, chat template
_TAKEN = "target {} is being written by another process; wait for it, or give another directory."
_MARGIN = 6 * 2**20  # for all that is small
# Peaks as measured (and held by tests/streaming), in float32 matrices of a layer's shape, of the scores with:
# "row" a copy to select in, int64 counts of ties; "layer" that copy; "variant" the sorted scores, their int64
# places and sums; "n:m" the columns apart, and their ranks.
_MASKING = {"row": 4.25, "layer": 2.3, "variant": 7, "n:m": 2.8}
_FACTORING = 5.75  # of H: itself and a copy, the Cholesky factor, the unit matrix, the inverse, its flip
_INVERTING, _SPLITTING = 3, 5  # beside H: it preconditioned, the factor, the inverse; W', V, Z, U, V / scale


@contextmanager
def _freeing_at_once() -> Iterator[None]:
    """Have glibc give freed tensors back; those below 32 MB it keeps otherwise, as much again as is alive."""
    _map_from(2**20)
    try:
        yield
    finally:
        _map_from(2**25)


def _map_from(size: int) -> None:
    """Let allocations of this size or more be maps of their own (M_MMAP_THRESHOLD)."""
    try:
        ctypes.CDLL(None).mallopt(-3, size)
    except (AttributeError, OSError, TypeError):
        pass  # another C library, with rules of its own


@_freeing_at_once()
def prune_checkpoint(source_dir: str | Path, save_dir: str | Path, windows: Tensor | None,
                     method: str | Tree | Method, sparsity: Sparsity, pattern: str = "unstructured", *,
                     gradients: Gradients | str | Path | None = None, group: str | None = None,
                     update: str | None = None, skip: Sequence[str] = (), preserve: bool = False,
                     obs: ObsOptions = ObsOptions(), admm: AdmmOptions = AdmmOptions(), dtype: str = "auto",
                     progress: bool = True) -> Report:
    """Prune a safetensors checkpoint into another directory, holding one decoder block in memory at a time.

    What is written equals what `prune` leaves of the model loaded in the same dtype, bit for bit. source_dir:
    a local Hugging Face directory, or a GGUF file, which is read whole for once, and lies beside the target
    as safetensors until that is complete. save_dir: new, empty, or an interrupted run of the same request,
    which goes on with its next block (its pruned blocks are replayed, so the result is that of an undisturbed
    run). gradients: a path is read layer by layer. dtype: `auto` is the checkpoint's own. The rest is as in
    `prune`. What it needs is said by `checkpoint_needs`, and stands in the progress file and the report's
    `meta`.

    Raises UsageError, before anything is written, where `prune` does, if the checkpoint does not fit its
    config.json, if the target holds anything else, is being written by another process or was damaged since,
    and if it cannot be made or its disk has too little room. What only shows in a block's numbers is refused
    when that block is read.
    """
    started, target = time.perf_counter(), check_folder(save_dir)
    stored = _stored_gradients(gradients) if isinstance(gradients, (str, Path)) else gradients
    asked = resolve(method, group, update)
    options = admm if asked.update == "admm" else obs
    planned = partial(Plan, windows=windows, method=asked, sparsity=sparsity, pattern=pattern,
                      gradients=stored, options=options, skip=skip, preserve=preserve)
    with _as_checkpoint(source_dir, target, dtype, planned) as source:
        skeleton = Skeleton(source, dtype)
        plan = planned(skeleton.model)
        request = _request(source_dir, skeleton, plan)
        run = _Run(source, target, request, _needs(skeleton, plan), len(skeleton.blocks))
        meta = plan.meta() | {"dtype": request["dtype"]} | run.needs
        with run.alone(), torch.no_grad():
            if not run.complete:
                _prune_blocks(skeleton, plan, run, progress)
                rest = {skeleton.stored_name(name): skeleton.entry(name) for name in skeleton.outside}
                run.finish(rest, meta)
    return Report(run.rows, meta | {"seconds": round(time.perf_counter() - started, 3)})


@contextmanager
def _as_checkpoint(source: str | Path, target: Path, dtype: str, check: Callable[[nn.Module], Any]
                   ) -> Iterator[Path]:
    """The source's directory; of a GGUF file one of safetensors, made once `check` has seen the model without
    its weights, which a run that has begun leaves for its next try. Nobody else may make or remove it while
    the block lasts."""
    file = Path(locate(source))
    if not file.is_file():
        yield _local(source)
        return
    plain = target.with_name(f".{target.name}.{fingerprint(file)[-16:]}.{dtype}")
    if not plain.is_dir():
        check(build(load_config(file), file, torch.float32))
    plain.parent.mkdir(parents=True, exist_ok=True)
    lock = plain.with_name(f"{plain.name}.lock")
    with locked(lock, _TAKEN.format(target)):
        try:
            if not plain.is_dir():
                with replacing(plain) as folder:
                    save_model(*load_model(file, dtype=dtype, device="cpu"), folder)
            yield plain
        finally:
            if plain.is_dir() and not (target / PROGRESS).is_file():
                shutil.rmtree(plain)
            lock.unlink(missing_ok=True)


def _prune_blocks(skeleton: Skeleton, plan: Plan, run: _Run, progress: bool) -> None:
    resident = Streamed(skeleton, run.pruned)
    for index, layers, inputs in plan.blocks(progress, resident, run.finished):
        path = f"{skeleton.path}.{index}"
        refuse_not_finite(skeleton.model.get_submodule(path), path)
        rows = [plan.prune_layer(layer, inputs.pop(layer.name, None)) for layer in layers]
        run.write_block(index, resident.tensors(index), rows)


def checkpoint_needs(source_dir: str | Path, windows: Tensor | None, method: str | Tree | Method, *,
                     update: str | None = None, dtype: str = "auto") -> dict[str, int]:
    """What `prune_checkpoint` needs, in bytes: `memory`, at its peak beyond the interpreter's, and `disk`.

    An estimate from shapes, meant to be within a fifth. Raises UsageError as `prune_checkpoint` does.
    """
    skeleton = Skeleton(_local(source_dir), dtype)
    plan = Plan(skeleton.model, windows, resolve(method, update=update), 0.5, gradients=Unread({}))
    return _needs(skeleton, plan)


def _stored_gradients(path: str | Path) -> Gradients:
    """G, of a safetensors file read layer by layer; of the published code's .pth at once."""
    if not is_safetensors(path):
        return Gradients.load(path)
    file = Checkpoint(path)
    return Gradients(file, Gradients.made(file.metadata, path))


def _local(source: str | Path) -> Path:
    path = Path(locate(source))
    if not path.is_dir():
        raise UsageError(f"checkpoint '{source}' is not a directory of safetensors; download or save it as "
                         "one first and give its path.")
    return path


# --- how much it takes --------------------------------------------------------------------------------------


def _needs(skeleton: Skeleton, plan: Plan) -> dict[str, int]:
    """The largest of what the stages hold: embedding, a pass through a block, scoring a layer, the rest."""
    head = skeleton.model.get_output_embeddings()
    outside = {name: skeleton.size([name]) for name in skeleton.outside}
    embeddings = sum(size for name, size in outside.items()
                     if head is None or skeleton.tensors[name] is not head.weight)
    block = max(skeleton.size(names) for names in skeleton.blocks)
    hidden = statistics = forward = 0
    if plan.reads_inputs:
        width = skeleton.model.config.get_text_config().hidden_size
        hidden = plan.windows.numel() * width * skeleton.dtype.itemsize
        forward = _forward(skeleton, plan)
        if plan.method.update:
            statistics = max(4 * sum(width**2 for width in _inputs(layers))
                             for layers in prunable_layers(skeleton.model))
    scoring = max(_scoring(layer, plan) for layer in plan.layers)
    memory = max(block + hidden + statistics + max(forward, scoring), max(outside.values()))
    if plan.reads_inputs:
        memory = max(memory, embeddings + max(block, hidden))
    disk = sum(skeleton.size(names) for names in (*skeleton.blocks, skeleton.outside))
    return {"memory": memory + _MARGIN, "disk": disk + _MARGIN}


def _forward(skeleton: Skeleton, plan: Plan) -> int:
    """Bytes of one batch in a block: two states beside the widest input, which has three copies in a gated
    MLP, or is measured in float32."""
    number, width = skeleton.dtype.itemsize, skeleton.model.config.get_text_config().hidden_size
    wide = max(layer.weight.shape[1] for layer in plan.layers)
    n, seqlen = plan.windows.shape
    tokens = min(n, max(1, walk.BATCH_TOKENS // seqlen)) * seqlen
    exact = 0 if number == 4 else 4  # a float32 copy
    measured = number + exact + 4
    product = 8 * wide**2 if plan.method.update else 0
    return tokens * 2 * number * width + max(tokens * 3 * number * wide, tokens * measured * wide + product)


def _scoring(layer: Layer, plan: Plan) -> int:
    """Bytes that scoring, masking and updating one layer takes: float32 matrices, as many as are alive at
    once."""
    method, matrix, square = plan.method, 4 * layer.weight.numel(), 4 * layer.weight.shape[1]**2
    scores = solving = 0
    if method.tree:
        masking = _MASKING[method.group if plan.targets[layer.name].pattern == "unstructured" else "n:m"]
        scores = (max(masking, 4 if method.tree.size > 4 else 2) + ("G" in method.needs)
                  + 1.25 * plan.preserve) * matrix  # a bool for each weight, and scores that know of it
    if method.update == "admm":
        solving = max(_INVERTING * square, square + _SPLITTING * matrix + scores)
    elif method.update:
        within = scores if method.update == "obs-iter" else 0
        solving = max(_FACTORING * square, square + 2 * matrix + within)
    return int(max(scores, solving))


def _inputs(layers: list[Layer]) -> list[int]:
    """Widths of a block's distinct inputs, as far as shapes tell: q, k, v share one, and gate and up."""
    found: dict[tuple[str, int], list[int]] = defaultdict(list)
    for layer in layers:
        key = layer.name if layer.expert is not None else layer.name.rpartition(".")[0]
        found[key, layer.weight.shape[1]].append(layer.weight.shape[0])
    return [width for (_, width), outs in found.items()
            for _ in range(2 if len(outs) > 3 or (len(outs) == 2 and len(set(outs)) == 2) else 1)]


# --- the target directory -----------------------------------------------------------------------------------


def _request(source: str | Path, skeleton: Skeleton, plan: Plan) -> dict[str, Any]:
    """All that the result depends on."""
    windows, gradients, reads_G = plan.windows, plan.gradients, "G" in plan.method.needs
    asked = plan.meta() | {"options": asdict(plan.options)}
    asked |= {
        "sparsity": {name: list(target) for name, target in plan.targets.items()},
        "prunekit": __version__, "torch": torch.__version__, "source": fingerprint(source),
        "dtype": str(skeleton.dtype).removeprefix("torch."), "batch_tokens": walk.BATCH_TOKENS,
        "windows": None if windows is None else _digest([windows.long().cpu()]),
        "gradients": _digest(map(gradients.__getitem__, sorted(gradients))) if reads_G else None}
    return json.loads(json.dumps(asked))  # as it will be read


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(memoryview(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()[:16]


class _Run:
    """A target directory being filled: one shard per block, one for the rest, and how far it has come.

    shards: the SHA-256 of every shard that is whole, in the order of writing.
    """

    def __init__(self, source: Path, target: Path, request: dict[str, Any], needs: Mapping[str, int],
                 blocks: int):
        self.source, self.target, self.blocks = source, target, blocks
        self.request, self.needs = request, dict(needs)
        self.rows: list[dict[str, Any]] = []
        self.shards: dict[str, str] = {}
        self._resume()
        self._check_room()

    @property
    def finished(self) -> int:
        return min(len(self.shards), self.blocks)

    @property
    def complete(self) -> bool:
        return (self.target / PROVENANCE).is_file()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """For a while, write where no other process does."""
        self.target.mkdir(parents=True, exist_ok=True)
        with locked(self.target / LOCK, _TAKEN.format(self.target)):
            self._resume()  # another process may have come further since
            for name, digest in self.shards.items():
                if not (self.target / name).is_file() or file_hash(self.target / name) != digest:
                    raise UsageError(f"{self.target / name} is not as it was written; remove {self.target} "
                                     "and prune again.")
            if not self.rows:
                self._note()
            yield
            for name in (PROGRESS, LOCK):
                (self.target / name).unlink(missing_ok=True)

    def shard(self, index: int) -> Path:
        """The file of block `index`; the one after the last holds the rest."""
        return self.target / f"model-{index + 1:05d}-of-{self.blocks + 1:05d}.safetensors"

    def pruned(self, index: int) -> Path | None:
        return self.shard(index) if index < self.finished else None

    def write_block(self, index: int, tensors: Mapping[str, Entry], rows: list[dict[str, Any]]) -> None:
        self._write(self.shard(index), tensors)
        self.rows += rows
        self._note()

    def finish(self, rest: Mapping[str, Entry], meta: Mapping[str, Any]) -> None:
        """The rest, the index, the configuration; and at the very last the word that all is there."""
        self._write(self.shard(self.blocks), rest)
        shards = [self.shard(index) for index in range(self.blocks + 1)]
        places = {name: shard.name for shard in shards for name in Checkpoint(shard)}
        total = sum(shard.stat().st_size for shard in shards)
        write_json(self.target / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
        for file in sorted(self.source.iterdir()):
            if file.suffix in _COPIED and file.name not in (INDEX, PROVENANCE, PROGRESS, "config.json"):
                shutil.copyfile(file, self.target / file.name)
        config = json.loads((self.source / "config.json").read_text(encoding="utf-8"))
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = self.request["dtype"]
        write_json(self.target / "config.json", config)
        write_json(self.target / PROVENANCE, {"request": self.request, "meta": meta, "rows": self.rows,
                                              "shards": self.shards})

    def _write(self, shard: Path, tensors: Mapping[str, Entry]) -> None:
        self.shards[shard.name] = write_safetensors(shard, tensors)

    def _note(self) -> None:
        write_json(self.target / PROGRESS, {"request": self.request, "needs": self.needs, "rows": self.rows,
                                            "shards": self.shards, "finished": self.finished,
                                            "blocks": self.blocks})

    def _resume(self) -> None:
        held = {file.name for file in self.target.iterdir()} if self.target.is_dir() else set()
        if not held - {LOCK, f"{PROGRESS}.part"}:
            return
        record = next((self.target / name for name in (PROVENANCE, PROGRESS) if name in held), None)
        if record is None:
            raise UsageError(f"target {self.target} is not empty and holds no interrupted run; give a new "
                             "directory.")
        found: Any = None
        try:
            found = json.loads(record.read_text(encoding="utf-8"))
            then, rows, shards = dict(found["request"]), list(found["rows"]), dict(found["shards"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            what = f"record {record} is damaged; remove {self.target}, or"
            if found and isinstance(found, dict) and "request" not in found:  # of `prune --save-model`, say
                what = f"target {self.target} holds what another command wrote;"
            raise UsageError(f"{what} give a new directory.") from error
        other = ", ".join(key for key, value in self.request.items() if then.get(key) != value)
        if other:
            raise UsageError(f"target {self.target} holds a run of another request (it differs in {other}); "
                             "give a new directory, or ask for the same.")
        self.rows, self.shards = rows, shards

    def _check_room(self) -> None:
        held = sum(file.stat().st_size for file in self.target.glob("*") if file.is_file())
        check_room(self.target, self.needs["disk"] - held, "target")
