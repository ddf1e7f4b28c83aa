"""`prunekit sweep`, `status`, `diff` and `verify`: the commands around the batch."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from prunekit.workbook import project


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def add_sweep(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", help="as params/sweeps/embedded.yaml")
    add("--workers", type=int, default=1, metavar="N", help="runs at a time, in processes of this machine")
    add("--dask", metavar="ADDRESS", help="of a Dask scheduler, as tcp://host:8786, whose workers see this folder")
    add("--retry", action="store_true", help="try again what failed")
    add("--dry-run", action="store_true", help="check everything, count the runs, estimate the time; run nothing")


def run_sweep(args: argparse.Namespace) -> int:
    from prunekit.workbook import sweep

    planned = sweep.read(Path(args.file))
    todo = [unit for unit in planned.units if not unit.state().fresh]
    say(f"{planned.name}: {len(planned.cells)} cells, {len(planned.units)} runs, {len(planned.units) - len(todo)} of them fresh")
    if args.dry_run:
        total, unknown = sweep.seconds(planned, todo)
        if unknown:
            say(f"the time of {', '.join(unknown)} is not known: `prunekit run {planned.profile}` would tell")
        if len(unknown) < len({unit.topic for unit in todo}):
            say(f"{'the others: ' if unknown else ''}about {duration(total / args.workers)} on {args.workers} "
                f"worker{'s' * (args.workers > 1)}, by the runs of profile {planned.profile}")
        return 0
    executor = {"kind": "dask", "address": args.dask} if args.dask else \
        {"kind": "processes", "workers": args.workers} if args.workers != 1 else {}
    broken = 0
    for count, (unit, record) in enumerate(sweep.run(planned, executor=executor, retry=args.retry), 1):
        broken += record.outcome in ("failed", "skipped")
        say(f"{count:>4}/{len(planned.units)}  {record.outcome:<8}{record.seconds:8.1f} s  {project.relative(unit.folder)}  "
            f"{record.reason}".rstrip())
    for name, table in sweep.collect(planned).items():
        say(f"{name}: {len(table)} rows in {project.relative(planned.folder / name)}.csv")
    if broken:
        say(f"{broken} runs are missing; the failed ones are tried again with --retry")
    return int(broken > 0)


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
