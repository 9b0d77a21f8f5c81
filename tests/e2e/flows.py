"""Workflows for runs that are applied to a real API server."""

import asyncio
import os
from datetime import timedelta
from pathlib import Path

from pydantic import BaseModel

from romancy import RetryPolicy, activity, workflow


class Parcel(BaseModel):
    to: str
    grams: int


def write_down(line: str) -> None:
    """Append a line; with O_APPEND whole lines of several processes do not mix."""
    with (Path(os.environ["TEST_EFFECTS"]) / "log").open("a") as log:
        log.write(f"{line} pid={os.getpid()}\n")


@activity
async def stamp(parcel: Parcel) -> str:
    write_down(f"stamp {parcel.to}")
    return f"{parcel.grams} g to {parcel.to}"


@activity
async def unstamped(parcel: Parcel) -> None:
    raise LookupError(f"no stamp for {parcel.to}")


@activity(retry=RetryPolicy(max_attempts=3, initial_interval=timedelta(seconds=60), max_interval=timedelta(seconds=60)))
async def never_there() -> None:
    raise ConnectionError("the post office is shut")


@activity
async def slow(seconds: float) -> None:
    write_down("begin slow")
    await asyncio.sleep(seconds)
    write_down("end slow")


@activity(retry=RetryPolicy(max_attempts=1))
async def post_office() -> str:
    """Shut while there is no file `open`; open, it takes its time until there is a file `go`."""
    write_down("post office")
    folder = Path(os.environ["TEST_EFFECTS"])
    if not (folder / "open").exists():
        raise ConnectionError("the post office is shut")
    while not (folder / "go").exists():  # noqa: ASYNC110 - another process makes it
        await asyncio.sleep(0.02)
    return "posted"


@workflow
async def post_parcel(parcel: Parcel) -> list[str]:
    return [await stamp(parcel), await post_office()]


@workflow
async def send_parcel(parcel: Parcel) -> str:
    return await stamp(parcel)


@workflow
async def raises(to: str) -> None:
    raise KeyError(f"nobody lives at {to}")


@workflow
async def retries() -> None:
    await never_there()


@workflow
async def takes_time(seconds: float) -> str:
    await slow(seconds)
    return "done"


@activity(retry=RetryPolicy(max_attempts=10, initial_interval=timedelta(milliseconds=20)))
async def stand(label: str, seconds: float) -> str:
    write_down(f"begin {label}")
    await asyncio.sleep(seconds)
    write_down(f"end {label}")
    return label


@workflow
async def stands(label: str, seconds: float) -> str:
    return await stand(label, seconds)


@workflow
async def sleeps(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"


@activity
async def book(label: str) -> str:
    write_down(f"book {label}")
    return label


@book.compensate
async def unbook(booked: str) -> None:
    write_down(f"unbook {booked}")


@workflow
async def books(label: str, seconds: float) -> str:
    """Something to take back, then a long wait."""
    booked = await book(label)
    await asyncio.sleep(seconds)
    return booked
