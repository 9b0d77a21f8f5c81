"""`python -m tests.simulation --seeds 0:2000 --jobs 2`, or `--seed 123` to see one with its whole trace."""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Final

from tests.simulation.many import play_all
from tests.simulation.simulation import play

PROGRESS_SECONDS: Final = 10.0


def show_one(seed: int) -> int:
    """The whole trace of a seed."""
    report = play(seed, events_max=None)
    for event in report.trace.events:
        print(event)
    for breach in report.breaches:
        print(f"BREACH {breach}")
    print(
        f"seed {seed}: {len(report.breaches)} breaches, {report.runs} runs, {report.attempts} attempts, "
        f"{report.statements} statements, {report.faults} faults, {report.deaths} deaths, "
        f"{report.seconds:.0f} s of virtual time, digest {report.digest}"
    )
    return 1 if report.breaches else 0


def show_many(seeds: range, jobs: int, *, with_digests: bool, is_stopping: bool) -> int:
    """Progress, figures, and the seeds that fail with the end of their traces."""
    began_at = told_at = time.monotonic()
    count = statements = faults = deaths = runs = attempts = 0
    failed: list[int] = []
    for played in play_all(seeds, jobs):
        count += 1
        statements += played.statements
        faults += played.faults
        deaths += played.deaths
        runs += played.runs
        attempts += played.attempts
        if with_digests:
            print(played.seed, played.digest)
        if played.breaches:
            failed.append(played.seed)
            print(f"seed {played.seed} FAILED; the end of its trace:", *played.events, sep="\n  ")
            print(*(f"BREACH {breach}" for breach in played.breaches), sep="\n")
            print(f"replay it: python -m tests.simulation --seed {played.seed}", flush=True)
            if is_stopping:
                break
        if (now := time.monotonic()) - told_at >= PROGRESS_SECONDS:
            told_at = now
            print(f"{count} of {len(seeds)} seeds, {count / (now - began_at):.1f} a second", flush=True)
    seconds = time.monotonic() - began_at
    print(
        f"{count} seeds in {seconds:.1f} s ({count / seconds:.1f} a second): {runs} runs, {attempts} attempts, "
        f"{statements} statements, {faults} faults of statements, {deaths} deaths; "
        + (f"failed: {', '.join(map(str, failed))}" if failed else "no breach")
    )
    return 1 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", default="0:2000", help="first:end")
    parser.add_argument("--seed", type=int, help="one, with its whole trace")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--digests", action="store_true", help="print the digest of each trace")
    parser.add_argument("--keep-going", action="store_true", help="after a seed that fails")
    asked = parser.parse_args(arguments)
    if asked.seed is not None:
        return show_one(asked.seed)
    first, _, end = asked.seeds.partition(":")
    seeds = range(int(first), int(end) if end else int(first) + 1)
    return show_many(seeds, asked.jobs, with_digests=asked.digests, is_stopping=not asked.keep_going)


if __name__ == "__main__":
    sys.exit(main())
