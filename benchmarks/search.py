"""What a search costs on the embedded LLaMA, and whether its savings are fair.

    python benchmarks/search.py [--budget 100] [--audit 60] [--paper 350] [--workers 1]
        [--models DIR…] [--output benchmarks/search.json]

Fixed sizes: calibration 32 windows of 128 tokens, fitness 16k tokens, a full perplexity 64k tokens, float32,
60 %. Five measurements: seconds of preset `paper`; distinct candidates per minute of preset `modern`, and of
the plain way (fresh statistics, prune, full perplexity, for every candidate); how well the first rung of a
race ranks random distinct candidates; how many of the ten best of a search without races a race would have
stopped; and a candidate's time by that of its scores and forward passes alone, also of `--models` (60 % and
2:4, 12 windows of 256 tokens, in bfloat16). Every time is given by the clock and by the processor, since the
clock also counts what else the machine does; the last is the processor's.
"""
from __future__ import annotations

import argparse
import json
import statistics
import time
from bisect import insort
from collections.abc import Callable
from pathlib import Path

import torch
from scipy import stats
from shared import machine, material, show

import prunekit as pk
from prunekit.analysis.history import replay
from prunekit.search.records import Candidate, Race, behind
from prunekit.search.state import AUDIT, RACE_FEWEST, RACE_RANK, Search
from prunekit.workbook.protocol import label

MODEL, SEQLEN, SPARSITY, DTYPE = "embedded/llama", 128, 0.6, "float32"
CALIBRATION, FITNESS, FULL, GRADIENT = 32, 128, 512, 64  # windows
RUNG = 16


class World:
    """The model, its windows by role, G, and the evaluator that all searches share."""

    def __init__(self, folder: Path):
        self.folder = folder
        counts = {"calibration": CALIBRATION, "gradient": GRADIENT, "search": FITNESS + FULL}
        self.model, windows, self.G = material(MODEL, SEQLEN, counts, DTYPE)
        self.calibration, self.full = windows["calibration"], windows["search"][FITNESS:]
        saved = folder / "evaluator.safetensors"
        if saved.exists():
            self.evaluator = pk.Evaluator.load(saved)
        else:
            bench = pk.Bench(MODEL, self.calibration, windows["search"][:FITNESS], gradients=self.G,
                             dtype=DTYPE, device="cpu")
            self.evaluator = pk.Evaluator(bench, [SPARSITY], rungs=(RUNG, 4 * RUNG))
            self.evaluator.save(saved)

    def search(self, preset: str, budget: int, workers: int = 1, **changes: object) -> Search:
        kind, journal = "processes" if workers > 1 else "serial", self.folder / f"{preset}.jsonl"
        journal.unlink(missing_ok=True)  # going on where an earlier run ended would be timed as a whole one
        with pk.open_executor(kind, workers=workers if workers > 1 else None) as executor:
            for _ in pk.evolve(self.evaluator, preset, budget, journal=journal, executor=executor, **changes):
                pass
        return replay(journal)

    def plainly(self, tree: pk.Tree) -> float:
        """One candidate as a script without a search would measure it."""
        settings = [{"method": tree, "sparsity": SPARSITY}]
        return next(iter(pk.prune_and_measure(self.model, self.calibration, self.full, settings,
                                              gradients=self.G, progress=False))).perplexity.value


def timed(task: Callable[[], object]) -> tuple[object, float, float]:
    """Result, seconds by the clock, seconds of this process on the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    found = task()
    return found, time.perf_counter() - clock, time.process_time() - processor


def first_rung(search: Search) -> dict[str, float]:
    """Of candidates measured to the end: the rank correlation of the first rung with the whole."""
    whole = measured(search)
    early = [sum(one.losses[:RUNG]) / RUNG for one in whole]
    return {"audited": len(whole),
            "spearman": float(stats.spearmanr(early, [one.fitness for one in whole]).statistic)}


def raced(search: Search) -> dict[str, int]:
    """A search without races, raced afterwards: each candidate against the tenth best of those before it that
    were not stopped. How many would have been stopped, and how many of the ten best.
    """
    whole = measured(search)
    best = {one.index for one in sorted(whole, key=lambda one: one.order)[:RACE_RANK]}
    ranked: list[Candidate] = []
    stopped = set()
    for one in whole:
        race = Race(tuple(ranked[:RACE_RANK][-1].losses)) if len(ranked) >= RACE_FEWEST else None
        if race and any(behind(one.losses[:end], race) for end in (RUNG, 4 * RUNG)):
            stopped.add(one.index)
        else:
            insort(ranked, one, key=lambda one: one.order)
    return {"candidates": len(whole), "stopped": len(stopped), "leaders": len(best),
            "leaders stopped": len(best & stopped)}


def overhead(evaluator: pk.Evaluator, repeats: int) -> dict[str, object]:
    """Processor time of a candidate by that of what cannot be saved: its scores and its forward passes."""
    bench, tree = evaluator.benches[0], pk.METHODS["pruner-zero"].tree

    @torch.no_grad()
    def bare() -> None:
        for index in range(len(bench.layers)):
            bench.scores(tree, index)
        for _ in evaluator.targets:
            bench.measure(bench.search)

    found = []
    for _ in range(repeats + 1):  # the first warms up
        (*_, whole), (*_, part) = timed(lambda: evaluator(tree)), timed(bare)
        found.append((whole / part, whole))
    ratios, seconds = zip(*found[1:], strict=True)
    return {"model": label(bench.name), "targets": list(map(str, evaluator.targets)), "repeats": repeats,
            "candidate": round(statistics.median(seconds), 2), "ratio": round(statistics.median(ratios), 3),
            "lowest": round(min(ratios), 3), "highest": round(max(ratios), 3)}


def candidate_of(name: str) -> pk.Evaluator:
    """A real model as it is searched on a processor."""
    counts = {"calibration": 32, "gradient": 8, "search": 12}
    _, windows, G = material(name, 256, counts, "bfloat16")
    bench = pk.Bench(name, windows["calibration"], windows["search"], gradients=G, dtype="bfloat16")
    return pk.Evaluator(bench, [SPARSITY, "2:4"], rungs=(3, 6))


def ratios(rows: list[dict[str, float]], modern: Search) -> dict[str, float]:
    """Candidates per minute, modern to plain: candidate by candidate, and distinct ones, since a plain search
    would also measure those that `modern` proved, or found by their masks, to be known."""
    once = rows[0]["per minute"] / rows[1]["per minute"]
    known = modern.saved["form"] + modern.saved["masks"]
    return {"ratio": round(once, 1), "known": known,
            "ratio of distinct": round(once * (1 + known / modern.evaluated), 1)}


def measured(search: Search) -> list[Candidate]:
    return [one for one in search.candidates.values() if one.complete and one.same is None]


def measure(world: World, args: argparse.Namespace) -> dict[str, object]:
    rows = []

    def row(what: str, candidates: int, clock: float, processor: float) -> None:
        rows.append({"what": what, "candidates": candidates, "seconds": round(clock, 1),
                     "processor": round(processor, 1), "per minute": round(60 * candidates / processor, 2)})

    modern, *spent = timed(lambda: world.search("modern", args.budget, args.workers))
    row("preset modern, distinct candidates", modern.evaluated, *spent)
    trees = [one.tree for one in modern.ranked[:args.plain]]
    _, *spent = timed(lambda: [world.plainly(tree) for tree in trees])
    row("the plain way", len(trees), *spent)
    fair = {}
    if args.paper:
        paper, *spent = timed(lambda: world.search("paper", args.paper, args.workers))
        row("preset paper, 50 + 300 candidates" if args.paper == 350 else "preset paper, candidates",
            len(paper.candidates), *spent)
        fair["paper"] = raced(paper)
    costs = [overhead(evaluator, 5) for evaluator in (world.evaluator, *map(candidate_of, args.models))]
    audit = world.search("random-distinct", args.audit, racing=False)
    return {"rows": rows, **ratios(rows, modern), **first_rung(audit),
            "overhead": costs, "raced afterwards": fair | {"random": raced(audit)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--budget", type=int, default=100, help="distinct evaluations of preset modern")
    parser.add_argument("--audit", type=int, default=60, help="random candidates measured to the end")
    parser.add_argument("--paper", type=int, default=350, help="candidates of preset paper; 0: leave it out")
    parser.add_argument("--plain", type=int, default=5, help="candidates measured the plain way")
    parser.add_argument("--workers", type=int, default=1,
                        help="processes; the processor's seconds are right for 1 only")
    parser.add_argument("--models", nargs="*", default=[],
                        help="directories of further ones, for a candidate's time")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-search"),
                        help="evaluator and journals")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(World(args.folder), args)
    about = {"model": MODEL, "seqlen": SEQLEN, "sparsity": SPARSITY, "dtype": DTYPE,
             "calibration": CALIBRATION, "fitness": FITNESS, "full": FULL, "workers": args.workers,
             "audit share": AUDIT, "machine": machine(1)}
    args.output.write_text(json.dumps(about | result, indent=1) + "\n")
    show("what", "candidates", "seconds", "processor seconds", "per minute of processor")
    show(*["---"] * 5)
    for row in result["rows"]:
        show(*(row[key] for key in ("what", "candidates", "seconds", "processor", "per minute")))
    print(f"\nmodern / plain: {result['ratio']} times, and {result['ratio of distinct']} times as many "
          f"distinct ones, since a plain search would measure {result['known']} known ones too; Spearman of "
          f"the first {RUNG} windows with all {FITNESS}: {result['spearman']:.3f} over {result['audited']}")
    for row in result["overhead"]:
        print(f"{row['model']}: a candidate takes {row['ratio']} times ({row['lowest']} to {row['highest']}) "
              f"its scores and forward passes, {row['candidate']} s")
    for name, found in result["raced afterwards"].items():
        print(f"{name}, raced afterwards: {found['stopped']} of {found['candidates']} would have been "
              f"stopped, of the {found['leaders']} best {found['leaders stopped']}")


if __name__ == "__main__":
    main()
