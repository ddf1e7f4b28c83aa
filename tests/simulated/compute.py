"""What notebooks 02 to 07 ask of a model, on one device.

`python -m tests.simulated.compute cpu|sim` prints its numbers as JSON, a list for each call; masks are
bits in hexadecimal digits.
"""
from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from itertools import chain

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import prunekit as pk
from prunekit.models import prunable_layers

FLOAT32 = {"dtype": "float32"}
PRUNED = {
    "magnitude": {"method": "magnitude", "sparsity": 0.5},
    "wanda 2:4": {"method": "wanda", "sparsity": 0.5, "pattern": "2:4"},
    "variant": {"method": "wanda", "sparsity": 0.6, "group": "variant"},
    "pruner-zero": {"method": "pruner-zero", "sparsity": 0.6},
    "sparsegpt": {"method": "sparsegpt", "sparsity": 0.6},
    "obs": {"method": "wanda", "sparsity": 0.5, "update": "obs"},
    "admm": {"method": "wanda", "sparsity": 0.5, "update": "admm"},
}


def numbers(device: str) -> Iterator[tuple[str, list[float] | str]]:
    model, tokenizer = pk.load_model("embedded/llama", device=device, **FLOAT32)
    reference, _ = pk.load_model("embedded/llama", device=device, **FLOAT32)
    assert {parameter.device.type for parameter in model.parameters()} == {device}
    drawn = {role: pk.token_windows("embedded", tokenizer, role, n, 32) for role, n in
             {"calibration": 128, "gradient": 4, "search": 4, "test": 4}.items()}  # so that H has full rank
    yield "dense", pk.perplexity(model, drawn["test"], 32, progress=False).nll.tolist()
    gradients = pk.collect_gradients(model, drawn["gradient"], progress=False)
    yield "gradients", [float(G.sum()) for G in gradients.values()]
    results = pk.prune_and_measure(model, drawn["calibration"], drawn["test"], PRUNED.values(),
                                   gradients=gradients, progress=False)
    for name, result in zip(PRUNED, results, strict=True):
        yield name, result.perplexity.nll.tolist()
        layers = chain.from_iterable(prunable_layers(model))
        kept = torch.cat([layer.weight.flatten() != 0 for layer in layers])
        yield f"masks of {name}", np.packbits(kept.cpu().numpy()).tobytes().hex()
    bench = pk.Bench("embedded/llama", drawn["calibration"], drawn["search"], gradients=gradients,
                     device=device, **FLOAT32)
    evaluator = pk.Evaluator(bench, ["0.6", "2:4"], rungs=(2, 4))
    found = list(pk.evolve(evaluator, budget=6, population=4, progress=False))
    yield "search", list(found[-1].best.losses)
    for _ in pk.prune_and_measure(model, drawn["calibration"], drawn["test"], [PRUNED["magnitude"]],
                                  progress=False):
        apart = pk.divergence(model, reference, drawn["test"], 32, progress=False)
        yield "divergence", apart.kl.tolist()
        answers = pk.zero_shot(model, tokenizer, ["embedded_recall"], limit=4, progress=False)
        yield "tasks", answers["value"].tolist()
        tuned = pk.finetune_lora(model, drawn["gradient"], pk.LoraOptions(), progress=False)
        yield "adapted", pk.perplexity(model, drawn["test"], 32, progress=False).nll.tolist()
        tuned.merge()
        yield "merged", pk.perplexity(model, drawn["test"], 32, progress=False).nll.tolist()


if __name__ == "__main__":
    if sys.argv[1] == "sim":
        os.environ["ACCELERATE_TORCH_DEVICE"] = "sim:0"  # where the Trainer works
        import tests.simulated.device  # noqa: F401
    torch.manual_seed(0)
    with sdpa_kernel(SDPBackend.MATH):  # the one that both have: scores that nearly tie round alike
        print(json.dumps(dict(numbers(sys.argv[1]))))
