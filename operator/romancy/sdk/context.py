"""What a workflow has instead of the world: time, chance and waiting that replay."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

from romancy.errors import DefinitionError
from romancy.replay.replay import Replay
from romancy.sdk import saga
from romancy.sdk.activity import Activity


class RunInfo:
    """Who the run is: fixed at its start."""

    __slots__ = ("id", "labels", "name", "namespace", "started_at", "workflow")

    def __init__(
        self, *, id: UUID, namespace: str, name: str, workflow: str, labels: dict[str, str], started_at: datetime
    ) -> None:
        self.id, self.namespace, self.name, self.workflow = id, namespace, name, workflow
        self.labels, self.started_at = labels, started_at


class Logger:
    """Log lines of workflow code: written once what they tell of is durable, silent while replaying."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay

    def debug(self, event: str, **fields: object) -> None:
        self._replay.write_log("debug", event, fields.items())

    def info(self, event: str, **fields: object) -> None:
        self._replay.write_log("info", event, fields.items())

    def warning(self, event: str, **fields: object) -> None:
        self._replay.write_log("warning", event, fields.items())

    def error(self, event: str, **fields: object) -> None:
        self._replay.write_log("error", event, fields.items())


class WorkflowContext:
    """Handed to a workflow whose first parameter is annotated with it."""

    def __init__(self, replay: Replay, info: RunInfo) -> None:
        self._replay = replay
        self._info = info
        self._random = Random(info.id.bytes)  # the run's own: the same on each replay
        self.logger = Logger(replay)

    @property
    def info(self) -> RunInfo:
        """Id, namespace, name, workflow, labels and start of the run."""
        self._replay.check_open()
        return self._info

    @property
    def is_replaying(self) -> bool:
        """True while history is replayed. For diagnostics only: what depends on it can't be replayed."""
        self._replay.check_open()
        return self._replay.is_replaying

    @property
    def random(self) -> Random:
        """A generator seeded by the run's id."""
        self._replay.check_open()
        return self._random

    def now(self) -> datetime:
        """The run's clock, UTC: when the last entry was delivered, by the database's clock."""
        self._replay.check_open()
        return self._replay.now

    def uuid4(self) -> UUID:
        """A random UUID (version 4) that is the same on each replay."""
        self._replay.check_open()
        return UUID(bytes=self._random.randbytes(16), version=4)

    async def sleep(self, delay: float | timedelta) -> None:
        """Wait, durably; `asyncio.sleep` does the same. 0 or less only lets other tasks run."""
        self._replay.check_open()
        seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
        await asyncio.sleep(max(0.0, seconds))

    async def sleep_until(self, moment: datetime) -> None:
        """Wait until a moment, durably; one that has passed only lets other tasks run.

        Raises:
            ValueError: the moment has no time zone.
        """
        if moment.tzinfo is None:
            raise ValueError("sleep_until needs a time zone: datetime(..., tzinfo=UTC)")
        await self.sleep((moment - self.now()).total_seconds())

    def compensate(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Register an activity to be run, with these arguments, if the workflow fails or is cancelled.

        Raises:
            DefinitionError: `fn` is no activity.
        """
        self._replay.check_open()
        if not isinstance(fn, Activity):
            raise DefinitionError(f"ctx.compensate takes an activity, not {fn!r}", hint="decorate it with @activity")
        saga.of(self._replay).push(fn, fn.signature.bind(args, kwargs))

    async def rollback(self) -> None:
        """Run what is registered so far, last-in first-out, and forget it; nothing interrupts it.

        Raises:
            CompensationFailedError: at least one used up its retries; the others have run.
        """
        self._replay.check_open()
        await saga.of(self._replay).roll_back(self._replay)
