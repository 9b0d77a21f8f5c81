"""Thousands of lives of a whole engine, each by its seed; and that the simulator finds what it is there to find."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from romancy.testing import MemoryDatabase
from tests.simulation import broken
from tests.simulation.simulation import play

ROOT = Path(__file__).parents[2]
SEEDS = 2000
SEEDS_TO_FIND = 300
"""A defect must be found within so many; most are within 50."""


def simulate(*arguments: str, hash_seed: str = "0") -> "subprocess.CompletedProcess[str]":
    """The command, in processes of its own."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT}", "PYTHONHASHSEED": hash_seed}
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(600)  # what two busy cores may need; alone it is a minute
def test_whatever_befalls_an_engine_its_invariants_hold() -> None:
    done = simulate("--seeds", f"0:{SEEDS}", "--jobs", "2")

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{SEEDS} seeds in " in done.stdout
    assert "no breach" in done.stdout


def test_a_seed_is_the_same_life_each_time() -> None:
    """Also where strings hash otherwise."""
    first = simulate("--seeds", "0:25", "--digests", hash_seed="0").stdout.splitlines()[:-1]
    other = simulate("--seeds", "0:25", "--digests", hash_seed="4711").stdout.splitlines()[:-1]

    assert len(first) == 25
    assert first == other


def test_a_seed_that_fails_is_shown_with_the_end_of_its_life() -> None:
    report = next(
        report for seed in range(SEEDS_TO_FIND) if (report := play(seed, make_database=broken.BuriesAlone)).breaches
    )

    assert any("BREACH" in str(event) for event in report.trace.events)
    assert report.breaches[0].startswith("HeldByNobody")


@pytest.mark.parametrize("store", broken.BROKEN_STORES)
def test_a_broken_store_is_found(store: type[MemoryDatabase]) -> None:
    weather = broken.WEATHER.get(store)

    assert any(play(seed, make_database=store, weather=weather, events_max=0).breaches for seed in range(SEEDS_TO_FIND))


@pytest.mark.parametrize("name", broken.BROKEN_WORKERS)
def test_a_broken_worker_is_found(name: str) -> None:
    with broken.BROKEN_WORKERS[name]():
        assert any(play(seed, events_max=0).breaches for seed in range(SEEDS_TO_FIND))
