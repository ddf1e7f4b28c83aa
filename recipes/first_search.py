"""One search on one model, and what it found on test windows: an hour where a whole study takes a night.

    python -m recipes.first_search --model DIR --corpus FOLDER --folder FOLDER --output FILE.csv \\
        --rivals wanda gblm "embedded study=mul(W, sqrt(sqrt(mul(G, sqrt(mul(X, exp(G)))))))"

Preset `modern` at the targets; of its finalists the one with the lowest loss on windows of the validation
split is the winner, and the table is its perplexity divided by each rival's on test windows, paired, with
Holm's correction over all rows. Pruning is one-shot, as in the search. What is computed stays in `--folder`,
so that a run that was killed goes on where it was, if it is asked for the same; rivals may be added.
"""
from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import prunekit as pk
from prunekit.errors import UsageError
from prunekit.evaluate.compare import compare_many
from prunekit.evaluate.perplexity import Perplexity
from prunekit.files import check_file, read_json, replacing_file, write_atomic
from prunekit.models import fingerprint
from prunekit.workbook.manifest import commit, machine
from prunekit.workbook.protocol import label

RUNGS = 3, 6


def first_search(model: str, corpus: str, folder: Path, output: Path, rivals: list[str], *,
                 targets: list[str], test_targets: list[str], budget: int = 150, population: int = 20,
                 finalists: int = 7, calibration: int = 32, gradient: int = 24, search: int = 12,
                 select: int = 12, seqlen: int = 256, test: int = 24, test_seqlen: int = 512,
                 dtype: str = "auto", seed: int = 0, progress: bool = True) -> pd.DataFrame:
    """Search, choose, test; or go on with it. Returns the table.

    rivals: names of the catalogue, or NAME=EXPRESSION. Raises UsageError as `evolve` does, and for a folder
    that holds what was computed with other settings.
    """
    asked = {key: value for key, value in locals().items()
             if key not in ("folder", "output", "rivals", "progress")} | {"weights": fingerprint(model)}
    check_file(output)
    named = {name: pk.Tree.parse(line) if line else pk.METHODS[name].tree
             for name, _, line in (rival.partition("=") for rival in rivals)}
    _same(asked, folder)
    network, tokenizer = pk.load_model(model, dtype=dtype)
    of = {role: pk.token_windows(corpus, tokenizer, role, n, seqlen, seed)
          for role, n in (("calibration", calibration), ("gradient", gradient), ("search", search),
                          ("select", select))}
    held_out = pk.token_windows(corpus, tokenizer, "test", test, test_seqlen)
    if not (file := folder / "G.safetensors").exists():
        pk.collect_gradients(network, of["gradient"], progress=progress).save(file)
    bench = pk.Bench(model, of["calibration"], of["search"], gradients=pk.Gradients.load(file), dtype=dtype)
    evaluator = pk.Evaluator(bench, targets, rungs=RUNGS, threads=torch.get_num_threads(), seed=seed)
    journal = folder / f"journal-modern-{seed}.jsonl"
    found = list(pk.evolve(evaluator, "modern", budget, seed, journal, population=population,
                           progress=progress))[-1]
    best = sorted(pk.finalists(pk.replay(journal).candidates.values()), key=lambda each: each.fitness)
    if not (file := folder / "finalists.csv").exists():
        pk.choose(evaluator, best[:finalists], [of["select"]]).to_csv(file, index=False)
    winner = pd.read_csv(file).loc[0, "tree"]
    tested = evaluator.on([held_out], test_targets)
    dense = tested.benches[0].nll
    file = folder / "losses.npz"
    losses, measured = dict(np.load(file)) if file.exists() else {}, {}
    for name, tree in {"winner": pk.Tree.parse(winner), **named}.items():
        if str(tree) not in losses:
            losses[str(tree)] = tested.losses(tree)[0]  # (targets, windows)
            with replacing_file(file) as whole, open(whole, "wb") as written:
                np.savez(written, **losses)
        added = losses[str(tree)]
        measured |= {(name, target): Perplexity(dense + more, {"seqlen": test_seqlen})
                     for target, more in zip(test_targets, added, strict=True)}
    table = compare_many({key: (measured["winner", key[1]], measured[key]) for key in measured
                          if key[0] != "winner"})
    table[["rival", "target"]] = table.pop("name").tolist()
    table["winner_ppl"] = [measured["winner", target].value for target in table["target"]]
    table["ppl"] = [measured[key].value for key in zip(table["rival"], table["target"], strict=True)]
    table = table.assign(
        dense_ppl=np.exp(dense.mean()), tree=winner, model=label(model), weights=fingerprint(model),
        corpus=Path(corpus).name, dtype=bench.identity["dtype"], searched=" and ".join(targets),
        evaluated=found.evaluated, search_windows=f"{search} of {seqlen}",
        statistics=f"{calibration} and {gradient} of {seqlen}", test_windows=f"{test} of {test_seqlen}",
        seed=seed, recorded=time.strftime("%Y-%m-%d"), machine=machine(),
        commit=(commit()["commit"] or "unknown")[:7])
    with replacing_file(output) as written:
        table.to_csv(written, index=False, float_format="%.6g")
    return table


def _same(asked: dict[str, Any], folder: Path) -> None:
    """Raise UsageError if the folder holds what was computed with other settings."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "asked.json"
    had = read_json(file.read_text(encoding="utf-8")) if file.exists() else asked
    if differing := [key for key in asked if had.get(key) != asked[key]]:
        raise UsageError(f"{folder} holds what was computed with another {differing[0]} "
                         f"({had.get(differing[0])}): ask for the same, or give another folder.")
    write_atomic(file, json.dumps(asked, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.first_search",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="a name or directory, as for load_model")
    parser.add_argument("--corpus", required=True, help="of all windows: a known corpus, a file or a folder")
    parser.add_argument("--folder", type=Path, required=True, help="where G, journal and losses are kept")
    parser.add_argument("--output", type=Path, required=True, help="the CSV file")
    parser.add_argument("--rivals", nargs="+", default=["wanda", "gblm", "pruner-zero", "ria"])
    parser.add_argument("--targets", nargs="+", default=["0.6", "2:4"])
    parser.add_argument("--test-targets", nargs="+", default=["0.5", "0.6", "2:4"])
    parser.add_argument("--dtype", default="auto")
    for name, default in (("budget", 150), ("calibration", 32), ("gradient", 24), ("search", 12),
                          ("select", 12), ("seqlen", 256), ("test", 24), ("test-seqlen", 512), ("seed", 0),
                          ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"(default: {default})")
    asked = vars(parser.parse_args(arguments))
    torch.set_num_threads(asked.pop("threads"))
    try:
        first_search(**asked)
    except UsageError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
