"""What a workflow has instead of the world: time, chance and waiting that replay."""

import asyncio
import json
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any, NoReturn, overload
from uuid import UUID

from romancy.errors import DefinitionError, RecurInvalidError
from romancy.model import trace
from romancy.model.event import CloudEvent, source_of
from romancy.model.outbox import OutboxKind
from romancy.replay.replay import ITERATION, Replay
from romancy.sdk import channel as channels
from romancy.sdk import child, saga, values
from romancy.sdk import event as events
from romancy.sdk.activity import Activity
from romancy.sdk.channel import Channel, ChannelSubscription
from romancy.sdk.child import ChildHandle
from romancy.sdk.event import Event, Subscription
from romancy.sdk.saga import Recurs

if TYPE_CHECKING:
    from romancy.sdk.workflow import Workflow


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

    def __init__(self, replay: Replay, info: RunInfo, workflow: "Workflow[..., Any]") -> None:
        self._replay = replay
        self._info = info
        self._workflow = workflow
        # The run's own, and its iteration's: the same on each replay.
        iteration = replay.began_at.get(ITERATION, 1)
        self._random = Random(info.id.bytes + (iteration.to_bytes(8) if iteration > 1 else b""))
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

    @overload
    async def wait_event[E: Event](
        self, event: type[E], *, where: Mapping[str, Any] | None = None, timeout: float | timedelta | None = None
    ) -> E: ...
    @overload
    async def wait_event(
        self, event: str, *, where: Mapping[str, Any] | None = None, timeout: float | timedelta | None = None
    ) -> CloudEvent: ...
    async def wait_event(
        self,
        event: type[Event] | str,
        *,
        where: Mapping[str, Any] | None = None,
        timeout: float | timedelta | None = None,
    ) -> Event | CloudEvent:
        """Wait for one event, durably.

        It is one that this run has not had yet, and that arrives from now on or has arrived since the run began: so ask first,
        then wait. How long events are kept is `ROMANCY_RETENTION__EVENTS_SECONDS`.

        Args:
            event: a class that derives from `Event`, or a CloudEvents type.
            where: values that attributes of its data must have, by their dotted paths; `ce-subject` and the like for
                attributes of the event itself.
            timeout: in seconds; `asyncio.timeout` does the same.

        Raises:
            TimeoutError: none came in time.
            EventInvalidError: `where` or `timeout` is wrong, or the data of the event does not fit the class.
            DefinitionError: `event` is no event.
        """
        self._replay.check_open()
        type, wanted = events.type_of(event), events.where_of(event, where)
        seconds = events.checked_timeout(timeout)
        mailbox = self._replay.mailbox
        async with asyncio.timeout(seconds):
            waiting = mailbox.wait(type, wanted)
            try:
                found = await waiting
            except asyncio.CancelledError:
                mailbox.give_back(waiting)
                raise
        return events.received(event, found.event)

    @overload
    def subscribe[E: Event](self, event: type[E], *, where: Mapping[str, Any] | None = None) -> Subscription[E]: ...
    @overload
    def subscribe(self, event: str, *, where: Mapping[str, Any] | None = None) -> Subscription[CloudEvent]: ...
    @overload
    def subscribe[T](self, event: Channel[T]) -> ChannelSubscription[T]: ...
    def subscribe(
        self, event: type[Event] | str | Channel[Any], *, where: Mapping[str, Any] | None = None
    ) -> Subscription[Any] | ChannelSubscription[Any]:
        """All events, or messages of a channel, that arrive from its `async with` on: subscribe first, then act, then receive.

        Raises:
            EventInvalidError: `where` is wrong.
            DefinitionError: `event` is no event.
        """
        self._replay.check_open()
        if isinstance(event, Channel):
            return ChannelSubscription(self._replay, event)
        return Subscription(self._replay, event, where)

    async def publish[T](self, channel: Channel[T], data: T, *, metadata: Mapping[str, Any] | None = None) -> None:
        """Publish a message: to all who have subscribed, or on a competing channel to one who wants it, now or later.

        Returns when it is durable; a replay publishes nothing again.

        Raises:
            ChannelModeError: the channel has another mode.
            ChannelInvalidError: the channel is direct, or the metadata are wrong.
            PayloadError: the data can't be stored.
        """
        self._replay.check_open()
        await channels.publish(self._replay, channel, data, metadata)

    async def send_to[T](
        self, run: str | UUID, channel: Channel[T], data: T, *, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Send a message to one run: a UUID is its id, anything else the newest run of that name in this namespace.

        Returns when it is durable; nothing happens if that run is done.

        Raises:
            RunNotFoundError: there is no such run.
            ChannelModeError: the channel has another mode.
            ChannelInvalidError: the metadata are wrong.
            PayloadError: the data can't be stored.
        """
        self._replay.check_open()
        await channels.send_to(self._replay, self._info.namespace, run, channel, data, metadata)

    @overload
    def emit(
        self,
        event: Event,
        *,
        id: str | None = None,
        source: str | None = None,
        subject: str | None = None,
        extensions: Mapping[str, str | int | bool] | None = None,
    ) -> CloudEvent: ...
    @overload
    def emit(
        self,
        event: str,
        data: Any = None,
        *,
        id: str | None = None,
        source: str | None = None,
        subject: str | None = None,
        extensions: Mapping[str, str | int | bool] | None = None,
    ) -> CloudEvent: ...
    def emit(
        self,
        event: Event | str,
        data: Any = None,
        *,
        id: str | None = None,
        source: str | None = None,
        subject: str | None = None,
        extensions: Mapping[str, str | int | bool] | None = None,
    ) -> CloudEvent:
        """Emit a CloudEvent to the sink of the engine (`ROMANCY_OUTBOX__SINK_URL`), at least once and in order.

        It goes out when what led to it is durable; nobody waits for that, and a replay emits nothing again. Runs of this engine
        do not get it, unless the sink sends it back.

        Args:
            event: an event with its data, or a CloudEvents type.
            data: with a type: anything that JSON holds.
            id: by default one of the run and the number of the event, the same with each try to deliver it.
            source: a URI reference; by default `/romancy/<namespace>/<workflow>/<name of the run>`.
            subject: what in the source it is about.
            extensions: further attributes, by names of lower-case letters and digits.

        Returns:
            The event as it goes out.

        Raises:
            DefinitionError: `event` is no event.
            EventInvalidError: an attribute is wrong, or there is data beside an event that has its own.
            PayloadError: the data can't be stored, or are too large.
        """
        self._replay.check_open()
        made = events.emitted(
            event,
            data,
            id=id if id is not None else f"{self._info.id}-{self._replay.next_post()}",
            source=source
            if source is not None
            else source_of(self._info.namespace, self._info.workflow, self._info.name),
            time=self._replay.now,
            subject=subject,
            extensions={**trace.handed_on(self._info.id, self._info.labels), **(extensions or {})},
        )
        self._replay.post(OutboxKind.EMIT, made.as_text())
        return made

    def join(self, group: str) -> None:
        """Be a member of a group, until `leave` or the end: `Client.members` lists them."""
        self._replay.check_open()
        self._replay.post(OutboxKind.JOIN, json.dumps({"group": values.checked_name(group, "ctx.join")}))

    def leave(self, group: str | None = None) -> None:
        """Be a member of a group no more; of none, if no group is named."""
        self._replay.check_open()
        name = None if group is None else values.checked_name(group, "ctx.leave")
        self._replay.post(OutboxKind.LEAVE, json.dumps({"group": name}))

    def start_child[**P, R](self, workflow: "Workflow[P, R]", /, *args: P.args, **kwargs: P.kwargs) -> ChildHandle[R]:
        """Start another run that this one need not wait for; options as for `App.start` go through `workflow.options()`.

        What becomes of it when this run ends while it is open says `options(parent_close=...)`; it is cancelled by default.

        Raises:
            PayloadError: an argument can't be stored.
            TypeError: the arguments don't fit, as in any Python call.
        """
        self._replay.check_open()
        return child.start(self._replay, workflow, args, kwargs)

    def recur(self, *args: Any, **kwargs: Any) -> NoReturn:
        """End this iteration, and begin the next one with these arguments: same name, empty history.

        For what runs for ever. What is registered to be compensated is forgotten, as when a run succeeds; children that were not
        abandoned are cancelled; events that nobody has taken are kept for the next iteration. The history of this one stays
        readable under an id of its own. The run's timeout begins anew.

        Raises:
            RecurInvalidError: the arguments are not the workflow's own, or another task than the workflow function calls.
            PayloadError: one can't be stored.
        """
        self._replay.check_open()
        if asyncio.current_task() is not self._replay.root:
            raise RecurInvalidError(
                "ctx.recur was called in a task that the workflow has made",
                hint="let the task end, and call it in the workflow function itself",
            )
        try:
            text = self._workflow.encode_input(args, kwargs)
        except TypeError as error:
            raise RecurInvalidError(
                f"ctx.recur got arguments that workflow {self._workflow.name!r} does not take: {error}",
                hint="give what the workflow itself takes, without the context",
            ) from error
        raise Recurs(text)

    def set_value(self, name: str, value: Any) -> None:
        """Set something that outsiders can read, by `Handle.values`: progress, a link, what is waited for.

        Args:
            name: 1 to 100 characters.
            value: anything that JSON holds.

        Raises:
            ValueInvalidError: the name is too long, or the run has too many of them.
            PayloadError: the value can't be stored.
        """
        self._replay.check_open()
        values.post(self._replay, name, value)

    def patched(self, id: str) -> bool:
        """Whether to take the new path of a change of this code.

        True in runs that come here for the first time, and for ever in those; False in runs that have come here by the old code.
        Guard the change, and keep the old path while such runs are open:

            if ctx.patched("check-stock"):
                await check_stock(order)

        Raises:
            ValueInvalidError: the id is no text of 1 to 100 characters.
        """
        self._replay.check_open()
        return self._replay.patched(values.checked_name(id, "ctx.patched"))

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
