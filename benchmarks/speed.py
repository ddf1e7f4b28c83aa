"""Seconds of every method as a multiple of a dense forward pass, measured in turns in one process.

    python benchmarks/speed.py [--repeats 7] [--output benchmarks/speed.json]

The model is a random LLaMA of 4 blocks (width 1024, MLP 2816, 16 heads, 51 M prunable weights), the windows
are 16 of 512 tokens, the dtype is bfloat16. The unit is one dense pass of the windows through the blocks.
Before every measurement the unit is measured anew, and the quotient is of the two; reported are medians and
the spread.
"""
from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from shared import machine, show
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import prunekit as pk
from prunekit.models import prunable_layers
from prunekit.pruning.masks import keep_mask
from prunekit.pruning.walk import BATCH_TOKENS

WINDOWS, SEQLEN = 16, 512


def build(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=8192, hidden_size=1024, intermediate_size=2816, num_hidden_layers=4,
                         num_attention_heads=16, num_key_value_heads=16, max_position_embeddings=SEQLEN)
    return LlamaForCausalLM(config).to(dtype).eval()


def seconds(task: Callable[[], object]) -> float:
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


class Bench:
    """The model, its windows, and everything that is timed."""

    def __init__(self, dtype: torch.dtype):
        self.model = build(dtype)
        generator = torch.Generator().manual_seed(1)
        self.windows = torch.randint(8192, (WINDOWS, SEQLEN), generator=generator)
        self.layers = [layer for block in prunable_layers(self.model) for layer in block]
        self.weights = [layer.weight.clone() for layer in self.layers]
        self.G = pk.Gradients({layer.name: torch.rand(layer.weight.shape, generator=generator)
                               for layer in self.layers})
        self.X = {layer.name: torch.rand(1, layer.weight.shape[1], generator=generator)
                  for layer in self.layers}

    def restore(self) -> None:
        with torch.no_grad():
            for layer, weight in zip(self.layers, self.weights, strict=True):
                layer.weight.copy_(weight)

    @torch.no_grad()
    def dense(self) -> None:
        for ids in self.windows.split(BATCH_TOKENS // SEQLEN):
            self.model.model(input_ids=ids, use_cache=False)

    def prune(self, method: str, pattern: str) -> Callable[[], object]:
        return lambda: pk.prune(self.model, self.windows, method, 0.5, pattern, gradients=self.G,
                                progress=False)

    @torch.no_grad()
    def masks(self, pattern: str) -> None:
        tree = pk.METHODS["wanda"].tree
        for layer in self.layers:
            keep_mask(tree.score(layer.weight, X=self.X[layer.name]), 0.5, pattern)

    def backward(self) -> None:
        for window in self.windows:
            self.model(input_ids=window[None], labels=window[None], use_cache=False).loss.backward()
            self.model.zero_grad()

    def gradients(self) -> None:
        pk.collect_gradients(self.model, self.windows, progress=False)

    @torch.no_grad()
    def forward_with_loss(self) -> None:
        for ids in self.windows.split(BATCH_TOKENS // SEQLEN):
            self.model(input_ids=ids, labels=ids, use_cache=False)

    def perplexity(self) -> None:
        pk.perplexity(self.model, self.windows, SEQLEN, progress=False)


def rows(bench: Bench) -> list[tuple[str, str, Callable[[], object], Callable[[], object]]]:
    """(what, unit, task, yardstick)"""
    methods = [("magnitude", "unstructured"), ("wanda", "2:4"), ("wanda", "unstructured"),
               ("pruner-zero", "2:4"), ("pruner-zero", "unstructured"), ("gblm", "unstructured"),
               ("sparsegpt", "2:4"), ("sparsegpt", "unstructured")]
    pruned = [(f"prune {method} {pattern}", "dense pass", bench.prune(method, pattern), bench.dense)
              for method, pattern in methods]
    return [*pruned,
            ("scores and masks, wanda 2:4", "dense pass", lambda: bench.masks("2:4"), bench.dense),
            ("scores and masks, wanda unstructured", "dense pass",
             lambda: bench.masks("unstructured"), bench.dense),
            ("collect_gradients", "plain backward", bench.gradients, bench.backward),
            ("perplexity", "forward with loss", bench.perplexity, bench.forward_with_loss)]


def measure(bench: Bench, repeats: int) -> list[dict[str, object]]:
    found: dict[str, list[tuple[float, float]]] = {}
    table = rows(bench)
    for repeat in range(repeats + 1):  # the first round warms up
        for name, _, task, yardstick in table:
            bench.restore()
            unit, own = seconds(yardstick), seconds(task)
            if repeat:
                found.setdefault(name, []).append((own / unit, own))
    return [{"what": name, "unit": unit, "ratio": round(statistics.median(r for r, _ in found[name]), 2),
             "lowest": round(min(r for r, _ in found[name]), 2),
             "highest": round(max(r for r, _ in found[name]), 2),
             "seconds": round(statistics.median(s for _, s in found[name]), 2)} for name, unit, *_ in table]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    result = measure(Bench(getattr(torch, args.dtype)), args.repeats)
    about = {"windows": WINDOWS, "seqlen": SEQLEN, "dtype": args.dtype, "repeats": args.repeats,
             "machine": machine(torch.get_num_threads())}
    args.output.write_text(json.dumps(about | {"rows": result}, indent=1) + "\n")
    print("| what | unit | ratio (median) | lowest to highest | seconds |\n|---|---|---|---|---|")
    for row in result:
        show(row["what"], row["unit"], f"{row['ratio']:.2f}", f"{row['lowest']:.2f} to {row['highest']:.2f}",
             f"{row['seconds']:.2f}")


if __name__ == "__main__":
    main()
