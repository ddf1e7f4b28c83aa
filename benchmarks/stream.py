"""A checkpoint pruned under a hard limit on memory: the result as in memory, the peak flat in its blocks.

    python benchmarks/stream.py                 about 1.5 GB on disk, 600 MB beyond the interpreter
    python benchmarks/stream.py --blocks 12     smaller

Writes benchmarks/stream.json and draws docs/growth.svg: processor seconds and peak memory against blocks and
windows. The limit is RLIMIT_DATA, which counts every private byte that a process may write to, touched or
not: a run that would pass it dies. The interpreter's own footprint is taken after a warm-up on a tiny model.
"""
from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from prunekit.models import DTYPES, prunable_layers
from prunekit.search.bench import fast_dtype
from prunekit.streaming.checkpoint import Checkpoint, Entry, write_safetensors

HIDDEN, INTERMEDIATE, HEADS, VOCABULARY = 1024, 2816, 16, 16000
SEQLEN = 512
MB = 10**6
BLOCK = 4 * HIDDEN**2 + 3 * HIDDEN * INTERMEDIATE  # weights


def make(path: Path, dtype: str, blocks: int, hidden: int = HIDDEN, intermediate: int = INTERMEDIATE,
         vocabulary: int = VOCABULARY) -> Path:
    """A random LLaMA, and beside it a random G in float16, written tensor by tensor."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("llama", vocab_size=vocabulary, hidden_size=hidden,
                                  intermediate_size=intermediate,
                                  num_hidden_layers=blocks, num_attention_heads=HEADS, dtype=dtype)
    number, generator = DTYPES[dtype], torch.Generator().manual_seed(0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=number)
    path.mkdir(parents=True)
    config.save_pretrained(path)
    write_safetensors(path / "model.safetensors", {
        name: Entry(number, tuple(p.shape),
                    lambda p=p: torch.randn(p.shape, generator=generator).mul_(0.03).to(number))
        for name, p in model.state_dict().items()})
    write_safetensors(gradients(path), {
        layer.name: Entry(torch.float16, tuple(layer.weight.shape),
                          lambda shape=layer.weight.shape: torch.rand(shape, generator=generator).half())
        for layers in prunable_layers(model) for layer in layers})
    return path


def gradients(path: Path) -> Path:
    return path.with_name(f"{path.name}.gradients.safetensors")


def windows(count: int) -> torch.Tensor:
    return torch.randint(3, 128, (count, SEQLEN), generator=torch.Generator().manual_seed(0))


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def digests(path: Path) -> dict[str, str]:
    """A hash of every tensor of a checkpoint."""
    return {name: digest(stored.read()) for name, stored in Checkpoint(path).items()}


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy())).hexdigest()


def streamed(source: Path, target: Path, method: str, limit: int, tiny: Path, count: int) -> dict[str, Any]:
    """In a process of its own: prune under the limit, and tell what it took."""
    from prunekit.streaming.stream import prune_checkpoint

    prune_checkpoint(tiny, target.with_name(target.name + "-warm"), windows(1)[:, :64], method, 0.5,
                     gradients=gradients(tiny), progress=False)
    gc.collect()
    data, before = status("VmData"), status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    resource.setrlimit(resource.RLIMIT_DATA, (data + limit * MB, data + limit * MB))
    start, used = time.perf_counter(), time.process_time()
    report = prune_checkpoint(source, target, windows(count), method, 0.5, gradients=gradients(source),
                              progress=False)
    return {"seconds": round(time.perf_counter() - start, 1),
            "cpu_seconds": round(time.process_time() - used, 1),
            "peak_mb": round((status("VmHWM") - before) / MB, 1),
            "announced_mb": round(report.meta["memory"] / MB, 1),
            "disk_mb": round(sum(file.stat().st_size for file in target.iterdir()) / MB, 1),
            "announced_disk_mb": round(report.meta["disk"] / MB, 1), "sparsity": report.sparsity}


def in_memory(source: Path, method: str, tiny: Path, count: int) -> dict[str, Any]:
    """In a process of its own: prune the whole model, and hash its tensors."""
    import prunekit as pk

    def prune(path: Path, drawn: torch.Tensor) -> torch.nn.Module:
        model, _ = pk.load_model(path, dtype=json.loads((path / "config.json").read_text())["dtype"],
                                 device="cpu")
        G = pk.Gradients.load(gradients(path)) if "G" in pk.METHODS[method].needs else None
        pk.prune(model, drawn, method, 0.5, gradients=G, progress=False)
        return model

    prune(tiny, windows(1)[:, :64])
    before, start = status("VmRSS"), time.perf_counter()
    model = prune(source, windows(count))
    seconds, peak = time.perf_counter() - start, status("VmHWM") - before
    return {"seconds": round(seconds, 1), "peak_mb": round(peak / MB, 1),
            "digests": {name: digest(tensor) for name, tensor in model.state_dict().items()}}


def child(*arguments: Any) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, "--child", json.dumps([str(a) for a in arguments])],
                          check=True,
                          capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return json.loads(done.stdout.splitlines()[-1])


def run(folder: Path, dtype: str, blocks: int, methods: list[str], limit: int, number: int) -> dict[str, Any]:
    tiny = make(folder / "tiny", dtype, 2, 64, 128, 128)
    rows = []
    sizes = sorted({max(2, blocks // 4), max(2, blocks // 2), blocks})
    for count, drawn in [*((count, number) for count in sizes[::-1]),
                         *((sizes[0], number * times) for times in (2, 4))]:
        source = folder / f"blocks-{count}"
        if not source.exists():
            make(source, dtype, count)
        size = (source / "model.safetensors").stat().st_size
        for method in methods:
            target = folder / f"{method}-{count}-{drawn}"
            row = {"blocks": count, "windows": drawn, "method": method, "checkpoint_mb": round(size / MB),
                   "limit_mb": limit}
            row |= child("streamed", source, target, method, limit, tiny, drawn)
            if count == blocks:
                whole = child("in_memory", source, method, tiny, drawn)
                row |= {"in_memory_seconds": whole["seconds"], "in_memory_peak_mb": whole["peak_mb"],
                        "identical": digests(target) == whole["digests"]}
            rows.append(row)
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
            for file in target.iterdir():
                file.unlink()
    return {"machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
                        "threads": 1,
                        "load": [round(value, 1) for value in os.getloadavg()], "torch": torch.__version__},
            "model": {"family": "llama", "dtype": dtype, "hidden": HIDDEN, "intermediate": INTERMEDIATE,
                      "seqlen": SEQLEN}, "rows": rows}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Time should be a line through what a model of no blocks takes, memory flat in the blocks."""
    import matplotlib.pyplot as plt

    from prunekit import figures

    with plt.rc_context(figures.STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(6.9, 4.2), layout="constrained", sharex="col",
                                    sharey="row")
        for column, (x, fixed) in enumerate((("blocks", "windows"), ("windows", "blocks"))):
            at = min(row[fixed] for row in rows)
            for place, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
                look = {"color": figures.COLOURS[place], "marker": figures.MARKERS[place],
                        "linestyle": figures.DASHES[place],
                        "markerfacecolor": "none"}  # hollow, since wanda and gblm take the same memory
                chosen = [row for row in rows if row["method"] == method and row[fixed] == at]
                chosen.sort(key=lambda row: row[x])
                for axis, y in zip(axes[:, column], ("cpu_seconds", "peak_mb"), strict=True):
                    axis.plot([row[x] for row in chosen], [row[y] for row in chosen], label=method, **look)
            axes[1, column].set_xlabel(f"decoder blocks, {at} windows" if x == "blocks" else
                                       f"windows of {SEQLEN} tokens, {at} blocks")
        for axis in axes.flat:
            axis.set_ylim(bottom=0)
            axis.set_xlim(left=0)
        axes[0, 0].set_ylabel("processor time (s)")
        axes[1, 0].set_ylabel("peak memory (MB)")
        axes[0, 0].legend()
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default=fast_dtype("cpu"), choices=DTYPES,
                        help="bfloat16 where the processor has it")
    parser.add_argument("--blocks", type=int, help="as many as make 1.5 GB")
    parser.add_argument("--methods", nargs="+", default=["magnitude", "wanda", "gblm", "sparsegpt"])
    parser.add_argument("--windows", type=int, default=4,
                        help=f"calibration windows of {SEQLEN} tokens; 2 and 4 times as many as well")
    parser.add_argument("--limit", type=int, default=600, help="MB beyond the interpreter's own footprint")
    parser.add_argument("--folder", help="where the checkpoints go (a temporary directory)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        torch.set_num_threads(1)
        kind, source, *rest = json.loads(options.child)
        if kind == "streamed":
            target, method, limit, tiny, count = rest
            result = streamed(Path(source), Path(target), method, int(limit), Path(tiny), int(count))
        else:
            method, tiny, count = rest
            result = in_memory(Path(source), method, Path(tiny), int(count))
        sys.stdout.write(json.dumps(result) + "\n")
        return
    weights = 1500 * MB / DTYPES[options.dtype].itemsize
    blocks = options.blocks or round((weights - 2 * VOCABULARY * HIDDEN) / BLOCK)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = run(Path(folder), options.dtype, blocks, options.methods, options.limit, options.windows)
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result["rows"], Path(__file__).parents[1] / "docs" / "growth.svg")


if __name__ == "__main__":
    main()
