"""Many seeds in several processes."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Final

from tests.simulation.simulation import Report, play

PART: Final = 20
"""Seeds that one process takes at once."""
EVENTS: Final = 60
"""Of the trace that are shown of a seed that fails."""


@dataclass(frozen=True, slots=True)
class Played:
    """What is told of a seed to the process that asked for it."""

    seed: int
    breaches: tuple[str, ...]
    events: tuple[str, ...]
    digest: str
    statements: int
    faults: int
    deaths: int
    runs: int
    attempts: int

    @classmethod
    def of(cls, report: Report) -> "Played":
        events = tuple(map(str, list(report.trace.events)[-EVENTS:])) if report.breaches else ()
        return cls(
            report.seed,
            tuple(report.breaches),
            events,
            report.digest,
            report.statements,
            report.faults,
            report.deaths,
            report.runs,
            report.attempts,
        )


def play_part(seeds: range) -> list[Played]:
    """Some seeds, one after the other."""
    return [Played.of(play(seed, events_max=EVENTS)) for seed in seeds]


def play_all(seeds: range, jobs: int) -> Iterator[Played]:
    """All of them, in order, in so many processes."""
    parts = [seeds[begin : begin + PART] for begin in range(0, len(seeds), PART)]
    if jobs == 1:
        for part in parts:
            yield from play_part(part)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        try:
            for played in pool.map(play_part, parts):
                yield from played
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
