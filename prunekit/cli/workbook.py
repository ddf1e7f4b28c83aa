"""`prunekit status`, `sweep`, `diff`, `verify`, `record`, `student` and `check`: the commands around the batch."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prunekit.errors import UsageError
from prunekit.files import check_folder
from prunekit.workbook import params, project


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


# ---------------------------------------------------------------- status

def add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile", nargs="?", help="default: every profile that has runs, and every sweep")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="as in `run`; else those of the last run")


def run_status(args: argparse.Namespace) -> int:
    from prunekit.batch import schedule, sweep

    overrides = dict(params.parse_override(text) for text in args.set)
    made = [name for name in project.profiles() if (project.root() / "runs" / name).is_dir()]
    for profile in [args.profile] if args.profile else made:
        if not args.profile:
            say(profile)
        for topic, state in schedule.status(profile, overrides).items():
            say(f"{topic:<17} {state.word:<12} {state.reason}".rstrip())
    for file in [] if args.profile else sorted((project.root() / "params" / "sweeps").glob("*.yaml")):
        if (project.root() / "runs" / "sweeps" / file.stem).is_dir():
            say(f"sweep {file.stem}: {counts(schedule.states(sweep.read(file).units).values())}")
    if not args.profile and not made:
        say("nothing has been run yet: `prunekit run embedded`")
    return 0


def counts(of: Iterable[Any]) -> str:
    """How often each `word` comes, of states or grades."""
    words = [one.word for one in of]
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


# ---------------------------------------------------------------- sweep

def add_sweep(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", help="as params/sweeps/embedded.yaml")
    add("--workers", type=int, default=1, metavar="N", help="runs at a time, in processes of this machine")
    add("--dask", metavar="ADDRESS", help="of a Dask scheduler, as tcp://host:8786, whose workers see this folder")
    add("--retry", action="store_true", help="try again what failed")
    add("--dry-run", action="store_true", help="check everything, count the runs, estimate the time; run nothing")


def run_sweep(args: argparse.Namespace) -> int:
    from prunekit.batch import schedule, sweep

    if args.workers < 1 or (args.dask and args.workers > 1):
        raise UsageError(f"--workers {args.workers}: " + ("give 1 or more." if args.workers < 1 else
                                                          "the scheduler knows its workers; leave this out with --dask."))
    planned = sweep.read(Path(args.file))
    states = schedule.states(planned.units)
    todo = [unit for unit, state in states.items() if not state.fresh]
    say(f"{planned.name}: {len(planned.cells)} cells, {len(planned.units)} runs: {counts(states.values())}")
    if args.dry_run:
        total, unknown = sweep.seconds(planned, todo)
        if unknown:
            say(f"the time of {', '.join(unknown)} is not known: `prunekit run {planned.profile}` would tell")
        if len(unknown) < len({unit.topic for unit in todo}):
            say(f"{'the others: ' if unknown else ''}about {duration(total / args.workers)} on {args.workers} "
                f"worker{'s' * (args.workers > 1)}, by the runs of profile {planned.profile}")
        return 0
    broken = 0
    records = sweep.bring_up_to_date(planned, workers=args.workers, dask=args.dask, retry=args.retry)
    for count, (unit, record) in enumerate(records, 1):
        broken += record.broken
        say(f"{count:>4}/{len(planned.units)}  {record.outcome:<8}{record.seconds:8.1f} s  {project.relative(unit.folder)}  "
            f"{record.reason}".rstrip())
    tables = sweep.collect(planned)
    for name, table in tables.items():
        say(f"{name}: {len(table)} rows in {project.relative(planned.folder / name)}.csv")
    if not broken and "results" not in tables:
        say("none of these notebooks has a table of results")
    if broken:
        say(f"{broken} runs are missing; the failed ones are tried again with --retry")
    return int(broken > 0)


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


# ---------------------------------------------------------------- diff and verify

def add_diff(parser: argparse.ArgumentParser) -> None:
    for name in ("first", "second"):
        parser.add_argument(name, help="PROFILE/TOPIC as smoke/03_baselines, a run's folder, or an .ipynb file")


def run_diff(args: argparse.Namespace) -> int:
    from prunekit.report.difference import Difference

    difference = Difference(args.first, args.second)
    say("no difference" if difference.same else difference.text(color=sys.stdout.isatty()))
    return 0


def add_verify(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("profile")
    add("topics", nargs="*", metavar="TOPIC", help="only these notebooks and what they read from")
    add("--tolerance", type=float, metavar="SHARE",
        help="relative (default: 0 where machine, device, threads and versions are those of the saved run, else 0.001)")


def run_verify(args: argparse.Namespace) -> int:
    from prunekit.batch import verify

    if args.tolerance is not None and not 0 <= args.tolerance < 1:
        raise UsageError(f"--tolerance {args.tolerance} must be at least 0 and below 1.")
    same = True
    for verdict in verify.verify(args.profile, args.topics, args.tolerance):
        same &= verdict.same
        if verdict.record.outcome != "done":
            say(f"{verdict.topic:<17} {verdict.record.outcome:<10} {verdict.record.reason}")
            continue
        how = f"within {verdict.tolerance:g}" if verdict.tolerance else "digit by digit"
        say(f"{verdict.topic:<17} {'the same' if verdict.same else 'differs':<10} {verdict.numbers} numbers compared {how}")
        for one in verdict.mismatches:
            say(f"  {one.place}: {one.then} → {one.now}")
    if not same:
        say(f"the new runs are in runs/verify/{args.profile}: `prunekit diff {args.profile}/TOPIC "
            f"verify/{args.profile}/TOPIC`")
    return int(not same)


def run_record(args: argparse.Namespace) -> int:
    from prunekit.ledger import study

    say(f"{study.record(args.profile):,} bytes in {study.FOLDER}")
    return 0


# ---------------------------------------------------------------- the course

def add_student(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, help="a new folder")


def run_student(args: argparse.Namespace) -> int:
    from prunekit import course

    topics = course.write_copy(args.folder)
    say(f"{len(topics)} notebooks without solutions in {args.folder}; begin with: jupyter lab {args.folder / 'notebooks'}")
    return 0


def add_check(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folders", nargs="+", metavar="DIR", type=Path, help="copies written by `prunekit student`, with answers")
    add("--profile", default="embedded", help="what the lessons run under (smoke: the same exercises in less time)")
    add("--only", nargs="+", default=[], metavar="TOPIC", help="only these notebooks, as 03_baselines")
    add("--time-limit", type=float, default=60.0, metavar="SECONDS", help="for each answer")


def run_check(args: argparse.Namespace) -> int:
    """0: every exercise is right; 1: some are not."""
    from prunekit import course

    if not args.time_limit > 0:
        raise UsageError(f"--time-limit {args.time_limit:g}: give each answer a number of seconds above 0.")
    grades = course.check_copies(args.folders, args.profile, args.only, args.time_limit)
    for folder in args.folders:
        own = [one for one in grades if one.folder == folder]
        if len(args.folders) > 1:
            say(f"{folder}")
        for one in own:
            say(f"{one.topic:<17} {one.number:>2}  {one.word:<12}  {one.sentence}".rstrip())
        say(f"{counts(own)}; {len(own)} exercises can be checked")
    return int(any(one.word != "right" for one in grades))


def run_profile(args: argparse.Namespace) -> int:
    from prunekit.batch import schedule

    overrides = dict(params.parse_override(text) for text in args.set)
    if args.workers < 1:
        raise UsageError(f"--workers {args.workers}: give 1 or more.")
    run = schedule.run_profile(args.profile, args.topics, overrides, force=args.force, workers=args.workers)
    check_folder(project.report_folder(args.profile))
    records = []
    for record in run:
        say(f"{record.topic:<17} {record.outcome:<8} {record.seconds:7.1f} s  {record.reason}".rstrip())
        records.append(record)
    from prunekit.report import site

    say(f"report: {site.render(args.profile)}")
    return int(any(record.broken for record in records))


def run_figures(args: argparse.Namespace) -> int:
    from prunekit.report import site
    from prunekit.workbook import display

    params.resolve_profile(args.profile)
    check_folder(project.report_folder(args.profile))
    counts: dict[str, int] = {}
    for figure in display.rebuild(args.profile, args.topics):
        say(f"{figure.topic:<17} {figure.name:<20} {figure.outcome}")
        counts[figure.outcome] = counts.get(figure.outcome, 0) + 1
    say(f"{sum(counts.values())} figures ({', '.join(f'{n} {outcome}' for outcome, n in counts.items()) or 'none drawn yet'}); "
        f"report: {site.render(args.profile)}")
    return 0


def run_paper(args: argparse.Namespace) -> int:
    from prunekit.report import paper

    for section in paper.write(args.profile, Path(args.folder)):
        found = f"{len(section.files):3} figures and tables" if section.run else "no finished run"
        say(f"{section.topic:<17} {found}")
    say(f"paper: {Path(args.folder) / 'main.tex'}")
    return 0
