"""Start runs and ask about them, without running any: everything goes through the database."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

from pydantic import SecretStr

from romancy.base import log
from romancy.base.clock import Clock, SystemClock
from romancy.base.settings import DatabaseSettings
from romancy.errors import (
    ChannelInvalidError,
    EventInvalidError,
    FilterError,
    PayloadTooLargeError,
    RunExistsError,
    RunNotFoundError,
    SettingsError,
)
from romancy.model import search, trace
from romancy.model.channel import ChannelMode, checked_metadata, message_of
from romancy.model.codec import PAYLOAD_BYTES_MAX, Codec
from romancy.model.command import End, Outcome
from romancy.model.dead_letter import DeadLetter
from romancy.model.event import CloudEvent
from romancy.model.history import Message, MessageKind
from romancy.model.run import KEPT_SECONDS_MAX, KEPT_SECONDS_MIN, NAME_MAX, Form, NewRun, Phase, Reason, Run, run_id_of
from romancy.sdk.channel import Channel
from romancy.sdk.child import error_of
from romancy.sdk.event import Event, codec_of, type_of
from romancy.sdk.workflow import Options, Workflow
from romancy.store.interface import Purgeable, Receipt, RunFilter, Store
from romancy.store.postgres import PostgresStore
from romancy.store.purge import purge
from romancy.store.resources import stranded_message

DEAD_LETTERS_MAX = 1000
_POLL_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # then the last one for ever


class Handle[R]:
    """One run, from outside. Making one asks nobody."""

    def __init__(
        self, client: "Client", run_id: UUID | None, *, name: str = "", result: Codec[R] | None = None
    ) -> None:
        self._client, self._run_id, self._name, self._result = client, run_id, name, result

    @property
    def id(self) -> UUID | None:
        """The run's id; None if the handle was made from a name and has not been used."""
        return self._run_id

    async def info(self) -> Run:
        """The run as it is now.

        Raises:
            RunNotFoundError: there is none.
        """
        run = await self._client.read(self._run_id, self._name)
        self._run_id = run.id
        return run

    async def result(self, *, timeout: float | None = None) -> R:
        """Wait for the end of the run.

        Args:
            timeout: in seconds; the run goes on after it.

        Returns:
            What the workflow returned; from a handle made by name or id, the plain value of its JSON.

        Raises:
            RunFailedError: it failed in a way that can't be rebuilt here; else the exception that failed it, by its type.
            RunCancelledError: it was cancelled; RunTimedOutError: it used up its own timeout.
            TimeoutError: `timeout` is over.
            RunNotFoundError: there is none.
        """
        async with asyncio.timeout(timeout):
            run_id = self._run_id or (await self.info()).id
            return self._value(await self._outcome(run_id))

    async def _outcome(self, run_id: UUID) -> Outcome:
        """As soon as it is known: told by this process, or found in the database."""
        client, polls = self._client, 0
        while True:
            left = client.watch(run_id)
            try:
                if not client.executes(run_id):
                    if (run := await self.info()).is_done:
                        return _outcome_of(run)
                    await asyncio.wait([left], timeout=_POLL_SECONDS[min(polls, len(_POLL_SECONDS) - 1)])
                    polls += 1
                    if not left.done():
                        continue
                if (outcome := await left) is not None:
                    return outcome
            finally:
                client.unwatch(run_id, left)

    async def wait(self, *, timeout: float | None = None) -> Run:
        """Wait for the end of the run, however it ends.

        Args:
            timeout: in seconds; the run goes on after it.

        Returns:
            The run, which is done; or, when `timeout` is over, as it is then.

        Raises:
            RunNotFoundError: there is none.
        """
        run = await self.info()
        if not run.is_done:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._outcome(run.id)
            run = await self.info()
        return run

    async def cancel(self, message: str = "", *, by: str = "") -> bool:
        """Ask the run to end: it may clean up, and what is done is compensated. False if it had ended, or was asked before.

        Args:
            by: who asks; kept with the run, as for `suspend` and `resume`.
        """
        text = f"{message or 'cancelled'} (by {by})" if by else message
        said = {"reason": Reason.CANCELLED, "message": text, "by": by}
        return await self._send(MessageKind.CANCEL, "client:cancel", said)

    async def values(self) -> dict[str, Any]:
        """What the run shows to outsiders, by `ctx.set_value`: plain values of JSON by name.

        Raises:
            RunNotFoundError: there is no such run.
        """
        run_id = self._run_id or (await self.info()).id
        return {name: json.loads(text) for name, text in (await self._client.store.read_values(run_id)).items()}

    async def retry(self, *, by: str = "") -> bool:
        """Have a failed run go on from its last checkpoint: what had failed has all of its attempts again.

        What had ended well is answered from its history, and its own timeout counts anew. False if it goes on already.

        Raises:
            RunNotFoundError: there is none.
            RetryRefusedError: it has not failed, has taken back what it had done, or a child run has failed it.
        """
        return await self._client.store.retry_run(self._run_id or (await self.info()).id, by=by)

    async def suspend(self, *, by: str = "") -> bool:
        """Let running activities end, and start no new ones until it is resumed. Time goes on."""
        return await self._send(MessageKind.SUSPEND, f"client:suspend:{uuid4()}", {"by": by})

    async def resume(self, *, by: str = "") -> bool:
        """Let a suspended run go on."""
        return await self._send(MessageKind.RESUME, f"client:resume:{uuid4()}", {"by": by})

    async def _send(self, kind: MessageKind, source: str, content: Mapping[str, str]) -> bool:
        run_id = self._run_id or (await self.info()).id
        payload = json.dumps({name: value for name, value in content.items() if value or name != "by"})
        return await self._client.store.send([Message(run_id, kind, source, payload)]) > 0

    def _value(self, outcome: Outcome) -> R:
        name = self._name or str(self._run_id)
        if outcome.end is End.SUCCEEDED:
            assert outcome.payload is not None
            value: R = self._result.decode(outcome.payload) if self._result else json.loads(outcome.payload)
            return value
        told = {"phase": outcome.end, "reason": outcome.reason, "message": outcome.message, "failure": outcome.failure}
        raise error_of(name, told)


class Page(list[Run]):
    """Some runs of a list, and the token to ask for those after them by; `next` is None on the last page."""

    def __init__(self, runs: Iterable[Run], token: str | None) -> None:
        super().__init__(runs)
        self.next = token


class Listing:
    """A list that has not been asked for yet: `await` gives its first page, `async for` all runs, `pages` page by page."""

    def __init__(self, store: Store, where: RunFilter, after: Run | str | None, limit: int) -> None:
        self._store, self._where, self._limit = store, where, search.page_size(limit)
        self._search = _text_of(where)
        if isinstance(after, str):
            self._after: tuple[datetime, UUID] | None = search.after_of(after, self._search)
        else:
            self._after = (after.created_at, after.id) if after else None

    def __await__(self) -> Generator[Any, None, Page]:
        return self._page(self._after).__await__()

    async def __aiter__(self) -> AsyncIterator[Run]:
        async for page in self.pages():
            for run in page:
                yield run

    async def pages(self) -> AsyncIterator[Page]:
        """Page by page, until the last; at least one, which may be empty."""
        after = self._after
        while True:
            page = await self._page(after)
            yield page
            if page.next is None:
                return
            after = (page[-1].created_at, page[-1].id)

    async def _page(self, after: tuple[datetime, UUID] | None) -> Page:
        # One more than is shown tells whether there is a next page.
        found = await self._store.list_runs(replace(self._where, after=after), limit=self._limit + 1)
        runs = found[: self._limit]
        is_last = len(found) <= self._limit
        return Page(runs, None if is_last else search.token_of((runs[-1].created_at, runs[-1].id), self._search))


class Client:
    """Asks the database. `async with Client(url) as client: ...`

    Args:
        database: URL of PostgreSQL, or settings.
        namespace: of runs that are started or named without one.
        payload_bytes_max: the largest input.
    """

    def __init__(
        self,
        database: str | DatabaseSettings,
        *,
        namespace: str = "default",
        payload_bytes_max: int = PAYLOAD_BYTES_MAX,
    ) -> None:
        self._settings = (
            database if isinstance(database, DatabaseSettings) else DatabaseSettings(url=SecretStr(database))
        )
        if not self._settings.url.get_secret_value():
            raise SettingsError("no database is given", hint="pass its URL, or set ROMANCY_DATABASE__URL")
        self.namespace = namespace
        self.store = PostgresStore(self._settings)
        self.clock: Clock = SystemClock()
        self._payload_bytes_max = payload_bytes_max

    async def __aenter__(self) -> Self:
        log.configure_library()
        await self.store.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.store.close()

    async def start[**P, R](self, workflow: Workflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Start a run of a workflow; returns when it is durable.

        Starting the same id twice is one run, also after its end, until it is purged.

        Raises:
            RunExistsError: the id belongs to another workflow, or another input.
            PayloadError: an argument can't be stored.
            TypeError: the arguments don't fit, as in any Python call.
        """
        text = workflow.encode_input(args, kwargs, bytes_max=self._payload_bytes_max)
        new = self._new_run(workflow.name, text, workflow.signature.form, workflow.start_options)
        if (delay := workflow.start_options.delay) is not None:
            # By the database's clock, which decides when it is due.
            new = replace(new, start_at=await self.store.now() + delay)
        await self._start(workflow, new)
        return Handle(self, new.id, name=new.name, result=workflow.signature.result)

    async def start_by_name(
        self,
        workflow: str,
        input: Mapping[str, Any],  # noqa: A002 - the word of WorkflowRun
        *,
        id: str | None = None,
        namespace: str | None = None,
        labels: Mapping[str, str] | None = None,
        priority: int = 0,
        delay: timedelta | None = None,
        timeout: timedelta | None = None,
    ) -> tuple[Run, bool]:
        """Start a run of a workflow whose code is not here; the first worker that claims it decides whether the input fits.

        Returns:
            The run, and whether it is new.

        Raises:
            ValueError: an option is out of its range.
            RunExistsError: the id belongs to another workflow, or another input.
            PayloadError: the input can't be stored.
        """
        options = Options(
            id=id, namespace=namespace, labels=dict(labels or {}), priority=priority, delay=delay, timeout=timeout
        )
        text = json.dumps(input, allow_nan=False, separators=(",", ":"))
        if len(text) > self._payload_bytes_max:
            raise PayloadTooLargeError(what="the input", size_bytes=len(text), max_bytes=self._payload_bytes_max)
        new = self._new_run(workflow, text, None, options)
        if delay:
            new = replace(new, start_at=await self.store.now() + delay)
        [started] = await self.store.start_runs([new])
        if started.existing is not None:
            refuse_other(new, started.existing)
        return await self.read(new.id, ""), started.existing is None

    async def send_event(
        self,
        event: Event | str,
        data: Any = None,
        *,
        id: str | None = None,
        source: str = "romancy",
        subject: str | None = None,
        time: datetime | None = None,
        extensions: Mapping[str, str | int | bool] | None = None,
        to: UUID | None = None,
    ) -> Receipt:
        """Send an event to all open runs that wait for it; returns when it is durable and with them.

        Args:
            event: an instance of an `Event` class, or a CloudEvents type.
            data: with a type: anything that JSON holds.
            id: with its source it names the event: the same pair twice is the same event. Generated if None.
            to: one run alone, whether it waits already or not; nothing happens if it is done or unknown.

        Returns:
            How many runs have got it now, and whether it is new.

        Raises:
            EventInvalidError: an attribute is wrong.
            PayloadTooLargeError: it is larger than a payload may be.
        """
        if isinstance(event, Event):
            if data is not None:
                raise EventInvalidError("the data of an event object is the object", hint="leave `data` out")
            data = json.loads(codec_of(type(event)).encode(event, bytes_max=self._payload_bytes_max))
        cloudevent = CloudEvent(
            id=id if id is not None else str(uuid4()),
            source=source,
            type=type_of(event if isinstance(event, str) else type(event)),
            data=data,
            time=time or self.clock.now(),
            subject=subject,
            datacontenttype="application/json",
            extensions={**self._trace_of_start(), **(extensions or {})},
        )
        return await self.store.send_event(cloudevent, to=to)

    async def publish[T](
        self,
        channel: Channel[T],
        data: T,
        *,
        metadata: Mapping[str, Any] | None = None,
        id: str | None = None,
        source: str = "romancy",
    ) -> None:
        """Publish a message to a channel; returns when it is durable.

        Args:
            id: with its source it names the message: the same pair twice is the same message. Generated if None.

        Raises:
            ChannelModeError: the channel has another mode.
            ChannelInvalidError: the channel is direct, or the metadata are wrong.
            PayloadError: the data can't be stored.
        """
        if channel.mode is ChannelMode.DIRECT:
            raise ChannelInvalidError(f"channel {channel.name!r} is Direct", hint="send_to(run, channel, data)")
        await self.store.publish(channel.name, channel.mode, self._message(channel, data, metadata, id, source))

    async def send_to[T](
        self,
        run: str | UUID,
        channel: Channel[T],
        data: T,
        *,
        metadata: Mapping[str, Any] | None = None,
        id: str | None = None,
        source: str = "romancy",
    ) -> bool:
        """Send a message to one run: a UUID is its id, anything else the newest run of that name.

        Returns:
            False if the run is done, or has the message already.

        Raises:
            RunNotFoundError: there is no such run.
            ChannelModeError: the channel has another mode.
            ChannelInvalidError: the metadata are wrong.
            PayloadError: the data can't be stored.
        """
        message = self._message(channel, data, metadata, id, source)
        return await self.store.send_to(self.namespace, str(run), channel.name, channel.mode, message)

    def _message(
        self, channel: Channel[Any], data: Any, metadata: Mapping[str, Any] | None, id: str | None, source: str
    ) -> CloudEvent:
        message = message_of(
            channel.name, channel.encode(data), checked_metadata(metadata), source=source, id=id or str(uuid4())
        )
        return replace(message, time=self.clock.now())

    async def members(self, group: str) -> "list[UUID]":
        """The open runs that have joined a group."""
        return await self.store.read_members(group)

    def handle(self, run: str | UUID) -> Handle[Any]:
        """A handle of a run that exists: a UUID is its id, anything else the newest run of that name."""
        try:
            return Handle(self, run if isinstance(run, UUID) else UUID(run))
        except ValueError:
            return Handle(self, None, name=str(run))

    def list(
        self,
        *,
        namespace: str | None = None,
        workflow: str | None = None,
        phases: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        name_part: str | None = None,
        id_prefix: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        finished_after: datetime | None = None,
        finished_before: datetime | None = None,
        input: Mapping[str, Any] | None = None,  # noqa: A002 - the word of WorkflowRun
        input_at: Mapping[str, Any] | None = None,
        after: Run | str | None = None,
        limit: int = 50,
    ) -> "Listing":
        """Runs, newest first; all that is given must hold.

        `await` it for one page, or `async for run in` it for all of them, page by page. What is wrong with a filter is said
        here; the database is asked when it is awaited, and may then raise SearchTooBroadError.

        Args:
            namespace: None for the client's own, "*" for all.
            phases: any of them; none for all.
            labels: all of these pairs.
            name_part: stands somewhere in the name, as it is written. Has no index.
            id_prefix: how the id begins, with or without dashes.
            created_after: at that time or later, as with `finished_after`; times have a zone.
            created_before: before that time, as with `finished_before`.
            input: an object that the input contains, as PostgreSQL's `jsonb @>` does it. Has no index; finds no input that
                jsonb refuses, such as one with a NUL in a text.
            input_at: values of the input by their paths, as in {"order.id": 7}.
            after: the token of the page before, or its last run.
            limit: runs of a page, 1 to 1000.

        Raises:
            FilterError: a value can't be searched for, or the token is not of this search.
        """
        where = RunFilter(
            namespace=self._namespace_of(namespace),
            workflow=search.text_of("workflow", workflow),
            phases=search.phases_of(phases),
            labels=search.labels_of(labels or {}),
            name_part=search.text_of("name_part", name_part),
            ids=search.ids_of(id_prefix),
            created_from=search.moment_of("created_after", created_after),
            created_before=search.moment_of("created_before", created_before),
            finished_from=search.moment_of("finished_after", finished_after),
            finished_before=search.moment_of("finished_before", finished_before),
            input=search.input_of(input, input_at),
        )
        return Listing(self.store, where, after, limit)

    async def purge(
        self,
        *,
        older_than: timedelta,
        phases: Iterable[str] = ("Succeeded", "Failed", "Cancelled"),
        namespace: str | None = None,
        workflow: str | None = None,
        dry_run: bool = False,
    ) -> int:
        """Delete ended runs with their history, in small transactions beside all that goes on; how many it were.

        It can't be taken back. A run whose resource (WorkflowRun) is there is not deleted. Afterwards the ids are free: starting
        one again is another run. If it is interrupted, what it has deleted by then is deleted.

        Args:
            older_than: since their end, at least ten minutes.
            phases: of ended runs; any of them.
            namespace: None for the client's own, "*" for all.
            dry_run: only count.

        Raises:
            FilterError: a phase is that of open runs, or the age is too small.
            SearchTooBroadError: (dry_run) too many to count in the time that a statement may take.
        """
        asked = search.phases_of(phases)
        if not asked or not all(phase.is_done for phase in asked):
            wrong = ", ".join(sorted(phase for phase in asked if not phase.is_done)) or "no phase"
            raise FilterError(f"{wrong}: only ended runs are purged", hint="phases are Succeeded, Failed, Cancelled")
        if not KEPT_SECONDS_MIN <= older_than.total_seconds() <= KEPT_SECONDS_MAX:
            raise FilterError(
                f"older_than is {older_than}; it may be 10 minutes to 100 years",
                hint="the write of an end may be sent again for minutes, and must find its run",
            )
        total = 0
        for phase in sorted(asked):
            which = Purgeable(
                phase,
                older_than.total_seconds(),
                namespace=self._namespace_of(namespace),
                workflow=search.text_of("workflow", workflow),
            )
            total += await (self.store.count_purgeable(which) if dry_run else purge(self.store, which))
        return total

    async def explained(self, run: Run) -> Run:
        """The run with what else only a leader notes, in a cluster: that no live worker has its workflow."""
        if run.phase is not Phase.PENDING or run.reason:
            return run
        offers = await self.store.offers()
        if run.workflow in offers and (run.python is None or run.python in offers[run.workflow]):
            return run
        message = stranded_message(run.workflow, run.python, offers)
        return replace(run, reason=Reason.WORKFLOW_NOT_REGISTERED, message=message)

    async def dead_letters(
        self, *, namespace: str | None = None, limit: int = 100, before: int | None = None
    ) -> Sequence[DeadLetter]:
        """Events that runs have emitted and the sink has not taken, newest first.

        Args:
            namespace: of their runs; this client's by default, "*" for all.
            limit: at most 1000.
            before: the id of the last one of the page before.

        Raises:
            FilterError: a limit or a namespace that can't be.
        """
        if not 0 < limit <= DEAD_LETTERS_MAX:
            raise FilterError(f"limit is {limit}; it may be 1 to {DEAD_LETTERS_MAX}", hint="ask for pages by `before`")
        return await self.store.list_dead_letters(self._namespace_of(namespace), limit=limit, before=before)

    async def resend_dead_letter(self, letter_id: int) -> bool:
        """Have a dead letter delivered again, behind what its run has emitted since. False if there is none of that id."""
        return await self.store.resend_dead_letter(letter_id)

    async def delete_dead_letter(self, letter_id: int) -> bool:
        """Give a dead letter up. False if there is none of that id."""
        return await self.store.delete_dead_letter(letter_id)

    async def read(self, run_id: UUID | None, name: str) -> Run:
        """The run of an id or, without one, the newest of a name.

        Raises:
            RunNotFoundError: there is none.
        """
        if run_id is not None:
            run = await self.store.read_run(run_id)
        else:
            run = await self.store.find_run(self.namespace, name)
        if run is None:
            raise RunNotFoundError(str(run_id) if run_id is not None else f"{self.namespace}/{name}")
        return run

    def watch(self, run_id: UUID) -> "asyncio.Future[Outcome | None]":
        """Done when the run leaves this process: its outcome, or None if it has not ended. Give it back by `unwatch`."""
        del run_id
        return asyncio.get_running_loop().create_future()  # from here it can only be asked for

    def unwatch(self, run_id: UUID, left: "asyncio.Future[Outcome | None]") -> None:
        """Nobody waits for it any more."""

    def executes(self, run_id: UUID) -> bool:
        """This process has the run in its hands, and will know first that it has left."""
        del run_id
        return False

    def _namespace_of(self, namespace: str | None) -> str | None:
        """To filter by: None for all."""
        return None if namespace == "*" else search.text_of("namespace", namespace) or self.namespace

    async def _start(self, workflow: Workflow[..., Any], new: NewRun) -> None:
        del workflow
        [started] = await self.store.start_runs([new])
        if started.existing is not None:
            refuse_other(new, started.existing)

    def _new_run(self, workflow: str, text: str, form: Form | None, options: Options) -> NewRun:
        namespace = options.namespace or self.namespace
        name = options.id or f"{workflow[: NAME_MAX - 13].replace('_', '-')}-{uuid4().hex[:12]}"
        return NewRun(
            id=run_id_of(namespace, name),
            namespace=namespace,
            name=name,
            workflow=workflow,
            input=text,
            form=form,
            priority=options.priority,
            timeout_seconds=options.timeout.total_seconds() if options.timeout else None,
            labels={**self._labels_of_start(), **options.labels},
        )

    def _trace_of_start(self) -> dict[str, str]:
        """The context of a trace, where there is one: what an event carries, and the runs that it starts."""
        text = self._labels_of_start().get(trace.LABEL)
        return {} if text is None else {trace.LABEL: text}

    def _labels_of_start(self) -> Mapping[str, str]:
        """Labels that a run has which is started here, unless others are given."""
        return {}


def _text_of(where: RunFilter) -> str:
    """The filters as one text, the same in every process. Without times: "a day ago" is another one for the next page."""
    labels = sorted(where.labels.items())
    return repr(
        (where.namespace, where.workflow, sorted(where.phases), labels, where.name_part, where.ids, where.input)
    )


def _outcome_of(run: Run) -> Outcome:
    """The outcome of a run that is done, from its row."""
    end = {Phase.SUCCEEDED: End.SUCCEEDED, Phase.FAILED: End.FAILED, Phase.CANCELLED: End.CANCELLED}[run.phase]
    return Outcome(end, run.output, run.failure, run.reason, run.message)


def refuse_other(new: NewRun, existing: Run) -> None:
    """The same identity must be the same run.

    Raises:
        RunExistsError: it is another workflow, or another input.
    """
    started_with = existing.input if existing.first_input is None else existing.first_input
    for what, found in (("workflow", existing.workflow), ("input", started_with)):
        if getattr(new, what) != found:
            raise RunExistsError(namespace=existing.namespace, name=existing.name, what_differs=what)
