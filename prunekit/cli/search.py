"""`prunekit search start | status | resume | export`, and `explain`."""
from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunekit.choices import Target, read_sparsity
from prunekit.cli.models import gradients_of, load, windows_of
from prunekit.cli.options import DATA, argument, check_options, check_values, command, say
from prunekit.errors import UsageError, did_you_mean
from prunekit.files import check_file, file_hash, keep_request, replacing_file, write_atomic
from prunekit.parallel import open_executor
from prunekit.workbook.protocol import label

_JOURNAL = argument("journal")
_HOW = ("budget", argument("--executor", default="serial", help="serial, processes or dask"),
        argument("--workers", type=int, help="processes (default: one per core)"),
        argument("--address", help="of a Dask scheduler, as tcp://host:8786"))
_FORMATS = (".csv", ".parquet", ".json")
_MAKE = ("corpus", "targets", "update", "roles", "nsamples", "search_windows", "seqlen", "seed", "norm",
         "scale", "dtype")  # options that an evaluator depends on, as they stand


@contextmanager
def _executor(args: argparse.Namespace) -> Iterator[Any]:
    """Opened first: what cannot be is refused before a model is loaded."""
    pool = open_executor(args.executor, workers=args.workers, address=args.address)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@command("search start", *DATA,
         argument("--output", required=True, metavar="DIR", help="where evaluator, journal and winner go"),
         "preset evolve method targets update gradients search_windows threads",
         argument("--budgets", nargs="+", default=[], metavar="SPARSITY",
                  help="budgets to try first, as of `prune --sparsity`, or owl"), *_HOW)
def start(args: argparse.Namespace) -> int:
    """Search for a metric, a budget or both on a model; writes evaluator, journal and winner to a folder."""
    check_options(args)
    if args.evolve != "metric" and len(args.targets) > 1 or args.evolve == "metric" and args.budgets:
        raise UsageError("budgets are evolved for one target: give one of --targets, and --budgets only with "
                         "--evolve budget or both.")
    with _executor(args) as pool:
        return _start(args, pool)


def _start(args: argparse.Namespace, pool: Any) -> int:
    import prunekit as pk
    from prunekit.metric.catalogue import resolve

    first = resolve(args.method or "wanda")
    if first.tree is None:
        raise UsageError(f"--method {args.method} scores inside its solver, so no search can begin with it: "
                         "give a metric.")
    asked = [text if text == "owl" else read_sparsity(text) for text in args.budgets]
    names = ("evaluator.safetensors", "journal.jsonl", "winner.json")
    saved, journal, winner = (check_file(Path(args.output, name)) for name in names)
    model, tokenizer = load(args)

    def windows(role: str, n: int) -> Any:
        return windows_of(args, tokenizer, role, args.corpus, n)

    keep_request(saved.parent, _computed_with(args), saved.exists() or journal.exists())
    select = windows("select", args.search_windows)  # read last, but missed before a search
    if saved.exists():
        say(f"going on with {saved}")
        evaluator = pk.Evaluator.load(saved)
    else:
        read = windows("calibration", args.nsamples), windows("search", args.search_windows)
        gradients = gradients_of(args, model, tokenizer, args.corpus, args.gradients)
        bench = pk.Bench(args.model, *read, gradients=gradients, dtype=args.dtype, device=args.device)
        settings = {"update": args.update, "threads": args.threads, "seed": args.seed}
        evaluator = pk.Evaluator(bench, args.targets, **settings)
        evaluator.save(saved)
    given = []
    for sparsity in asked:
        owl = sparsity == "owl" and pk.owl_budget(model, windows("calibration", args.nsamples),
                                                  Target.parse(args.targets[0]).sparsity)
        given.append(evaluator.budget(owl or sparsity))
    del model
    seeds = [first.tree] if args.method else []
    changes = {} if args.evolve == "metric" else {"evolve": args.evolve}
    _evolve(evaluator, journal, args.preset, args.budget, args.seed, pool, seeds, given, **changes)
    best = pk.choose(evaluator, pk.finalists(journal), [select]).iloc[0]
    pk.Tree.parse(best["tree"]).to_json(winner, meta={"journal": journal.name, "select": best["select"]})
    say(f"winner on the select windows: {best['tree']} (ln ppl ratio {best['select']:.4f}, "
        f"on search {best['search']:.4f}); written to {winner}")
    if args.evolve != "metric":
        _write_budget(best["budget"], winner)
    return 0


def _computed_with(args: argparse.Namespace) -> dict[str, Any]:
    """What the evaluator of these options is made of."""
    from prunekit import data
    from prunekit.models import fingerprint

    files = {"windows": args.windows, "gradients": args.gradients}
    return {"model": label(args.model), "weights": fingerprint(args.model, args.cache_dir),
            "text": data.fingerprint(args.corpus),
            **{name: getattr(args, name) for name in _MAKE}, "bos": args.begins,
            **{name: file and file_hash(Path(file)) for name, file in files.items()}}


def _write_budget(budget: str, beside: Path) -> None:
    file = beside.with_name(f"{beside.stem}-budget.json")
    write_atomic(file, budget + "\n")
    say(f"its budget, for `prune --sparsity`, written to {file}")


@command("search resume", _JOURNAL, *_HOW)
def resume(args: argparse.Namespace) -> int:
    """Go on with a search from its journal."""
    import prunekit as pk
    from prunekit.analysis.history import replayed
    from prunekit.search import journal

    check_values(args)
    with _executor(args) as pool:
        header = journal.read(args.journal)[0]
        if not header["file"]:
            raise UsageError(f"{args.journal} was written with an evaluator that was not saved: resume it "
                             "from the program that began it.")
        there = Path(header["file"])
        beside = Path(args.journal).with_name(there.name)  # the folder may have been moved, or copied
        evaluator = pk.Evaluator.load(there if there.is_file() and not beside.is_file() else beside)
        begun = replayed(header)
        _evolve(evaluator, Path(args.journal), begun.preset, args.budget, begun.seed, pool, begun.seeds,
                begun.budgets)
    return 0


def _evolve(evaluator: Any, journal: Path, preset: Any, budget: int | None, seed: int, pool: Any,
            seeds: Sequence[Any] = (), budgets: Sequence[Any] = (), **changes: Any) -> None:
    import prunekit as pk

    list(pk.evolve(evaluator, preset, budget, seed, journal, pool, seeds=seeds, budgets=budgets, **changes))
    _status(journal)


@command("search status", _JOURNAL)
def status(args: argparse.Namespace) -> int:
    """What a journal holds: counts, what was spared, the Pareto front."""
    _status(args.journal)
    return 0


def _status(journal: str | Path) -> None:
    from prunekit.analysis.history import replay

    search = replay(journal)
    saved = search.saved
    say(f"preset {search.preset.name}, seed {search.seed}, group {search.group}: {len(search.proposed)} "
        f"proposed, {search.settled} settled, {search.evaluated} distinct evaluations")
    say(f"spared: {saved['form']} of the same form, {saved['masks']} of the same masks, {saved['race']} "
        f"stopped early; {saved['rejected']} rejected as no metric")
    for candidate in search.front:
        say(f"  loss {candidate.fitness:8.4f}  size {candidate.tree.size:2}  {candidate.tree}")


@command("search export", _JOURNAL, argument("output", metavar="FILE"))
def export(args: argparse.Namespace) -> int:
    """A journal as a table (.csv, .parquet), or its best tree (.json), with its budget beside it."""
    from prunekit.analysis.history import history, replay

    output = Path(args.output)
    if output.suffix not in _FORMATS:
        near = did_you_mean(output.suffix, _FORMATS)
        raise UsageError(f"{output} must end in .csv, .parquet or .json{near}.")
    check_file(output)
    if output.suffix == ".json":
        best = replay(args.journal).best
        if best is None:
            raise UsageError(f"{args.journal} holds no completely measured metric yet: resume it first.")
        best.tree.to_json(output, meta={"loss": best.fitness, "candidate": best.index})
        if best.budget is not None:
            _write_budget(str(best.budget), output)
    else:
        frame = history(args.journal)
        with replacing_file(output) as file:
            (frame.to_csv if output.suffix == ".csv" else frame.to_parquet)(file, index=False)
    say(f"{output} written")
    return 0


@command("explain", "group",
         argument("tree", help="a name of the catalogue, an expression as 'mul(W, sqrt(X))', or a JSON file"))
def explain(args: argparse.Namespace) -> int:
    """What a metric is, how far it simplifies and why, and which metrics have the same masks."""
    from prunekit.metric import simplify
    from prunekit.metric.catalogue import resolve
    from prunekit.metric.tree import Tree

    method = resolve(Tree.from_json(args.tree) if args.tree.endswith(".json") else args.tree, args.group)
    if method.tree is None:
        raise UsageError(f"{method.name} scores inside its solver (w²/U_ii²), so it is no expression over W, "
                         "G and X.")
    say(simplify.explain(method.tree, args.group))
    return 0
