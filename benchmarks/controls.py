"""Is the search real? Fitness that means nothing, a G that means nothing, and targets that are known.

    python benchmarks/controls.py [--shuffled 20] [--candidates 150] [--seeds 10] [--budget 5000]
        [--output benchmarks/controls.json]

Three controls. Shuffled fitness: preset `modern` breeds on losses drawn from a hat; its winner's true loss on
test windows must not be lower than that of another candidate of the same search. Permuted G: with G's entries
shuffled within every layer, metrics with G must not be more frequent in the best tenth of random distinct
metrics; the true G is counted beside it. Planted targets: a random tree is hidden behind the share of weights
on which masks differ from its own; how often, and after how many evaluations, `modern` and random distinct
metrics reach the hidden masks, by the size of its canonical form. On the embedded LLaMA at 70 %, in float32
on one thread.
"""
from __future__ import annotations

import argparse
import json
import random
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from scipy import stats
from shared import machine, material, show

import prunekit as pk
from prunekit.errors import UsageError
from prunekit.search.random_trees import half_and_half

MODEL, SEQLEN, SPARSITY, WINDOWS = "embedded/llama", 128, 0.7, 16
SIZES = range(3, 10)


class World:
    """The model's windows by role and its G."""

    def __init__(self) -> None:
        counts = {"calibration": 32, "gradient": 64, "search": WINDOWS, "test": WINDOWS}
        _, self.windows, self.G = material(MODEL, SEQLEN, counts)

    def evaluator(self, G: pk.Gradients) -> pk.Evaluator:
        bench = pk.Bench(MODEL, self.windows["calibration"], self.windows["search"], gradients=G,
                         dtype="float32", device="cpu")
        return pk.Evaluator(bench, [SPARSITY])

    def permuted(self) -> pk.Gradients:
        rng = torch.Generator().manual_seed(0)
        return pk.Gradients({name: G.flatten()[torch.randperm(G.numel(), generator=rng)].view_as(G)
                             for name, G in self.G.items()})


def shuffled(world: World, searches: int) -> dict[str, object]:
    """True test loss of another candidate minus that of the winner, over searches on shuffled losses."""
    evaluator, gains = world.evaluator(world.G).on([world.windows["test"]]), []

    def loss(tree: pk.Tree) -> float | None:
        try:
            return float(evaluator.losses(tree).mean())
        except UsageError:  # no metric on this model: a shuffled loss does not know
            return None

    for seed in range(searches):
        with TemporaryDirectory() as folder:
            journal = Path(folder) / "journal.jsonl"
            list(pk.evolve(pk.Shuffled(tuple(i / 1000 for i in range(1000)), seed), "modern", 60, seed,
                           journal, progress=False))
            ranked = [one.tree for one in pk.replay(journal).ranked]
        measured = ((tree, found) for tree in ranked if (found := loss(tree)) is not None)
        winner, best = next(measured)
        rest = [tree for tree in ranked if tree != winner]
        random.Random(seed).shuffle(rest)
        gains.append(next(found for tree in rest if (found := loss(tree)) is not None) - best)
    low, high = stats.t.interval(0.95, len(gains) - 1, np.mean(gains), stats.sem(gains))
    return {"searches": searches, "gain": float(np.mean(gains)), "low": float(low), "high": float(high)}


def reads_G(world: World, G: pk.Gradients, candidates: int) -> dict[str, object]:
    """Of random distinct metrics: how many of the best tenth read G, how many others (Fisher's p)."""
    with TemporaryDirectory() as folder:
        journal = Path(folder) / "journal.jsonl"
        list(pk.evolve(world.evaluator(G), "random-distinct", candidates, 0, journal, racing=False,
                       progress=False))
        frame = pk.traits(pk.history(journal))
    has, best = frame["G"] > 0, frame["fitness"].rank(pct=True) <= 0.1
    table = pd.crosstab(has, best).reindex(index=[True, False], columns=[True, False],
                                           fill_value=0).to_numpy()
    return {"metrics": len(frame), "best tenth": f"{table[0, 0]} of {table[:, 0].sum()}",
            "others": f"{table[0, 1]} of {table[:, 1].sum()}",
            "p": float(stats.fisher_exact(table, alternative="greater").pvalue)}


def hidden(size: int, seed: int) -> pk.Planted:
    """A target whose canonical form has this size, reads W, and is a metric on the planted layers."""
    rng = random.Random(f"target/{size}/{seed}")
    while True:
        key = pk.rank_key(half_and_half(rng, (1, 2, 3, 4)))
        tree = pk.Tree(key[1]) if key[0] != "invalid" else None
        if tree and tree.size == size and "W" in tree.terminals and tree[0] != "neg":
            planted = pk.Planted(tree, seed=seed)
            if planted(tree) == 0:
                return planted


def planted(size: int, targets: list[pk.Planted], budget: int, preset: str) -> dict[str, object]:
    """How often the hidden masks are found; the median evaluations where they are, the distance where not."""
    taken, missed = [], []
    for seed, target in enumerate(targets):
        for generation in pk.evolve(target, preset, budget, seed, progress=False):
            if generation.best and generation.best.fitness == 0:
                taken.append(generation.evaluated)
                break
        else:
            missed.append(generation.best.fitness)
    return {"size": size, "preset": preset, "found": len(taken), "of": len(targets),
            "evaluations": statistics.median(taken) if taken else None,
            "distance": statistics.median(missed) if missed else 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shuffled", type=int, default=20, help="searches on shuffled losses")
    parser.add_argument("--candidates", type=int, default=150, help="random distinct metrics for either G")
    parser.add_argument("--seeds", type=int, default=10, help="planted targets of each size")
    parser.add_argument("--budget", type=int, default=5000, help="evaluations for each target")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    world = World()
    result = {"model": MODEL, "sparsity": SPARSITY, "windows": WINDOWS, "budget": args.budget,
              "machine": machine(1), "shuffled": shuffled(world, args.shuffled),
              "G": {"true": reads_G(world, world.G, args.candidates),
                    "permuted": reads_G(world, world.permuted(), args.candidates)}}
    print(json.dumps({key: result[key] for key in ("shuffled", "G")}, indent=1), flush=True)
    result["planted"] = []
    print("| size | preset | found | evaluations | distance if not |\n|---|---|---|---|---|")
    for size in SIZES:
        targets = [hidden(size, seed) for seed in range(args.seeds)]
        for preset in ("modern", "random-distinct"):
            found = planted(size, targets, args.budget, preset)
            result["planted"].append(found)
            show(size, preset, f"{found['found']} of {found['of']}", found["evaluations"],
                 f"{found['distance']:.4f}")
            args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
