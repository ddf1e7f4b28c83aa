"""A study of one model without notebooks, where a machine is there for minutes: search, choose, test, record.

    python -m recipes.study --model DIR --corpus FOLDER --texts FOLDER … --folder FOLDER --output FOLDER

The searches of notebook 04 under several seeds, as many at a time as there are workers, each in a process of
its own; meanwhile the known methods are tested. Of the finalists of preset `modern` the one with the lowest
loss on windows of the validation split is the winner, and the last table is its perplexity divided by each
rival's on test windows, paired, with Holm's correction over all rows. Tables are those of `prunekit record`.
What is computed stays in `--folder`, so that a run that was killed goes on where it was, if it is asked for
the same; kinds of searches may be added.
"""
from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

import prunekit as pk
from prunekit.analysis.history import ends, lowest, searches
from prunekit.choices import Target, text_name
from prunekit.evaluate.compare import compare_many
from prunekit.evaluate.measure import prune_and_measure
from prunekit.evaluate.perplexity import Perplexity
from prunekit.files import read_json, replacing, write_atomic
from prunekit.ledger.study import write
from prunekit.models import fingerprint
from prunekit.search.rivals import planned
from prunekit.workbook import manifest
from prunekit.workbook.protocol import label
from recipes import common

KNOWN = {"magnitude (rows)": "W", **{name: str(pk.METHODS[name].tree)
                                     for name in ("wanda", "pruner-zero", "gblm", "ria", "grad-weight")},
         "embedded line": "mul(W, sqrt(sqrt(mul(G, sqrt(X)))))"}  # what the study of `embedded/llama` found
WINDOWS = ("calibration", "gradient", "search", "select")


def study(model: str, corpus: str, folder: Path, output: Path, *, texts: Sequence[str] = (),
          targets: Sequence[str] = ("0.6", "2:4"), test_targets: Sequence[str] = ("0.5", "0.6", "2:4"),
          kinds: Sequence[str] = ("paper", "modern", "random", "grid", "parametric"), budget: int = 200,
          population: int = 20, grid_steps: int = 12, repeats: int = 3, calibration: int = 64,
          gradient: int = 32, search: int = 8, select: int = 8, test: int = 0, seqlen: int = 2048,
          dtype: str = "auto", device: str = "auto", workers: int = 0, seed: int = 0, progress: bool = True
          ) -> pd.DataFrame:
    """Search, choose, test; or go on with it. Returns the last table; all are written to the folder `output`.

    Raises UsageError as `evolve` does, and for a folder that holds what was computed with other settings.
    """
    targets, test_targets, texts, kinds = list(targets), list(test_targets), list(texts), list(kinds)
    asked = {key: value for key, value in locals().items()
             if key not in ("folder", "output", "kinds", "workers", "progress")}
    asked["weights"] = fingerprint(model)
    began, started = time.time(), time.strftime("%Y-%m-%d %H:%M:%S")
    folder.mkdir(parents=True, exist_ok=True)
    if (file := folder / "asked.json").exists():
        common.refuse_other(folder, read_json(file.read_text(encoding="utf-8")), asked)
    write_atomic(file, json.dumps(asked, indent=1) + "\n")
    network, tokenizer = pk.load_model(model, dtype=dtype, device=device)
    of = {role: pk.token_windows(corpus, tokenizer, role, asked[role], seqlen, seed) for role in WINDOWS}
    held_out = {text_name(text): pk.token_windows(text, tokenizer, "test", test, seqlen)
                for text in (corpus, *texts)}
    if not (file := folder / "G.safetensors").exists():
        pk.collect_gradients(network, of["gradient"], progress=progress).save(file)
    gradients = pk.Gradients.load(file)
    bench = pk.Bench(model, of["calibration"], of["search"], gradients=gradients, dtype=dtype, device=device)
    evaluator = pk.Evaluator(bench, targets, rungs=[max(1, search // part) for part in (4, 2)], seed=seed)
    evaluator.save(folder / "evaluator.safetensors")
    plan = planned(kinds, budget, population, seed, repeats, grid_steps)
    journals = {name: folder / f"{name}.jsonl" for name in plan}

    def run(name: str) -> None:
        with pk.open_executor("processes" if workers else "serial", workers=1) as executor:
            list(pk.evolve(evaluator, journal=journals[name], executor=executor, progress=progress,
                           **plan[name]))

    tested = Tested(folder / "tested.jsonl", network, of["calibration"], held_out, gradients)
    with ThreadPoolExecutor(max(1, workers)) as side:
        under_way = [side.submit(run, name) for name in plan]
        if workers:
            tested.add(KNOWN.values(), test_targets)
        for each in under_way:
            each.result()
    if not (file := folder / "finalists.csv").exists():
        bred = {tried: name for name, journal in journals.items() if name.startswith("journal-modern")
                for tried in pk.replay(journal).candidates.values()}
        competing = pk.finalists(bred)
        frame = pk.choose(evaluator, competing, [of["select"]])
        named = {str(tried.tree): bred[tried] for tried in competing}
        frame.assign(journal=frame["tree"].map(named)).to_csv(file, index=False)
    finalists = pd.read_csv(file)
    best = {name: str(tree) for name, tree in lowest(searches(pk.history(list(journals.values())))).items()}
    rivals = {"winner": finalists.loc[0, "tree"], **KNOWN, **best}
    tested.add(rivals.values(), test_targets)
    said = {"model": label(model), "seqlen": seqlen, "corpus": text_name(corpus), "seed": seed}
    tables = told(list(journals.values()), finalists, rivals, test_targets, tested, said)
    made = {"id": "", **manifest.commit(), "parameters": asked | {
        "model": label(model), "kinds": kinds, "corpus": text_name(corpus), "texts": list(held_out)[1:]},
            "versions": manifest.versions(), "machine": manifest.machine(),
            "device": bench.identity["device"], "threads": 1, "started": started,
            "seconds": round(time.time() - began, 1),
            "command": "python -m recipes.study",
            "dense": {text: Perplexity(nll).value for text, nll in tested.dense.items()}}
    with replacing(output) as place:
        write(place, tables, {"04_gp_search": made})
    return tables["paired"]


def told(journals: Sequence[Path], finalists: pd.DataFrame, rivals: Mapping[str, str], targets: Sequence[str],
         tested: Tested, said: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """The tables of a recorded study, from what was tested. said: what every result says."""
    history = pk.history(journals)
    pairs = [(name, target) for name, tree in rivals.items() for target in targets
             if (tree, target) in tested.rows]
    rows = [{**row, "method": name, "target": target}
            for name, target in pairs for row in tested.rows[rivals[name], target]["rows"]]
    paired = compare_many({(name, target, text): (tested.perplexity(rivals["winner"], target, text),
                                                  tested.perplexity(rivals[name], target, text))
                           for name, target in pairs if name not in ("winner", "magnitude (rows)")
                           and (rivals["winner"], target) in tested.rows for text in tested.texts},
                          ["rival", "target", "text"])
    tables = {"seeds": ends(searches(history)), "finalists": finalists, "history": history,
              "result": pd.DataFrame(rows).assign(**said), "paired": paired}
    return {name: table if len(tested.texts) > 1 else table.drop(columns="text", errors="ignore")
            for name, table in tables.items()}


class Tested:
    """What metrics do on test texts: measured once each, and kept in a file of JSON lines."""

    def __init__(self, file: Path, network: nn.Module, calibration: Tensor, texts: Mapping[str, Tensor],
                 gradients: pk.Gradients):
        self.file, self.network, self.calibration = file, network, calibration
        self.texts, self.gradients = dict(texts), gradients
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        if not text.endswith("\n"):  # a line that was cut
            text = text[:text.rfind("\n") + 1]
            write_atomic(file, text)
        known = [read_json(line) for line in text.splitlines()]
        self.rows = {(line["tree"], line["target"]): line for line in known}
        self.dense = {text: pk.perplexity(network, ids, ids.shape[1], progress=False).nll
                      for text, ids in texts.items()}

    def add(self, trees: Sequence[str], targets: Sequence[str]) -> None:
        for tree, target in [(tree, target) for tree in dict.fromkeys(trees) for target in targets]:
            if (tree, target) in self.rows:
                continue
            goal = Target.parse(target)
            [found] = prune_and_measure(self.network, self.calibration, self.texts,
                                        [{"method": pk.Tree.parse(tree), "sparsity": goal.sparsity,
                                          "pattern": goal.pattern}],
                                        gradients=self.gradients, progress=False)
            nll = {text: ppl.nll.tolist() for text, ppl in found.perplexities.items()}
            line = {"tree": tree, "target": target, "rows": found.rows(), "nll": nll}
            self.rows[tree, target] = line
            with self.file.open("a", encoding="utf-8") as kept:
                kept.write(json.dumps(line) + "\n")

    def perplexity(self, tree: str, target: str, text: str) -> Perplexity:
        return Perplexity(np.array(self.rows[tree, target]["nll"][text]))


if __name__ == "__main__":
    common.command(study, threads=1, folder="where G, journals and losses are kept", output="of the tables",
                   texts="further texts to test on", workers="searches at a time; 0: all here, in turn")
