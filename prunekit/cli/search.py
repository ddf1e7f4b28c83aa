"""`prunekit search start | status | resume | export`."""
from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from prunekit.cli.options import check_options, check_values
from prunekit.cli.workbook import say
from prunekit.errors import UsageError, did_you_mean
from prunekit.files import check_file, replacing_file
from prunekit.parallel import open_executor

Say = Callable[[str], None]


def add_search(parser: argparse.ArgumentParser, data_arguments: Callable[[argparse.ArgumentParser], None]) -> None:
    """The sub-commands and their arguments; `action` is called with (args, say)."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(action=function)
        return sub

    start = action("start", _start, "Search for a metric on a model; writes evaluator, journal and winner to a folder.")
    data_arguments(start)
    start.add_argument("--output", required=True, metavar="DIR", help="where evaluator, journal and winner go")
    start.add_argument("--preset", default="modern", help="paper, lpzero, modern, random, random-distinct")
    start.add_argument("--targets", nargs="+", default=["0.6"], help="what to prune to: sparsities and patterns, as 0.5 0.7 2:4")
    start.add_argument("--update", help="score with this weight update on: obs or obs-iter")
    start.add_argument("--gradients", metavar="FILE", help="G from a file; else collected")
    start.add_argument("--search-windows", type=int, default=128, help="windows that fitness is measured on")
    start.add_argument("--threads", type=int, default=1, help="of one evaluation")
    resume = action("resume", _resume, "Go on with a search from its journal.")
    resume.add_argument("journal")
    for one in (start, resume):
        one.add_argument("--budget", type=int, help="evaluations in all (default: the preset's)")
        one.add_argument("--executor", default="serial", help="serial, processes or dask")
        one.add_argument("--workers", type=int, help="processes (default: one per core)")
        one.add_argument("--address", help="of a Dask scheduler, as tcp://host:8786")
    action("status", _status, "What a journal holds: counts, what was spared, the Pareto front.").add_argument("journal")
    export = action("export", _export, "A journal as a table (.csv, .parquet), or its best tree (.json).")
    export.add_argument("journal")
    export.add_argument("output", metavar="FILE")


def run_search(args: argparse.Namespace) -> int:
    (check_options if hasattr(args, "model") else check_values)(args)
    with ExitStack() as stack:
        if hasattr(args, "executor"):  # opened first: what cannot be is refused before a model is loaded
            args.executor = open_executor(args.executor, workers=args.workers, address=args.address)
            stack.callback(args.executor.shutdown, wait=False, cancel_futures=True)
        return args.action(args, say)


def _start(args: argparse.Namespace, say: Say) -> int:
    import prunekit as pk

    folder = Path(args.output)
    names = ("evaluator.safetensors", "journal.jsonl", "winner.json")
    saved, journal, winner = (check_file(folder / name) for name in names)
    _, tokenizer = pk.load_model(args.model, dtype=args.dtype, device=args.device, cache_dir=args.cache_dir)

    def windows(role: str, n: int) -> Any:
        return pk.token_windows(args.corpus, tokenizer, role, n, args.seqlen, args.seed, roles=args.roles,
                                windows=args.windows or None, cache_dir=args.cache_dir)

    if saved.exists():
        say(f"going on with {saved}")
        evaluator = pk.Evaluator.load(saved)
    else:
        model, _ = pk.load_model(args.model, dtype=args.dtype, device=args.device, cache_dir=args.cache_dir)
        gradients = pk.Gradients.load(args.gradients) if args.gradients else pk.collect_gradients(
            model, windows("gradient", args.nsamples), norm=args.norm, scale=args.scale)
        bench = pk.Bench(args.model, windows("calibration", args.nsamples), windows("search", args.search_windows),
                         gradients=gradients, dtype=args.dtype, device=args.device)
        evaluator = pk.Evaluator(bench, args.targets, update=args.update, threads=args.threads, seed=args.seed)
        evaluator.save(saved)
    _evolve(evaluator, journal, args, say, args.preset, args.seed)
    found = pk.choose(evaluator, pk.finalists(pk.replay(journal).candidates.values()),
                      [windows("select", args.search_windows)])
    best = found.iloc[0]
    pk.Tree.parse(best["tree"]).to_json(winner, meta={"journal": journal.name, "select": best["select"]})
    say(f"winner on the select windows: {best['tree']} (ln ppl ratio {best['select']:.4f}, on search {best['search']:.4f}); "
        f"written to {winner}")
    return 0


def _resume(args: argparse.Namespace, say: Say) -> int:
    import prunekit as pk
    from prunekit.search import journal

    header = journal.read(args.journal)[0]
    if not header["file"]:
        raise UsageError(f"{args.journal} was written with an evaluator that was not saved: resume it from the program that "
                         "began it.")
    there = Path(header["file"])
    beside = Path(args.journal).with_name(there.name)  # the folder may have been moved, or copied
    evaluator = pk.Evaluator.load(there if there.is_file() and not beside.is_file() else beside)
    _evolve(evaluator, Path(args.journal), args, say, header["preset"]["name"], header["seed"], header)
    return 0


def _evolve(evaluator: Any, journal: Path, args: argparse.Namespace, say: Say, preset: str, seed: int,
            header: dict[str, Any] | None = None) -> None:
    import prunekit as pk
    from prunekit.search.presets import Preset

    chosen = Preset.from_dict(header["preset"]) if header else preset
    seeds = [pk.Tree.parse(text) for text in header["seeds"]] if header else []
    for _ in pk.evolve(evaluator, chosen, args.budget, seed, journal, args.executor, seeds=seeds):
        pass
    _status(argparse.Namespace(journal=str(journal)), say)


def _status(args: argparse.Namespace, say: Say) -> int:
    from prunekit.analysis.history import replay

    search = replay(args.journal)
    saved = search.saved
    say(f"preset {search.preset.name}, seed {search.seed}, group {search.group}: {len(search.proposed)} proposed, "
        f"{search.settled} settled, {search.evaluated} distinct evaluations")
    say(f"spared: {saved['form']} of the same form, {saved['masks']} of the same masks, {saved['race']} stopped early; "
        f"{saved['rejected']} rejected as no metric")
    for one in search.front:
        say(f"  loss {one.fitness:8.4f}  size {one.tree.size:2}  {one.tree}")
    return 0


def _export(args: argparse.Namespace, say: Say) -> int:
    from prunekit.analysis.history import history, replay

    output = Path(args.output)
    if output.suffix not in (".csv", ".parquet", ".json"):
        raise UsageError(f"{output} must end in .csv, .parquet or .json{did_you_mean(output.suffix, ['.csv', '.parquet', '.json'])}.")
    check_file(output)
    if output.suffix == ".json":
        best = replay(args.journal).best
        if best is None:
            raise UsageError(f"{args.journal} holds no completely measured metric yet: resume it first.")
        best.tree.to_json(output, meta={"loss": best.fitness, "candidate": best.index})
    else:
        frame = history(args.journal)
        with replacing_file(output) as file:
            (frame.to_csv if output.suffix == ".csv" else frame.to_parquet)(file, index=False)
    say(f"{output} written")
    return 0


def run_explain(args: argparse.Namespace) -> int:
    from prunekit.metric.catalogue import resolve
    from prunekit.metric.simplify import explain
    from prunekit.metric.tree import Tree

    method = resolve(Tree.from_json(args.tree) if args.tree.endswith(".json") else args.tree, args.group)
    if method.tree is None:
        raise UsageError(f"{method.name} scores inside its solver (w²/U_ii²), so it is no expression over W, G and X.")
    say(explain(method.tree, args.group))
    return 0
