"""What each part adds to SparseGPT: the update as a whole, its growing mask, evolved metrics, budgets.

    python benchmarks/updates.py --model DIR --corpus FOLDER [--texts FOLDER …] [--windows FILE]
        [--targets 0.6 2:4] [--parts PART …] [--lines NAME=METRIC …] [--every 1] [--evaluations 0]
        [--tasks FOLDER] [--documents 100] --output FILE

Each part is pruned anew and measured on the same test windows of the corpus and of further texts, by default
in float32 on one thread, and on the first documents of zero-shot tasks, if there is a folder with theirs;
ratios of perplexity and differences of accuracy are paired against SparseGPT. A cost is the time of pruning
(of an evolved budget: with its search) by that of a dense pass of the calibration windows, taken just before
it, since other work on the machine slows both. What the output file has is kept and not measured again, and
a search has its journal beside it, so a run that was ended goes on; a file of other windows or of another
model, or with another metric under a line's name, is refused.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from shared import machine, show
from torch import Tensor

import prunekit as pk
from prunekit.choices import TASKS, Target, text_name
from prunekit.evaluate.compare import compare_means
from prunekit.evaluate.harness import load_tasks
from prunekit.evaluate.perplexity import Perplexity
from prunekit.files import write_atomic
from prunekit.metric.catalogue import resolve
from prunekit.models import as_it_was
from prunekit.search.rivals import best_unseen
from prunekit.workbook.protocol import label

EVOLVED = {"metric evolved on embedded/llama": "mul(W, sqrt(sqrt(mul(G, sqrt(mul(X, exp(G)))))))",
           "metric evolved on SmolLM2-135M": "mul(W, sqrt(mul(G, mms(sub(X, G)))))"}  # docs/study.md
BASELINE = "SparseGPT"
LINEAR = 0.08  # from the first block to the last, around the mean


class World:
    """A model, its windows by role, and G."""

    def __init__(self, args: argparse.Namespace):
        self.name, self.evaluations, self.output = args.model, args.evaluations, args.output
        self.lines = dict(args.lines) or EVOLVED
        self.model, tokenizer = pk.load_model(args.model, dtype=args.dtype, device=args.device)
        folders = {task: args.tasks / task for task in TASKS} if args.tasks else {}
        asked = {"tasks": load_tasks([*TASKS], datasets=folders), "limit": args.documents} if folders else {}
        self.asked = asked and {"tokenizer": tokenizer, "batch_size": 16, "return_documents": True,
                                "progress": False, **asked}
        given = {"calibration", "gradient", "test"} if args.windows else set()
        self.windows = {role: pk.token_windows(args.corpus, tokenizer, role, n, args.seqlen,
                                               windows=args.windows if role in given else None).long()
                        for role, n in (("calibration", args.calibration), ("gradient", args.calibration),
                                        ("search", 32), ("select", 32), ("test", None))}
        self.windows["test"] = self.windows["test"][::args.every]
        further = {text_name(text): pk.token_windows(text, tokenizer, "test", None, args.seqlen).long()
                   for text in args.texts}
        self.texts = {text_name(args.corpus): self.windows["test"], **further}

    @cached_property
    def gradients(self) -> pk.Gradients:
        return pk.collect_gradients(self.model, self.windows["gradient"], progress=False)

    def perplexity(self, windows: Tensor) -> Perplexity:
        return pk.perplexity(self.model, windows, windows.shape[1], progress=False)

    def answers(self) -> dict[str, list[float]]:
        """acc of each document by task; of no task, where none is asked."""
        documents = pk.zero_shot(self.model, **self.asked)[1].query("metric == 'acc'") if self.asked else None
        return {} if documents is None else documents.groupby("task")["value"].apply(list).to_dict()

    def dense_pass(self) -> float:
        """Seconds that the calibration windows take, from a quarter of them."""
        part = self.windows["calibration"][::4]
        self.perplexity(part[:1])  # a GPU compiles at first
        started = time.perf_counter()
        self.perplexity(part)
        return (time.perf_counter() - started) * len(self.windows["calibration"]) / len(part)


def parts(world: World, target: Target) -> dict[str, Callable[[], dict[str, Any]]]:
    """What each is called, and what makes its arguments of `prune`."""
    whole: Any = target.sparsity if target.pattern == "unstructured" else str(target)
    wanda = {"method": "wanda", "sparsity": whole, "update": "admm"}
    found = {BASELINE: lambda: {"method": "sparsegpt", "sparsity": whole},
             "admm, Wanda's mask first": lambda: wanda | {"admm": pk.AdmmOptions(growth=0)},
             "admm, mask grown": lambda: wanda}
    if target.pattern == "unstructured":
        found["admm, linear budget"] = lambda: wanda | {"sparsity": linear(world, target)}
        found["admm, OWL's budget"] = lambda: wanda | {"sparsity": owl(world, target)}
    if world.evaluations:
        found["admm, evolved budget"] = lambda: wanda | {"sparsity": evolved(world, target)}
    for name, line in world.lines.items():
        found[f"admm, {name}"] = lambda line=line: wanda | {"method": line}
    return found


def linear(world: World, target: Target) -> list[float]:
    blocks = world.model.config.num_hidden_layers
    return [target.sparsity + LINEAR * (2 * block / (blocks - 1) - 1) for block in range(blocks)]


def owl(world: World, target: Target) -> list[float]:
    return pk.owl_budget(world.model, world.windows["calibration"], target.sparsity, progress=False)


def evolved(world: World, target: Target) -> pk.Budget:
    """Chosen as in notebook 04."""
    bench = pk.Bench(world.name, world.windows["calibration"], world.windows["search"], dtype="fast",
                     device=str(world.model.device))
    evaluator = pk.Evaluator(bench, [str(target)], update="admm", rungs=(16,))
    first = [evaluator.budget(owl(world, target))] if target.pattern == "unstructured" else []
    journal = world.output.with_name(f"{world.output.stem}-{str(target).replace(':', '-')}.jsonl")
    return best_unseen(evaluator.on([world.windows["select"]]), pk.evolve(
        evaluator, budget=world.evaluations, evolve="budget", budgets=first, lag=1, journal=journal,
        progress=False))


def measure(world: World, word: str, only: list[str], known: dict[str, Any]) -> Iterator[str]:
    """Have each part of a target in known, which is not there yet: losses by text and window, acc by task and
    document, cost and sparsity. What is new is named."""
    target = Target.parse(word)
    wanted = {part: make for part, make in parts(world, target).items()
              if part not in known and part in (only or [part])}
    with as_it_was(world.model) as restore:
        for part, arguments in wanted.items():
            dense = world.dense_pass()
            started = time.perf_counter()
            setting = arguments()
            searched = time.perf_counter() - started
            needed = world.gradients if "G" in resolve(setting["method"]).needs else None
            started = time.perf_counter() - searched  # G is not of this part alone
            try:
                report = pk.prune(world.model, world.windows["calibration"], gradients=needed, progress=False,
                                  **setting)
            except pk.UsageError as error:  # a line that overflows on this model, say
                restore()
                show(word, part, "", f"none: {error}", "", "")
                continue
            passes = round((time.perf_counter() - started) / dense, 2)
            nll = {text: [round(loss, 6) for loss in world.perplexity(windows).nll.tolist()]
                   for text, windows in world.texts.items()}
            known[part] = {"method": str(setting["method"]), "nll": nll, "answers": world.answers(),
                           "passes": passes, "sparsity": report.sparsity}
            restore()
            yield part


def told(word: str, part: str, found: dict[str, Any], base: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a part: its perplexity by text and its mean acc, each against the baseline's."""
    about = {"target": word, "part": part, "passes": found["passes"], "sparsity": found["sparsity"]}
    rows = []
    for text, nll in found["nll"].items():
        own = Perplexity(np.array(nll))
        pair = pk.compare(own, Perplexity(np.array(base["nll"][text])))
        rows.append(about | {"text": text, "value": own.value, "against": pair.ratio,
                             "low": pair.interval[0], "high": pair.interval[1]})
    if found["answers"] and base["answers"] and part != BASELINE:
        mean = compare_means({part: (documents(found["answers"]), documents(base["answers"]))}).iloc[0]
        value, against, low, high = map(float, mean[["first", "difference", "low", "high"]])
        rows.append(about | {"text": "mean acc", "value": value, "against": against,
                             "low": low, "high": high})
    return rows


def named(text: str) -> tuple[str, str]:
    name, equals, line = text.partition("=")
    if not (name and equals and line):
        raise argparse.ArgumentTypeError(f"expected NAME=METRIC, not {text!r}")
    return name, line


def documents(answers: dict[str, list[float]]) -> pd.DataFrame:
    return pd.DataFrame([{"task": task, "metric": "acc", "document": str(i), "value": value}
                         for task, values in answers.items() for i, value in enumerate(values)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="a directory, a hub id or embedded/llama")
    parser.add_argument("--corpus", required=True, help="as for `token_windows`")
    parser.add_argument("--texts", nargs="*", default=[], help="further texts to test on, likewise")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--windows", help="safetensors file with calibration, gradient and test windows")
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--calibration", type=int, default=64, help="windows, and of G as many")
    parser.add_argument("--targets", nargs="+", default=["0.5", "0.6", "0.7", "2:4", "4:8"])
    parser.add_argument("--parts", nargs="*", default=[], help="only these")
    parser.add_argument("--lines", nargs="*", type=named, default=[],
                        help="NAME=METRIC, for the evolved ones in here")
    parser.add_argument("--tasks", type=Path, help="a folder with a data set for each zero-shot task")
    parser.add_argument("--documents", type=int, default=100, help="of each task, the first ones")
    parser.add_argument("--every", type=int, default=1, help="of so many test windows one")
    parser.add_argument("--evaluations", type=int, default=0, help="of a search for a budget; 0: none")
    parser.add_argument("--output", type=Path, required=True, help="JSON; parts may be added to one")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    result = json.loads(args.output.read_text()) if args.output.exists() else {"rows": [], "parts": {}}
    world = World(args)
    asked = {"model": label(args.model), "dtype": args.dtype, "seqlen": args.seqlen,
             "calibration": args.calibration,
             "windows": {text: len(windows) for text, windows in world.texts.items()},
             "content of windows": {name: hashlib.sha256(windows.numpy().tobytes()).hexdigest()[:12]
                                    for name, windows in (world.windows | world.texts).items()}}
    if other := [name for name, value in asked.items() if result.get(name, value) != value]:
        parser.error(f"{args.output} is of another {' and '.join(other)}; name a new file.")
    if other := [name for name, line in world.lines.items() for at in result["parts"].values()
                 if at.get(f"admm, {name}", {}).get("method", line) != line]:
        parser.error(f"{args.output} has another metric under the name {other[0]!r}; give yours another.")
    if "dense" not in result:
        where = torch.cuda.get_device_name() if world.model.device.type == "cuda" else "cpu"
        dense = {text: world.perplexity(windows).value for text, windows in world.texts.items()}
        result |= asked | {"machine": machine(1) | {"device": where}, "dense": dense,
                           "dense answers": world.answers()}
    for word in args.targets:
        for part in measure(world, word, args.parts, result["parts"].setdefault(word, {})):
            write_atomic(args.output, json.dumps(result) + "\n")
            print(word, part, "is measured", flush=True)
    show("target", "part", "text", "perplexity or acc", "by SparseGPT's, or minus", "dense passes")
    show(*["---"] * 6)
    result["rows"] = [row for word, at in result["parts"].items() if BASELINE in at
                      for part, found in at.items() for row in told(word, part, found, at[BASELINE])]
    write_atomic(args.output, json.dumps(result) + "\n")
    for row in result["rows"]:
        show(row["target"], row["part"], row["text"], f"{row['value']:.3f}",
             f"{row['against']:.4f} ({row['low']:.4f} to {row['high']:.4f})", row["passes"])


if __name__ == "__main__":
    main()
