"""The commands around notebooks: run, status, sweep, diff, verify, record, figures, paper, student, check."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from prunekit.cli.options import Option, argument, command, flags, say
from prunekit.errors import UsageError
from prunekit.files import check_folder
from prunekit.workbook import params, project

PROFILE = argument("profile", help="a folder of params/")
TOPICS = argument("topics", nargs="*", metavar="TOPIC", help="only these, as 03, and what they read from")


def _workers(text: str) -> Option:
    return argument("--workers", type=int, default=1, metavar="N", help=text)


def _set(text: str) -> Option:
    return argument("--set", action="append", default=[], metavar="KEY=VALUE", help=text)


@command("run", PROFILE, TOPICS, _set("change a parameter; may be repeated"),
         *flags(force="run the notebooks even when they are up to date"),
         _workers("notebooks at a time, which share cores and memory"))
def run(args: argparse.Namespace) -> int:
    """Run the notebooks of a profile that are not up to date; render the report after each that ends."""
    from prunekit.batch import schedule

    overrides = dict(params.parse_override(text) for text in args.set)
    if args.workers < 1:
        raise UsageError(f"--workers {args.workers}: give 1 or more.")
    asked = args.profile, args.topics, overrides
    if ahead := schedule.ahead(*asked, force=args.force):
        say(_forecast(ahead))
    records = schedule.run_profile(*asked, force=args.force, workers=args.workers)
    check_folder(project.report_folder(args.profile))
    from prunekit.report import site  # pandas, too

    broken, address = 0, None
    for record in records:
        say(f"{record.topic:<17} {record.outcome:<8} {record.seconds:7.1f} s  {record.reason}".rstrip())
        broken += record.broken
        if record.outcome != "fresh":
            first, address = address is None, None
            with suppress(FileNotFoundError):  # of a run that ends just now, and is shown with the next one
                address = site.render(args.profile)
            if first and address:
                say(f"the report so far: {address}")
    say(f"report: {address or site.render(args.profile)}")
    return int(broken > 0)


def _forecast(ahead: dict[str, Any]) -> str:
    """What is to run, in how much time and memory where that is known."""
    told = [f"{topic} {duration(known[0]) if known else '?'}" for topic, known in ahead.items()]
    known = [known for known in ahead.values() if known]
    total = f"; about {duration(sum(seconds for seconds, _ in known))} one after another" if known else ""
    peak = max((megabytes for _, megabytes in known), default=0)
    memory = f", at most {peak / 1000:.1f} GB of memory" if peak else ""
    return f"to run: {', '.join(told)}{total}{memory}"


@command("status", argument("profile", nargs="?", help="default: every one that has runs, and every sweep"),
         _set("as in `run`; else those of the last run"))
def status(args: argparse.Namespace) -> int:
    """Say what is fresh, stale (and why), missing or failed."""
    from prunekit.batch import schedule, sweep

    overrides = dict(params.parse_override(text) for text in args.set)
    made = [name for name in project.profiles() if (project.root() / "runs" / name).is_dir()]
    for profile in [args.profile] if args.profile else made:
        if not args.profile:
            say(profile)
        try:
            states = schedule.status(profile, overrides)
        except UsageError as error:
            if args.profile:
                raise
            say(f"{'all':<17} {'unknown':<12} {error}")
            continue
        for topic, state in states.items():
            say(f"{topic:<17} {state.word:<12} {state.reason}".rstrip())
    for file in [] if args.profile else sorted((project.root() / "params" / "sweeps").glob("*.yaml")):
        if (project.root() / "runs" / "sweeps" / file.stem).is_dir():
            say(f"sweep {file.stem}: {_counts(schedule.states(sweep.read(file).units).values())}")
    if not args.profile and not made:
        say("nothing has been run yet: `prunekit run embedded`")
    return 0


def _counts(of: Iterable[Any]) -> str:
    """How often each `word` comes, of states, grades or figures."""
    words = [item.word for item in of]
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


@command("sweep", argument("file", help="as params/sweeps/embedded.yaml"),
         _workers("runs at a time, in processes of this machine"),
         argument("--dask", metavar="ADDRESS",
                  help="of a scheduler whose workers see this folder, as tcp://host:8786"),
         *flags(retry="try again what failed",
                dry_run="check everything, count the runs, estimate the time; run nothing"))
def run_sweep(args: argparse.Namespace) -> int:
    """Run notebooks over a grid of parameters, join their tables."""
    from prunekit.batch import schedule, sweep

    if args.workers < 1:
        raise UsageError(f"--workers {args.workers}: give 1 or more.")
    if args.dask and args.workers > 1:
        raise UsageError(f"--workers {args.workers}: leave it out: the scheduler of --dask knows.")
    planned = sweep.read(Path(args.file))
    states = schedule.states(planned.units)
    say(f"{planned.name}: {len(planned.cells)} cells, {len(planned.units)} runs: {_counts(states.values())}")
    if args.dry_run:
        return _estimate(planned, [unit for unit, state in states.items() if not state.fresh], args.workers)
    broken = 0
    records = sweep.bring_up_to_date(planned, workers=args.workers, dask=args.dask, retry=args.retry,
                                     progress=True)
    for count, (unit, record) in enumerate(records, 1):
        broken += record.broken
        say(f"{count:>4}/{len(planned.units)}  {record.outcome:<8}{record.seconds:8.1f} s  "
            f"{project.relative(unit.folder)}  {record.reason}".rstrip())
    tables = sweep.collect(planned)
    for name, table in tables.items():
        say(f"{name}: {len(table)} rows in {project.relative(planned.folder / name)}.csv")
    if not broken and "results" not in tables:
        say("none of these notebooks has a table of results")
    if broken:
        say(f"{broken} runs are missing; the failed ones are tried again with --retry")
    return int(broken > 0)


def _estimate(planned: Any, todo: list[Any], workers: int) -> int:
    from prunekit.batch import sweep

    total, unknown = sweep.seconds(planned, todo)
    if unknown:
        say(f"the time of {', '.join(unknown)} is not known: `prunekit run {planned.profile}` would tell")
    if len(unknown) < len({unit.topic for unit in todo}):
        say(f"{'the others: ' if unknown else ''}about {duration(total / workers)} on {workers} "
            f"worker{'s' * (workers > 1)}, by the runs of profile {planned.profile}")
    return 0


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


@command("diff", argument("first", help="PROFILE/TOPIC as smoke/03_baselines, a run's folder, an .ipynb"),
         argument("second", help="another"))
def diff(args: argparse.Namespace) -> int:
    """What changed between two executed runs."""
    from prunekit.report.difference import Difference

    difference = Difference(args.first, args.second)
    say("no difference" if difference.same else difference.text(color=sys.stdout.isatty()))
    return 0


@command("verify", PROFILE, TOPICS, argument(
    "--tolerance", type=float, metavar="SHARE", help="relative (default: 0 where machine, device, threads "
    "and versions are those of the saved run, else 0.001)"))
def run_verify(args: argparse.Namespace) -> int:
    """Run a profile anew and compare every number in its tables."""
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
        word = "the same" if verdict.same else "differs"
        say(f"{verdict.topic:<17} {word:<10} {verdict.numbers} numbers compared {how}")
        for mismatch in verdict.mismatches:
            say(f"  {mismatch.place}: {mismatch.then} → {mismatch.now}")
    if not same:
        say(f"the new runs are in runs/verify/{args.profile}: `prunekit diff {args.profile}/TOPIC "
            f"verify/{args.profile}/TOPIC`")
    return int(not same)


@command("record", argument("profile", nargs="?", default="study", help="default: study"))
def record(args: argparse.Namespace) -> int:
    """Put a profile's search tables into the package, where 04, 05 and the front page show them."""
    from prunekit.ledger import study

    say(f"{study.record(args.profile):,} bytes in {study.FOLDER / args.profile}")
    return 0


@command("figures", PROFILE, argument("topics", nargs="*", metavar="TOPIC", help="only of these, as 03"))
def figures(args: argparse.Namespace) -> int:
    """Draw the figures of a profile again from their CSVs alone, and render the report."""
    from prunekit.batch import schedule
    from prunekit.report import site
    from prunekit.workbook import display

    params.resolve_profile(args.profile)
    check_folder(project.report_folder(args.profile))
    drawn = []
    with schedule.only_one(project.root() / "runs" / args.profile, f"prunekit run {args.profile}"):
        for figure in display.rebuild(args.profile, args.topics):
            drawn.append(figure)
            say(f"{figure.topic:<17} {figure.name:<20} {figure.word}")
    say(f"{len(drawn)} figures ({_counts(drawn) or 'none drawn yet'}); report: {site.render(args.profile)}")
    return int(any(figure.word == "damaged" for figure in drawn))


@command("paper", argument("folder", metavar="DIR", help="a new folder, or one that this command wrote"),
         argument("--profile", default="embedded", help="a folder of params/ (default: embedded)"))
def run_paper(args: argparse.Namespace) -> int:
    """Collect a profile's figures, tables and takeaways as LaTeX, with a main.tex that compiles."""
    from prunekit.report import paper

    for section in paper.write(args.profile, Path(args.folder)):
        what = f"{len(section.files):3} figures and tables" if section.run else "no finished run"
        say(f"{section.topic:<17} {what}")
    say(f"paper: {Path(args.folder) / 'main.tex'}")
    return 0


@command("student", argument("folder", metavar="DIR", type=Path, help="a new folder"))
def student(args: argparse.Namespace) -> int:
    """Write a copy of the notebooks without solutions."""
    from prunekit.course import copies

    topics = copies.write_copy(args.folder)
    say(f"{len(topics)} notebooks without solutions in {args.folder}; begin with: "
        f"jupyter lab {args.folder / 'notebooks'}")
    return 0


@command("check", argument("folders", nargs="+", metavar="DIR", type=Path,
                           help="copies written by `prunekit student`, with answers"),
         argument("--profile", default="embedded", help="what the lessons run under (smoke: in less time)"),
         argument("--only", nargs="+", default=[], metavar="TOPIC", help="these notebooks, as 03"),
         argument("--time-limit", type=float, default=20.0, metavar="SECONDS", help="for each answer"),
         argument("--output", type=Path, metavar="DIR", help="also write grades.csv and grades.html there"))
def check(args: argparse.Namespace) -> int:
    """Grade the exercises of students' copies, a line for each as it comes.

    0: every exercise is right; 1: some are not.
    """
    from prunekit.course import classroom

    if not args.time_limit > 0:
        raise UsageError(f"--time-limit {args.time_limit:g}: give each answer a number of seconds above 0.")
    if args.output:
        check_folder(args.output)
    grades = []
    for grade in classroom.check_copies(args.folders, args.profile, args.only, args.time_limit):
        grades.append(grade)
        name = f"{grade.folder}  " * (len(args.folders) > 1)
        say(f"{name}{grade.topic:<17} {grade.number:>2}  {grade.word:<12}  {grade.sentence}".rstrip())
    for folder in args.folders:
        own = [grade for grade in grades if grade.folder == folder]
        say(f"{folder}: {_counts(own)}; {len(own)} exercises can be checked")
    if args.output:
        say(f"class: {classroom.write_class(grades, args.output)}")
    return int(any(grade.word != "right" for grade in grades))
