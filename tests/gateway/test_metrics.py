"""What Prometheus sees of runs that succeed, fail, retry and recover."""

import asyncio
from datetime import timedelta

import pytest
from aiohttp import ClientSession
from prometheus_client.parser import text_string_to_metric_families

from romancy import App, RetryPolicy, activity, workflow
from romancy.base.settings import DatabaseSettings, GatewaySettings, WorkerSettings
from romancy.gateway import server
from romancy.model.run import Phase

TWICE = RetryPolicy(max_attempts=2, initial_interval=timedelta(milliseconds=1), jitter=0)
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class WeatherError(Exception):
    pass


@activity(name="metrics.counts", retry=TWICE)
async def counts(number: int) -> int:
    if number < 0:
        raise WeatherError
    return number


@workflow(name="metrics.flow")
async def flow(number: int) -> int:
    return await counts(number)


@workflow(name="metrics.sleeps")
async def sleeps() -> None:
    await asyncio.sleep(3600)


async def scrape(port: int) -> Samples:
    async with ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/plain")
        text = await response.text()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)


async def test_what_happened_is_counted(database: DatabaseSettings) -> None:
    settings = WorkerSettings(name="metered", slots=7, park_after_seconds=0.1)
    async with (
        App(database, [flow, sleeps], worker=settings) as app,
        server.serving(app.http(), GatewaySettings(host="127.0.0.1", port=0)) as port,
    ):
        before = await scrape(port)
        for _ in range(3):
            assert await (await app.start(flow, 1)).result() == 1
        with pytest.raises(WeatherError):
            await (await app.start(flow, -1)).result()
        asleep = await app.start(sleeps)
        async with asyncio.timeout(10):
            # The row says so before the worker has heard of it, and the gauges are the worker's.
            while (await asleep.info()).phase is not Phase.WAITING or app.worker.runs:  # noqa: ASYNC110 - the database's to say
                await asyncio.sleep(0.01)
        after = await scrape(port)

        def grew(name: str, **labels: str) -> float:
            return of(after, name, **labels) - of(before, name, **labels)

        assert grew("romancy_runs_finished_total", workflow="metrics.flow", outcome="Succeeded") == 3
        assert grew("romancy_runs_finished_total", workflow="metrics.flow", outcome="Failed") == 1
        assert grew("romancy_run_duration_seconds_count", workflow="metrics.flow", outcome="Succeeded") == 3
        assert grew("romancy_activity_duration_seconds_count", activity="metrics.counts", outcome="completed") == 3
        assert grew("romancy_activity_duration_seconds_count", activity="metrics.counts", outcome="failed") == 2
        assert grew("romancy_activity_retries_total", activity="metrics.counts") == 1
        assert grew("romancy_flush_runs_count") >= 10
        assert of(after, "romancy_worker_slots", worker="metered", state="free") == 7
        assert of(after, "romancy_worker_slots", worker="metered", state="used") == 0
        assert of(after, "romancy_worker_parked_runs", worker="metered") == 1
        assert of(after, "process_start_time_seconds") > 0
