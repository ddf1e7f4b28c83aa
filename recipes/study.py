"""A study of one model without notebooks, where a machine is there for minutes: search, choose, test, record.

    python -m recipes.study --model DIR --corpus FOLDER --texts FOLDER … --folder FOLDER --output FOLDER

The searches of notebook 04 under several seeds, as many at a time as there are workers, each in a process of
its own; meanwhile the known methods are tested. Of the finalists of each seed of preset `modern` the one with
the lowest loss on windows of the validation split is what that seed found, and the best of those is the
winner; of each other search's finalists, all its seeds together, one is chosen alike. Tables are those of
`prunekit record`: the winner's perplexity on test windows divided by each rival's, and each other seed's own
by Wanda's, paired, with Holm's correction over all rows; the winner's by Wanda's at the targets of the
search, with several draws of calibration and gradient windows, the first that of the search (`redrawn`);
with `--tasks` also accuracies of zero-shot tasks, and the winner's mean minus each rival's on the same
questions. What is computed stays in `--folder`, so that a run that was killed goes on where it was, if it is
asked for the same; kinds of searches may be added.
"""
from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

import prunekit as pk
from prunekit import data
from prunekit.analysis.history import ends, lowest, searches
from prunekit.choices import Target, check_texts, text_name
from prunekit.errors import UsageError, did_you_mean
from prunekit.evaluate.compare import compare_draws, compare_many, compare_means
from prunekit.evaluate.harness import load_tasks
from prunekit.evaluate.measure import prune_and_measure
from prunekit.evaluate.perplexity import Perplexity
from prunekit.files import keep_request, read_json, replacing, write_atomic
from prunekit.ledger.study import write
from prunekit.models import fingerprint
from prunekit.search.rivals import held_against, planned
from prunekit.workbook import manifest
from prunekit.workbook.protocol import label
from recipes import common

KNOWN = {"sparsegpt": "sparsegpt", "magnitude (rows)": "W", **{name: str(pk.METHODS[name].tree)
                                     for name in ("wanda", "pruner-zero", "gblm", "ria", "grad-weight")},
         "embedded line": "mul(W, sqrt(sqrt(mul(G, sqrt(X)))))"}  # what the study of `embedded/llama` found
UNPAIRED = ("winner", "magnitude (rows)", "sparsegpt")  # far off, or updating weights: in `result` alone
ASKED = ("sparsegpt", "magnitude (rows)", "wanda", "pruner-zero")  # with the winner, the zero-shot tasks
KINDS = ("paper", "modern", "random", "grid", "parametric")
WINDOWS = ("calibration", "gradient", "search", "select")
DRAWN = WINDOWS[:2]  # anew for `redrawn`


def study(model: str, corpus: str, folder: Path, output: Path, *, texts: Sequence[str] = (),
          targets: Sequence[str] = ("0.6", "2:4"), test_targets: Sequence[str] = ("0.5", "0.6", "2:4"),
          draws: int = 4, kinds: Sequence[str] = KINDS, budget: int = 200,
          paper_budget: int = 350, population: int = 20, grid_steps: int = 12, repeats: int = 3,
          calibration: int = 64, gradient: int = 32, search: int = 8, select: int = 8, test: int = 0,
          tasks: Sequence[str] = (), task_data: Path | None = None,
          task_targets: Sequence[str] = ("0.5", "2:4"), documents: int = 0, seqlen: int = 2048,
          dtype: str = "auto", device: str = "auto", workers: int = 0, seed: int = 0, progress: bool = True
          ) -> pd.DataFrame:
    """Search, choose, test; or go on with it. Returns table `paired`; all are written to the folder `output`.

    Algorithm 1 (`paper`) stops no candidate early: it has one seed, and a budget of its own.

    Raises UsageError as `evolve` does, for what cannot be asked (before anything is computed), and for a
    folder that holds what was computed with other settings.
    """
    targets, test_targets, texts, kinds = list(targets), list(test_targets), list(texts), list(kinds)
    tasks, task_targets = list(tasks), list(task_targets)
    asked = {key: value for key, value in locals().items()
             if key not in ("folder", "output", "kinds", "workers", "progress")}
    check(corpus, texts, kinds, [targets, test_targets, task_targets if tasks else []])
    others = [kind for kind in kinds if kind != "paper"]
    plan = planned(["paper"] * ("paper" in kinds), paper_budget, population, seed)
    plan |= planned(others, budget, population, seed, repeats, grid_steps)
    datasets = {task: task_data / task for task in tasks} if task_data else None
    loaded_tasks = load_tasks(tasks, datasets=datasets) if tasks else {}
    network, tokenizer = pk.load_model(model, dtype=dtype, device=device)  # from the hub, if it is there
    asked |= {"weights": fingerprint(model), "task_data": str(task_data or "")}
    asked |= {f"content of {text_name(text)}": data.fingerprint(text) for text in (corpus, *texts)}
    began, started = time.time(), time.strftime("%Y-%m-%d %H:%M:%S")
    keep_request(folder, asked, any(folder.glob("*.safetensors")) or any(folder.glob("*.jsonl")))
    of = {role: pk.token_windows(corpus, tokenizer, role, asked[role], seqlen, seed) for role in WINDOWS}
    held_out = {text_name(text): pk.token_windows(text, tokenizer, "test", test, seqlen)
                for text in (corpus, *texts)}

    def collected(windows: Tensor, file: Path) -> pk.Gradients:
        if not file.exists():
            pk.collect_gradients(network, windows, progress=progress).save(file)
        return pk.Gradients.load(file)

    gradients = collected(of["gradient"], folder / "G.safetensors")
    bench = pk.Bench(model, of["calibration"], of["search"], gradients=gradients, dtype=dtype, device=device)
    evaluator = pk.Evaluator(bench, targets, rungs=[max(1, search // part) for part in (4, 2)], seed=seed)
    evaluator.save(folder / "evaluator.safetensors")
    journals = {name: folder / f"{name}.jsonl" for name in plan}

    def run(name: str) -> None:
        with pk.open_executor("processes" if workers else "serial", workers=1) as executor:
            list(pk.evolve(evaluator, journal=journals[name], executor=executor, progress=progress,
                           **plan[name]))

    asks = {"tokenizer": tokenizer, "tasks": loaded_tasks, "limit": documents or None} if tasks else {}
    tested = Tested(folder / "tested.jsonl", network, of["calibration"], held_out, gradients, asks)
    with ThreadPoolExecutor(max(1, workers)) as side:
        under_way = [side.submit(run, name) for name in plan]
        for tree, target in itertools.product(KNOWN.values(), test_targets) if workers else ():
            if not all(search_run.done() for search_run in under_way):
                tested.add([tree], [target])
        for search_run in under_way:
            search_run.result()
    if not (file := folder / "finalists.csv").exists():
        bred = [pk.choose(evaluator, pk.finalists(journal), [of["select"]]).assign(journal=name)
                for name, journal in journals.items() if name.startswith("journal-modern")]
        write_atomic(file, pd.concat(bred).sort_values(["select", "size", "i"]).to_csv(index=False))
    finalists = pd.read_csv(file)
    each = {seed_of(journal, seed): trees.iloc[0] for journal, trees in finalists.groupby("journal")["tree"]
            if journal != finalists.loc[0, "journal"]}  # the winner's rows are in `paired`
    found = lowest(searches(pk.history(list(journals.values()))), evaluator.on([of["select"]]))
    rivals = {"winner": finalists.loc[0, "tree"], **KNOWN, **{name: str(found[name]) for name in found}}
    tested.add([rivals["winner"], *each.values(), *rivals.values()], test_targets)
    tested.add([rivals[name] for name in ("winner", *ASKED)], task_targets, ask=True)
    redrawn = [tested]
    for again in range(seed + 1, seed + draws):
        own = {role: pk.token_windows(corpus, tokenizer, role, asked[role], seqlen, again) for role in DRAWN}
        G = collected(own["gradient"], folder / f"G-{again}.safetensors")
        redrawn.append(Tested(folder / f"tested-{again}.jsonl", network, own["calibration"], held_out, G, {}))
    for each_draw in redrawn:
        each_draw.add([rivals["winner"], KNOWN["wanda"]], targets)
    said = {"model": label(model), "seqlen": seqlen, "corpus": text_name(corpus), "seed": seed}
    tables = told(list(journals.values()), finalists, rivals, each, test_targets, redrawn, targets, said)
    made = {"id": "", **manifest.commit(), "parameters": asked | {
        "model": label(model), "kinds": kinds, "corpus": text_name(corpus), "texts": list(held_out)[1:],
        "task_data": task_data and task_data.name},
            "versions": manifest.versions(), "machine": manifest.machine(),
            "device": bench.identity["device"], "threads": 1, "started": started,
            "seconds": round(time.time() - began, 1),
            "command": "python -m recipes.study",
            "dense": {text: Perplexity(nll).value for text, nll in tested.dense.items()}}
    with replacing(output) as place:
        write(place, tables, {"04_gp_search": made})
    return tables["paired"]


def check(corpus: str, texts: Sequence[str], kinds: Sequence[str], targets: Sequence[Sequence[str]]) -> None:
    """Raise UsageError for what `study` cannot do. targets: of the search, of the test, of the tasks."""
    check_texts(corpus, texts)
    for target in itertools.chain(*targets):
        Target.parse(target)
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UsageError(f"no search is called {unknown[0]!r:.60}{did_you_mean(unknown[0], KINDS)}")
    if "modern" not in kinds:
        raise UsageError("the winner is one of preset modern's: name it among the kinds.")
    if others := [target for target in targets[2] if target not in targets[1]]:
        raise UsageError(f"tasks are asked at {others[0]!r:.20}, where perplexity is not tested: add it to "
                         "test_targets, or leave it out.")


def told(journals: Sequence[Path], finalists: pd.DataFrame, rivals: Mapping[str, str],
         each: Mapping[str, str], targets: Sequence[str], draws: Sequence[Tested], searched: Sequence[str],
         said: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """The tables of a recorded study, from what was tested. each: what every other seed than the winner's
    found, by "seed 1"; draws: of the statistics, all but the first at the targets `searched` alone; said:
    what every result says."""
    tested, *more = draws
    history, winner = pk.history(journals), rivals["winner"]
    done = [(name, target) for name, tree in rivals.items() for target in targets
            if (tree, target) in tested.rows and (winner, target) in tested.rows]
    rows = [{**row, "method": name, "target": target}
            for name, target in done for row in tested.rows[rivals[name], target]["rows"]]
    others = held_against(winner, {name: tree for name, tree in rivals.items() if name not in UNPAIRED})
    against = {(name, target): (winner, rivals[name]) for name, target in done if name in others}
    own = {(name, target): (tree, KNOWN["wanda"]) for name, tree in each.items() for target in targets
           if (tree, target) in tested.rows}

    def paired(first: str, pairs: Mapping[tuple[str, str], tuple[str, str]]) -> pd.DataFrame:
        return compare_many({
            (name, target, text): tuple(tested.perplexity(tree, target, text) for tree in two)
            for (name, target), two in pairs.items() for text in tested.texts}, [first, "target", "text"])

    tables = {"seeds": ends(searches(history)), "finalists": finalists, "history": history,
              "result": pd.DataFrame(rows).assign(**said), "paired": paired("rival", against)}
    tables |= {"by_seed": paired("search", own)} if own else {}
    if more:
        names = {"winner": winner, "wanda": KNOWN["wanda"]}
        tables["redrawn"] = compare_draws([
            {(name, target, text): one.perplexity(tree, target, text)
             for name, tree in names.items() for target in searched for text in one.texts}
            for one in draws], "winner")
    if tested.tasks:
        places = {("dense", target): Tested.DENSE for target in targets} | {
            (name, target): (rivals[name], target) for name, target in done if name in ASKED}
        tables["zero_shot"] = compare_means(
            {(name, target): (tested.answers(winner, target), tested.answers(*place))
             for (name, target), place in places.items()
             if {"answers"} <= tested.rows[place].keys() & tested.rows[winner, target].keys()},
            names=["rival", "target"])
        tables["accuracy"] = pd.DataFrame(tested.accuracies("dense", *Tested.DENSE) + [
            row for name, target in done if name in ("winner", *ASKED)
            for row in tested.accuracies(name, rivals[name], target)])
    return {name: table if len(tested.texts) > 1 else table.drop(columns="text", errors="ignore")
            for name, table in tables.items()}


def seed_of(journal: str, first: int = 0) -> str:
    """As "seed 1": of a journal as `planned` names it."""
    return f"seed {(journal.split('-') + [str(first)])[2]}"


class Tested:
    """What metrics do on test texts and tasks: measured once each, and kept in a file of JSON lines."""

    DENSE = "", ""  # tree and target of the model itself
    _KEPT = ("task", "metric", "value", "low", "high", "n", "chance", "num_fewshot", "limit", "task_version")

    def __init__(self, file: Path, network: nn.Module, calibration: Tensor, texts: Mapping[str, Tensor],
                 gradients: pk.Gradients, asks: Mapping[str, Any]):
        """asks: of `zero_shot`; nothing: no tasks."""
        self.file, self.network, self.calibration = file, network, calibration
        self.texts, self.gradients, self.asks = dict(texts), gradients, dict(asks)
        self.tasks = list(self.asks.get("tasks", ()))
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        if not text.endswith("\n"):  # a line that was cut
            text = text[:text.rfind("\n") + 1]
            write_atomic(file, text)
        known = [read_json(line) for line in text.splitlines()]
        self.rows = {(line["tree"], line["target"]): line for line in known}
        if self.tasks and self.DENSE not in self.rows:
            self._keep({"tree": "", "target": ""} | self._answers())

    @cached_property
    def dense(self) -> dict[str, np.ndarray]:
        """Losses of the model itself, by text."""
        return {text: pk.perplexity(self.network, ids, ids.shape[1], progress=False).nll
                for text, ids in self.texts.items()}

    def add(self, trees: Iterable[str], targets: Iterable[str], ask: bool = False) -> None:
        """trees: metrics as text, or methods by name; ask: the tasks, too, if there are any."""
        for tree, target in itertools.product(dict.fromkeys(trees), targets):
            known = self.rows.get((tree, target), {})
            asked = ask and bool(self.tasks) and "answers" not in known
            if known and not asked:
                continue
            goal = Target.parse(target)
            method = tree if tree in pk.METHODS else pk.Tree.parse(tree)
            for found in prune_and_measure(self.network, self.calibration, {} if known else self.texts,
                                           [{"method": method, "sparsity": goal.sparsity,
                                             "pattern": goal.pattern}],
                                           gradients=self.gradients, progress=False):
                nll = {text: ppl.nll.tolist() for text, ppl in found.perplexities.items()}
                line = known or {"tree": tree, "target": target, "rows": found.rows(), "nll": nll}
                self._keep(line | (self._answers() if asked else {}))

    def _answers(self) -> dict[str, Any]:
        """Of the model as it is: accuracies, and acc of each document."""
        frame, documents = pk.zero_shot(self.network, **self.asks, return_documents=True, progress=False)
        return {"accuracies": frame[[*self._KEPT]].to_dict("records"),
                "answers": documents[documents["metric"] == "acc"].to_dict("list")}

    def _keep(self, line: dict[str, Any]) -> None:
        self.rows[line["tree"], line["target"]] = line
        with self.file.open("a", encoding="utf-8") as kept:
            kept.write(json.dumps(line) + "\n")

    def perplexity(self, tree: str, target: str, text: str) -> Perplexity:
        return Perplexity(np.array(self.rows[tree, target]["nll"][text]))

    def answers(self, tree: str, target: str) -> pd.DataFrame:
        return pd.DataFrame(self.rows[tree, target]["answers"])

    def accuracies(self, name: str, tree: str, target: str) -> list[dict[str, Any]]:
        return [{"method": name, "target": target or "dense", **row}
                for row in self.rows[tree, target].get("accuracies", ())]


if __name__ == "__main__":
    common.command(study, threads=1, folder="where G, journals and losses are kept", output="of the tables",
                   texts="further texts to test on", tasks="zero-shot tasks of lm-eval; none: leave them out",
                   task_data="a folder with a data set for each task; none: from the hub",
                   task_targets="at which models are asked", documents="of each task, the first ones; 0: all",
                   draws="of the statistics, in which winner and Wanda are compared; 1: none anew",
                   workers="searches at a time, each with its model on the device; 0: all here")
