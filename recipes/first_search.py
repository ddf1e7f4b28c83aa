"""One search on one model, and what it found on test windows: an hour where a whole study takes a night.

    python -m recipes.first_search --model DIR --corpus FOLDER --folder FOLDER --output FILE.csv \\
        --rivals wanda gblm "embedded study=mul(W, sqrt(sqrt(mul(G, sqrt(mul(X, exp(G)))))))"

Preset `modern` at the targets; of its finalists the one with the lowest loss on windows of the validation
split is the winner, and the table is its perplexity divided by each rival's on test windows, paired, with
Holm's correction over all rows. Pruning is one-shot, as in the search. What is computed stays in `--folder`,
so that a run that was killed goes on where it was, if it is asked for the same; rivals may be added.
"""
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import prunekit as pk
from prunekit.evaluate.compare import compare_many
from prunekit.evaluate.perplexity import Perplexity
from prunekit.files import check_file, read_json, replacing_file, write_atomic
from prunekit.models import fingerprint
from prunekit.workbook.manifest import commit
from recipes import common

RUNGS = 3, 6


def first_search(model: str, corpus: str, folder: Path, output: Path, *,
                 rivals: Sequence[str] = ("wanda", "gblm", "pruner-zero", "ria"),
                 targets: Sequence[str] = ("0.6", "2:4"), test_targets: Sequence[str] = ("0.5", "0.6", "2:4"),
                 budget: int = 150, population: int = 20, finalists: int = 7, calibration: int = 32,
                 gradient: int = 24, search: int = 12, select: int = 12, seqlen: int = 256, test: int = 24,
                 test_seqlen: int = 512, dtype: str = "auto", seed: int = 0, progress: bool = True
                 ) -> pd.DataFrame:
    """Search, choose, test; or go on with it. Returns the table.

    rivals: names of the catalogue, or NAME=EXPRESSION. Raises UsageError as `evolve` does, and for a folder
    that holds what was computed with other settings.
    """
    targets, test_targets = list(targets), list(test_targets)
    asked = {key: value for key, value in locals().items()
             if key not in ("folder", "output", "rivals", "progress")} | {"weights": fingerprint(model)}
    check_file(output)
    named = {name: pk.Tree.parse(line) if line else pk.METHODS[name].tree
             for name, _, line in (rival.partition("=") for rival in rivals)}
    folder.mkdir(parents=True, exist_ok=True)
    if (file := folder / "asked.json").exists():
        common.refuse_other(folder, read_json(file.read_text(encoding="utf-8")), asked)
    write_atomic(file, json.dumps(asked, indent=1) + "\n")
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
    best = sorted(pk.finalists(journal), key=lambda each: each.fitness)
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
                          if key[0] != "winner"}, ["rival", "target"])
    table["winner_ppl"] = [measured["winner", target].value for target in table["target"]]
    table["ppl"] = [measured[key].value for key in zip(table["rival"], table["target"], strict=True)]
    table = table.assign(
        dense_ppl=np.exp(dense.mean()), tree=winner,
        **common.columns(model, corpus, bench.identity["dtype"], seed), searched=" and ".join(targets),
        evaluated=found.evaluated, search_windows=f"{search} of {seqlen}",
        statistics=f"{calibration} and {gradient} of {seqlen}", test_windows=f"{test} of {test_seqlen}",
        commit=(commit()["commit"] or "unknown")[:7])
    with replacing_file(output) as written:
        table.to_csv(written, index=False, float_format="%.6g")
    return table


if __name__ == "__main__":
    common.command(first_search, threads=1, folder="where G, journal and losses are kept",
                   rivals="names of the catalogue, or NAME=EXPRESSION")
