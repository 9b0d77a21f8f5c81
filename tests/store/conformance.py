"""What every Store promises, told through the interface alone: PostgresStore is held to it, and MemoryStore.

A subclass gives the fixtures `store`, `hands` (registers a worker) and `rewind` (lets the store's time pass).
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from romancy.errors import (
    HistoryConflictError,
    PayloadRefusedError,
    RetryRefusedError,
    RunNotFoundError,
    StoreUnavailableError,
    WorkerFencedError,
)
from romancy.model.event import CloudEvent
from romancy.model.history import Kind, Message, MessageKind
from romancy.model.outbox import OutboxKind, OutboxRow, Outgoing, told_number
from romancy.model.run import DeletionPolicy, Form, Phase, Reason, Wishes, queue_of
from romancy.store.interface import (
    Block,
    Claim,
    Finish,
    Keep,
    Park,
    Purgeable,
    Purged,
    Receipt,
    Release,
    RunFilter,
    RunWrite,
    Sending,
    Settled,
    Starter,
)
from romancy.store.purge import ROWS_MAX, RUNS_MAX
from tests.builders import SOME_TIME, a_message, a_new_run, an_attempt, an_entry
from tests.store.hands import Hands, StoreWithJournal

Register = Callable[..., Awaitable[Hands]]
Rewind = Callable[[float], Awaitable[None]]


async def emits(
    store: StoreWithJournal, worker: Hands, claim: Claim, *numbers: int, told: tuple[int, ...] = ()
) -> None:
    """The run writes an entry with events of these numbers, and with some of itself (`told_number`)."""
    rows = [(number, OutboxKind.EMIT, str(number)) for number in numbers]
    rows += [(told_number(claim.number, what), OutboxKind.TELL, f"told {what}") for what in told]
    outgoing = tuple(Outgoing(number, kind, CloudEvent(id, "/s", "t").as_text()) for number, kind, id in rows)
    entry = an_entry(numbers[0])
    await worker.write(claim, entry, outbox=outgoing)
    await store.carry_out([OutboxRow(claim.run_id, each.number, each.kind, each.payload) for each in outgoing])
    await worker.write(claim, entry, outbox=outgoing[: len(numbers)])  # a late copy


class StoreConformance:
    # --- runs -------------------------------------------------------------------------------------------------------

    async def test_a_started_run_is_shown_as_it_was_given(self, store: StoreWithJournal) -> None:
        wishes = Wishes(deletion_policy=DeletionPolicy.ORPHAN, ttl_seconds=60)
        new = a_new_run(
            namespace="shop", name="order-1", input='{"b":1,"a":-0.0,"a":"\\u0000"}', form=Form.BY_NAME, priority=7,
            timeout_seconds=1.5, labels={"team": "ü"}, is_resource=True, wishes=wishes,
        )  # fmt: skip

        [started] = await store.start_runs([new])
        run = await store.read_run(new.id)

        assert started.run_id == new.id
        assert started.existing is None
        assert run is not None
        assert (run.id, run.namespace, run.name, run.workflow) == (new.id, "shop", "order-1", "flow")
        assert (run.input, run.form, run.priority, run.timeout_seconds) == (new.input, Form.BY_NAME, 7, 1.5)
        assert (run.phase, run.reason, run.message, run.labels) == (Phase.PENDING, "", "", {"team": "ü"})
        assert (run.is_resource, run.wishes, run.worker, run.python) == (True, wishes, None, None)
        assert run.wake_at == run.created_at
        assert run.started_at is run.finished_at is run.output is run.failure is None
        assert await store.read_run(uuid4()) is None

    async def test_starting_twice_is_starting_once(self, store: StoreWithJournal, hands: Register) -> None:
        """I6, also for an id that stands twice in one call."""
        first, other = a_new_run(input='{"n":1}'), a_new_run()
        await store.start_runs([first])

        started = await store.start_runs([other, a_new_run(id=first.id, input='{"n":2}'), a_new_run(id=other.id)])

        assert [each.run_id for each in started] == [other.id, first.id, other.id]
        assert started[0].existing is None
        assert started[1].existing is not None
        assert started[1].existing.input == '{"n":1}'
        assert started[2].existing is not None
        worker = await hands()
        assert sorted(await worker.claim_ids()) == sorted([first.id, other.id])

    async def test_starting_nothing_is_nothing(self, store: StoreWithJournal) -> None:
        assert await store.start_runs([]) == []

    async def test_a_delayed_run_is_due_at_its_time(
        self, store: StoreWithJournal, hands: Register, rewind: Rewind
    ) -> None:
        worker = await hands()
        new = a_new_run(start_at=await store.now() + timedelta(hours=1))
        await store.start_runs([new])

        assert await worker.claim() == []
        assert await store.next_due_at(worker.id) == new.start_at
        run = await store.read_run(new.id)
        assert run is not None
        assert (run.phase, run.reason, run.wake_at) == (Phase.PENDING, Reason.DELAYED, new.start_at)
        await rewind(3601)
        assert await worker.claim_ids() == [new.id]
        run = await store.read_run(new.id)
        assert run is not None
        assert (run.phase, run.reason) == (Phase.RUNNING, "")

    async def test_a_run_started_as_suspended_sleeps_until_it_is_resumed(
        self, store: StoreWithJournal, hands: Register
    ) -> None:
        worker = await hands()
        new = a_new_run(is_resource=True, wishes=Wishes(suspend=True))
        await store.start_runs([new])

        run = await store.read_run(new.id)
        assert run is not None
        assert run.phase is Phase.SUSPENDED
        assert await worker.claim() == []
        await store.send([a_message(new.id, kind=MessageKind.RESUME)])
        assert await worker.claim_ids() == [new.id]

    async def test_a_name_finds_its_newest_run(self, store: StoreWithJournal) -> None:
        older, newer = a_new_run(name="n"), a_new_run(name="n")
        await store.start_runs([older])
        await store.start_runs([newer])

        found = await store.find_run("default", "n")

        assert found is not None
        assert found.id == newer.id
        assert await store.find_run("other", "n") is None

    async def test_lists_page_from_new_to_old(self, store: StoreWithJournal) -> None:
        runs = [a_new_run() for _ in range(5)]
        await store.start_runs(runs)  # all at one time: the id decides
        everything = await store.list_runs(RunFilter(), limit=10)

        pages, after = [], None
        while page := await store.list_runs(RunFilter(after=after), limit=2):
            pages.append([run.id for run in page])
            after = (page[-1].created_at, page[-1].id)

        assert [len(page) for page in pages] == [2, 2, 1]
        assert [run_id for page in pages for run_id in page] == [run.id for run in everything]
        assert [run.id for run in everything] == sorted((run.id for run in runs), reverse=True)

    @pytest.mark.parametrize(
        "phases", [set(), {Phase.PENDING, Phase.RUNNING}, {Phase.FAILED}, {Phase.FAILED, Phase.PENDING}]
    )
    async def test_lists_show_what_all_filters_let_through(
        self, store: StoreWithJournal, hands: Register, phases: set[Phase]
    ) -> None:
        worker = await hands()
        for namespace in ("a", "b"):
            for workflow in ("flow", "other"):
                for labels in ({}, {"x": "1", "y": "2"}):
                    await store.start_runs([a_new_run(namespace=namespace, workflow=workflow, labels=labels)])
        for claim in await worker.claim():  # of workflow flow
            if (await store.read_run(claim.run_id)).namespace == "a":  # type: ignore[union-attr]
                await worker.write(claim, then=Finish(Phase.FAILED, "WorkflowFailed"))
        everything = await store.list_runs(RunFilter(), limit=100)
        assert len(everything) == 8

        for namespace in (None, "a", "c"):
            for workflow in (None, "flow"):
                for labels in ({}, {"x": "1"}, {"x": "2"}):
                    where = RunFilter(namespace, workflow, frozenset(phases), labels)
                    expected = [
                        run.id
                        for run in everything
                        if namespace in (None, run.namespace)
                        and workflow in (None, run.workflow)
                        and (not phases or run.phase in phases)
                        and labels.items() <= run.labels.items()
                    ]
                    assert [run.id for run in await store.list_runs(where, limit=100)] == expected

    async def test_lists_by_name_id_and_times(self, store: StoreWithJournal, hands: Register, rewind: Rewind) -> None:
        worker = await hands()
        old, older = (
            a_new_run(name="order-1", id=UUID(int=0xAB << 120)),
            a_new_run(name="Order-2", id=UUID(int=0xAC << 120)),
        )
        await store.start_runs([older])
        await store.start_runs([old])
        [claim] = [each for each in await worker.claim() if each.run_id == older.id]
        await worker.write(claim, then=Finish(Phase.FAILED, "WorkflowFailed"))
        by_id = {run.id: run for run in await store.list_runs(RunFilter(), limit=9)}
        assert len(by_id) == 2
        created_at, finished_at = by_id[old.id].created_at, by_id[older.id].finished_at
        assert finished_at is not None
        assert by_id[older.id].created_at < created_at
        later = finished_at + timedelta(microseconds=1)

        async def found(**where: Any) -> list[UUID]:
            return [run.id for run in await store.list_runs(RunFilter(**where), limit=9)]

        assert await found(name_part="rder-") == [old.id, older.id]
        assert await found(name_part="order") == [old.id]  # as it is written
        assert await found(name_part="%") == await found(name_part="_") == []  # no patterns
        assert await found(ids=(UUID(int=0xAB << 120), UUID(int=(0xAC << 120) - 1))) == [old.id]
        assert await found(created_from=created_at) == [old.id]
        assert await found(created_before=created_at) == [older.id]
        assert await found(finished_from=finished_at) == await found(finished_before=later) == [older.id]
        assert await found(finished_from=later) == await found(finished_before=finished_at) == []
        assert await found(finished_before=later, phases=frozenset({Phase.FAILED, Phase.RUNNING})) == [older.id]
        assert await found(finished_before=later, phases=frozenset({Phase.RUNNING})) == []
        assert await found(name_part="rder", created_from=created_at, phases=frozenset({Phase.RUNNING})) == [old.id]
        assert await found(name_part="2", phases=frozenset({Phase.FAILED}), finished_from=finished_at) == [older.id]
        assert await found(name_part="2", created_from=created_at) == []

    @pytest.mark.parametrize(
        ("document", "part", "is_found"),
        [
            ('{"a":1,"b":{"c":[1,{"d":null,"e":2}]}}', '{"b":{"c":[{"d":null}]}}', True),
            ('{"a":1}', "{}", True),
            ('{"a":1.0}', '{"a":1}', True),
            ('{"a":100000000000000000000000000000001}', '{"a":100000000000000000000000000000001.0}', True),
            ('{"a":100000000000000000000000000000001}', '{"a":100000000000000000000000000000002}', False),
            ('{"a":0.1}', '{"a":0.10}', True),
            ('{"a":-0.0}', '{"a":0}', True),
            ('{"a":1}', '{"a":true}', False),
            ('{"a":"1"}', '{"a":1}', False),
            ('{"a":null}', '{"a":null}', True),
            ('{"a":1}', '{"b":null}', False),
            ('{"a":[1,2,3]}', '{"a":[3,1]}', True),
            ('{"a":[1,2]}', '{"a":[2,2,2]}', True),
            ('{"a":[1,2]}', '{"a":1}', False),
            ('{"a":1}', '{"a":[1]}', False),
            ('{"a":[[1,2],3]}', '{"a":[[2]]}', True),
            ('{"a":[[1,2],3]}', '{"a":[2]}', False),
            ('{"a":{}}', '{"a":[]}', False),
            ('{"a":1,"a":2}', '{"a":2}', True),
            ('{"a":1,"a":2}', '{"a":1}', False),
            ('{"ü":"\\u00fc"}', '{"ü":"ü"}', True),
            # What jsonb refuses contains nothing, and no list fails of it.
            ('{"a":1,"b":"\\u0000"}', '{"a":1}', False),
            ('{"a":1,"b":["\\u0000"],"b":2}', '{"a":1}', False),
            ('{"a":1,"\\u0000":2}', '{"a":1}', False),
            ('{"a":1,"b":"\\ud800"}', '{"a":1}', False),
            ('{"a":1,"b":1e131072}', '{"a":1}', False),
            ('{"a":1,"b":1e131071}', '{"a":1}', True),
            ('{"a":1,"b":1e99999999999999999999}', '{"a":1}', False),
            pytest.param(f'{{"a":1,"b":{"[" * 100_000 + "]" * 100_000}}}', '{"a":1}', False, id="nested too deep"),
        ],
    )
    async def test_an_input_is_searched_as_jsonb_does_it(
        self, store: StoreWithJournal, document: str, part: str, is_found: bool
    ) -> None:
        run, other = a_new_run(input=document), a_new_run(input='{"no":0}')
        await store.start_runs([run, other])

        for phases in (frozenset[Phase](), frozenset({Phase.PENDING})):
            found = await store.list_runs(RunFilter(phases=phases, input=part), limit=9)
            assert [each.id for each in found if each.id == run.id] == ([run.id] if is_found else [])
        assert await store.list_runs(RunFilter(phases=frozenset({Phase.FAILED}), input=part), limit=9) == []

    # --- purge ------------------------------------------------------------------------------------------------------

    async def test_old_runs_are_purged_with_all_that_is_theirs(
        self, store: StoreWithJournal, hands: Register, rewind: Rewind
    ) -> None:
        """Of the outcome and the age that are asked for, and no others; their ids are free then."""
        worker = await hands()
        old, failed, young, open_run = [a_new_run(name=name) for name in ("old", "failed", "young", "open")]
        for run in (old, failed):
            await store.start_runs([run])
            [claim] = await worker.claim()
            await store.send([a_message(run.id)])
            end = Finish(Phase.FAILED, "WorkflowFailed") if run is failed else Finish(Phase.SUCCEEDED, output="1")
            await worker.write(claim, an_entry(1), attempts=(an_attempt(2, 1),), then=end)
        await rewind(3600)
        await store.start_runs([young])
        [claim] = await worker.claim()
        await worker.write(claim, an_entry(1), then=Finish(Phase.SUCCEEDED, output="1"))
        await store.start_runs([open_run])
        which = Purgeable(Phase.SUCCEEDED, older_than_seconds=1800)

        assert await store.count_purgeable(which) == 1
        purged = await store.purge_runs(which)

        assert purged.runs == 1
        assert purged.last_at is not None
        assert await store.purge_runs(which, since=purged.last_at) == Purged(0, None)  # twice is once (I6)
        assert await store.count_purgeable(which) == 0
        assert {run.name for run in await store.list_runs(RunFilter(), limit=9)} == {"failed", "young", "open"}
        assert await store.read_run(old.id) is None
        assert await store.read_history(old.id) == await store.read_inbox(old.id, 0) == []
        assert len(await store.read_history(failed.id)) == len(await store.read_inbox(failed.id, 0)) == 1

        [started] = await store.start_runs([a_new_run(id=old.id, name="old", input='{"other":1}')])
        assert started.existing is None
        claims = await worker.claim()
        [again] = [each for each in await store.read_claimed(claims) if each.run_id == old.id]
        assert again.input == '{"other":1}'
        assert again.history == again.inbox == again.attempts == ()

    async def test_purged_by_namespace_and_workflow(
        self, store: StoreWithJournal, hands: Register, rewind: Rewind
    ) -> None:
        worker = await hands(workflows={"flow": Form.WHOLE, "other": Form.WHOLE})
        for namespace, workflow in (("a", "flow"), ("a", "other"), ("b", "flow")):
            claim = await worker.started(namespace=namespace, workflow=workflow)
            await worker.write(claim, then=Finish(Phase.CANCELLED, "Cancelled"))
        await rewind(3600)

        assert (await store.purge_runs(Purgeable(Phase.CANCELLED, 1800, namespace="a", workflow="flow"))).runs == 1
        assert await store.count_purgeable(Purgeable(Phase.CANCELLED, 1800, namespace="a")) == 1
        assert await store.count_purgeable(Purgeable(Phase.CANCELLED, 1800)) == 2
        assert await store.count_purgeable(Purgeable(Phase.CANCELLED, 7200)) == 0
        assert (await store.purge_runs(Purgeable(Phase.CANCELLED, 1800))).runs == 2

    async def test_the_oldest_are_purged_first_and_from_where_the_last_batch_ended(
        self, store: StoreWithJournal, hands: Register, rewind: Rewind
    ) -> None:
        worker = await hands()
        claims = [await worker.started(name=str(nth)) for nth in range(RUNS_MAX + 2)]
        for claim in claims:
            await worker.write(claim, then=Finish(Phase.SUCCEEDED, output="1"))
        await rewind(3600)
        which = Purgeable(Phase.SUCCEEDED, 1800)

        first = await store.purge_runs(which)
        left = {run.id for run in await store.list_runs(RunFilter(), limit=500)}

        assert first.runs == RUNS_MAX
        assert left == {claim.run_id for claim in claims[RUNS_MAX:]}
        assert (await store.purge_runs(which, since=first.last_at)).runs == 2

    async def test_a_batch_of_long_histories_is_a_small_one(
        self, store: StoreWithJournal, hands: Register, rewind: Rewind
    ) -> None:
        worker = await hands()
        for _ in range(3):
            claim = await worker.started()
            await worker.write(
                claim, *[an_entry(nth + 1) for nth in range(ROWS_MAX // 2)], then=Finish(Phase.FAILED, "x")
            )
        await rewind(3600)
        which = Purgeable(Phase.FAILED, 1800)

        assert (await store.purge_runs(which)).runs == 2
        assert (await store.purge_runs(which)).runs == 1

    async def test_a_run_whose_resource_is_there_is_not_purged(
        self, store: StoreWithJournal, hands: Register, rewind: Rewind
    ) -> None:
        worker = await hands()
        claim = await worker.started(is_resource=True, wishes=Wishes(ttl_seconds=60))
        await worker.write(claim, then=Finish(Phase.SUCCEEDED, output="1"))
        await rewind(3600)
        which = Purgeable(Phase.SUCCEEDED, 1800)

        assert await store.count_purgeable(which) == 0
        assert await store.purge_runs(which) == Purged(0, None)
        await store.resources_gone([claim.run_id])
        assert await store.count_purgeable(which) == 1
        assert (await store.purge_runs(which)).runs == 1

    async def test_what_a_flush_may_bring_back_is_not_purged(
        self, store: StoreWithJournal, hands: Register, rewind: Rewind
    ) -> None:
        """A flush is sent again for give_up_seconds, 60 by default."""
        worker = await hands()
        claim = await worker.started()
        await worker.write(claim, then=Finish(Phase.SUCCEEDED, output="1"))
        which = Purgeable(Phase.SUCCEEDED, older_than_seconds=0)

        await rewind(110)
        assert (await store.purge_runs(which)).runs == 0
        await rewind(20)
        assert (await store.purge_runs(which)).runs == 1

    # --- retries ---

    async def test_a_failed_run_is_opened_again(self, store: StoreWithJournal, hands: Register) -> None:
        worker = await hands()
        claim = await worker.started(is_resource=True, wishes=Wishes(ttl_seconds=5))
        failed = an_entry(2, kind=Kind.ACTIVITY_FAILED, payload='{"type":"builtins.OSError","message":"away"}')
        await worker.write(claim, an_entry(1), attempts=(an_attempt(2),))
        end = Finish(Phase.FAILED, "WorkflowFailed", "OSError: away", failure=failed.payload)
        await worker.write(claim, failed, then=end)
        await store.mark_mirrored({claim.run_id: (await store.take_unmirrored(hold_seconds=0, limit=9))[0].version})

        assert await store.retry_run(claim.run_id, by="me")

        run = await store.read_run(claim.run_id)
        assert run is not None
        assert (run.phase, run.reason, run.message, run.failure, run.finished_at) == (Phase.PENDING, "", "", None, None)
        [again] = await worker.claim()
        assert again.number == claim.number + 1
        [claimed] = await store.read_claimed([again])
        assert claimed.attempts == ()
        assert claimed.history == (an_entry(1), failed)
        assert [(row.number, row.kind, json.loads(row.payload)) for row in claimed.inbox] == [
            (1, MessageKind.RETRY, {"from": 2, "to": 2, "by": "me"}),
            (2, MessageKind.RESUME, {}),  # what its resource wants now, whatever was told before
        ]
        [owed] = await store.take_unmirrored(hold_seconds=0, limit=9)
        assert owed.run.phase is Phase.RUNNING
        assert owed.version > 1_000_000  # whoever wrote the former end remembers its version
        assert await store.expired_resources(limit=9) == []

    async def test_what_was_written_late_for_a_failed_run_changes_nothing_of_its_retry(
        self, store: StoreWithJournal, hands: Register
    ) -> None:
        worker = await hands()
        claim = await worker.started()
        end = Finish(Phase.FAILED, "WorkflowFailed", "it broke")
        await worker.write(claim, an_entry(1), then=end)
        await store.retry_run(claim.run_id)
        [again] = await worker.claim()

        ended = (Outgoing(0, OutboxKind.ENDED),)
        with pytest.raises(HistoryConflictError):  # the copy of a flush whose answer was lost
            await worker.write(claim, an_entry(1), then=end, outbox=ended)

        run = await store.read_run(claim.run_id)
        assert run is not None
        assert run.phase is Phase.RUNNING
        assert await store.read_left(limit=9) == []
        await worker.write(again, then=Finish(Phase.SUCCEEDED, output="1"))

    async def test_a_retry_overtakes_what_was_asked_for_before_it(
        self, store: StoreWithJournal, hands: Register
    ) -> None:
        """Of a resource counts what it wants now, and no order of a leader that has been overtaken."""
        worker = await hands()
        claim = await worker.started(is_resource=True)
        for kind, source in (
            (MessageKind.SUSPEND, "resource:suspend:3"),
            (MessageKind.RESUME, "resource:resume:12"),
            (MessageKind.SUSPEND, "client:suspend:99"),
            (MessageKind.CANCEL, "client:cancel"),
        ):
            await store.send([Message(claim.run_id, kind, source)])
        await worker.write(claim, then=Finish(Phase.FAILED, "WorkflowFailed", "it broke"))
        await store.set_wishes({claim.run_id: Wishes(suspend=True)})

        await store.retry_run(claim.run_id)

        assert [(row.number, row.kind, row.source) for row in await store.read_inbox(claim.run_id, 0)] == [
            (5, MessageKind.RETRY, "retry:5"),
            (6, MessageKind.SUSPEND, "resource:retry/5:12"),
        ]
        [again] = await worker.claim()
        assert again.inbox_version == 6
        # Whoever wants it cancelled now is heard.
        assert await store.send([Message(claim.run_id, MessageKind.CANCEL, "client:cancel")]) == 1

    async def test_two_who_retry_at_once_retry_once(self, store: StoreWithJournal, hands: Register) -> None:
        worker = await hands()
        claim = await worker.started()
        await worker.write(claim, then=Finish(Phase.FAILED, "WorkflowFailed", "it broke"))

        done = await asyncio.gather(*[store.retry_run(claim.run_id) for _ in range(5)])

        assert sorted(done) == [False, False, False, False, True]
        assert len(await store.read_inbox(claim.run_id, 0)) == 1

    async def test_what_can_not_be_retried_is_refused(self, store: StoreWithJournal, hands: Register) -> None:
        worker = await hands()
        ends = {
            "is Succeeded": Finish(Phase.SUCCEEDED, output="1"),
            "is Cancelled": Finish(Phase.CANCELLED, "Cancelled"),
            "has taken back": Finish(Phase.FAILED, "CompensationFailed", "x"),
        }
        for why, end in ends.items():
            claim = await worker.started()
            await worker.write(claim, then=end)
            with pytest.raises(RetryRefusedError, match=why):
                await store.retry_run(claim.run_id)
        undone = await worker.started()
        await worker.write(undone, then=Keep(Phase.COMPENSATING, "Compensating"))
        await worker.write(undone, then=Keep(Phase.RUNNING))
        await worker.write(undone, then=Finish(Phase.FAILED, "WorkflowFailed", "x"))
        with pytest.raises(RetryRefusedError, match="has taken back what it had done"):
            await store.retry_run(undone.run_id)
        unwanted = await worker.started(is_resource=True)
        await worker.write(unwanted, then=Finish(Phase.FAILED, "WorkflowFailed", "x"))
        await store.set_wishes({unwanted.run_id: Wishes(cancel=True)})
        with pytest.raises(RetryRefusedError, match="asks for its cancellation"):
            await store.retry_run(unwanted.run_id)
        gone = await worker.started(is_resource=True)
        await worker.write(gone, then=Finish(Phase.FAILED, "WorkflowFailed", "x"))
        await store.resources_gone([gone.run_id])
        with pytest.raises(RetryRefusedError, match="was deleted"):
            await store.retry_run(gone.run_id)
        is_open = await worker.started()
        with pytest.raises(RetryRefusedError, match="is Running; only a run that has Failed"):
            await store.retry_run(is_open.run_id)
        with pytest.raises(RunNotFoundError):
            await store.retry_run(uuid4())

    # --- purge ---

    async def test_one_of_all_who_ask_looks_for_what_is_to_be_purged(
        self, store: StoreWithJournal, rewind: Rewind
    ) -> None:
        assert await store.may_purge(every_seconds=50)
        assert not await store.may_purge(every_seconds=50)
        await rewind(51)
        assert await store.may_purge(every_seconds=50)
        assert not await store.may_purge(every_seconds=50)

    # --- claims -----------------------------------------------------------------------------------------------------

    async def test_the_best_priority_is_claimed_first(self, store: StoreWithJournal, hands: Register) -> None:
        """Across workflows, and whichever of them has its turn."""
        worker = await hands(workflows=dict.fromkeys("abc", Form.WHOLE))
        runs = [a_new_run(workflow=name, priority=priority) for name in "abc" for priority in (0, -5, 1000, 3)]
        await store.start_runs(runs)
        priorities = {run.id: run.priority for run in runs}

        order = [priorities[(await worker.claim_ids(limit=1))[0]] for _ in runs]

        assert order == [1000] * 3 + [3] * 3 + [0] * 3 + [-5] * 3

    async def test_of_equal_priority_the_longest_due_is_first(self, store: StoreWithJournal, hands: Register) -> None:
        worker = await hands()
        runs = [a_new_run() for _ in range(4)]
        for run in runs:
            await store.start_runs([run])

        assert [(await worker.claim_ids(limit=1))[0] for _ in runs] == [run.id for run in runs]

    async def test_workflows_of_equal_priority_take_turns(self, store: StoreWithJournal, hands: Register) -> None:
        worker = await hands(workflows={"a": Form.WHOLE, "b": Form.WHOLE})
        await store.start_runs([a_new_run(workflow=name) for name in "aaabbb"])

        taken = "".join([(await worker.claim(limit=1))[0].workflow for _ in range(4)])

        assert sorted(taken) == ["a", "a", "b", "b"]

    async def test_a_run_is_claimed_once_and_only_by_who_has_its_workflow(
        self, store: StoreWithJournal, hands: Register
    ) -> None:
        worker, other, stranger = await hands(), await hands(), await hands(workflows={"other": Form.WHOLE})
        run = a_new_run()
        await store.start_runs([run])

        assert await stranger.claim() == []
        assert await stranger.store.next_due_at(stranger.id) is None
        [claim] = await worker.claim()
        assert (claim.run_id, claim.number, claim.workflow, claim.inbox_version) == (run.id, 1, "flow", 0)
        assert (claim.phase, claim.lost_count, claim.lost_noted) == (Phase.RUNNING, 0, 0)
        assert await worker.claim() == await other.claim() == []

    async def test_a_claim_takes_no_more_than_its_limit(self, store: StoreWithJournal, hands: Register) -> None:
        worker = await hands()
        await store.start_runs([a_new_run(priority=n % 3) for n in range(9)])

        assert [len(await worker.claim(limit=4)) for _ in range(4)] == [4, 4, 1, 0]

    async def test_the_first_claim_begins_the_run(self, store: StoreWithJournal, hands: Register) -> None:
        """Its clock, its Python minor and the form of its input; a later claim changes none of them."""
        worker = await hands(workflows={"flow": Form.BY_NAME})
        run = a_new_run(labels={"a": "b"}, timeout_seconds=9.0)
        await store.start_runs([run])

        before = await store.now()
        [claim] = await worker.claim()
        after = await store.now()
        [claimed] = await store.read_claimed([claim])
        await worker.write(claim, then=Release())
        [again] = await (await hands()).claim()
        [claimed_again] = await store.read_claimed([again])

        assert before <= claimed.started_at <= after
        assert (claimed.run_id, claimed.namespace, claimed.name) == (run.id, run.namespace, run.name)
        assert (claimed.workflow, claimed.input, claimed.form) == ("flow", "{}", Form.BY_NAME)
        assert (claimed.labels, claimed.timeout_seconds) == ({"a": "b"}, 9.0)
        assert claimed.history == claimed.inbox == claimed.attempts == ()
        assert claimed_again == claimed

    async def test_a_given_form_is_kept(self, store: StoreWithJournal, hands: Register) -> None:
        claim = await (await hands(workflows={"flow": Form.WHOLE})).started(form=Form.BY_NAME)

        [claimed] = await store.read_claimed([claim])

        assert claimed.form is Form.BY_NAME

    async def test_a_run_keeps_its_python(self, store: StoreWithJournal, hands: Register) -> None:
        """Its queue is that of model.run.queue_of: with the minor once it has begun."""
        worker, younger = await hands(python="3.12"), await hands(python="3.13")
        claim = await worker.started()
        await worker.write(claim, then=Release())

        assert queue_of("flow", "3.12") == "flow/3.12"
        assert await younger.claim() == []
        assert await store.next_due_at(younger.id) is None
        assert await worker.claim_ids() == [claim.run_id]
        run = await store.read_run(claim.run_id)
        assert run is not None
        assert run.python == "3.12"

    async def test_a_claim_reads_all_that_earlier_ones_wrote(self, store: StoreWithJournal, hands: Register) -> None:
        worker = await hands()
        claim = await worker.started()
        entries = [an_entry(1), an_entry(2, number=5, inbox=1, payload="ü", at=SOME_TIME)]
        attempts = (an_attempt(1, 1), an_attempt(9, 1), an_attempt(9, 2))
        message = a_message(claim.run_id, payload='{"x":1}')
        await store.send([message])
        await worker.write(claim, *entries, attempts=attempts, then=Park(seen=1, wake_at=SOME_TIME))

        [again] = await worker.claim()
        [claimed] = await store.read_claimed([again])

        assert (again.number, again.inbox_version) == (2, 1)
        assert list(claimed.history) == entries == await store.read_history(claim.run_id)
        [mail] = claimed.inbox
        assert (mail.number, mail.kind, mail.source, mail.payload) == (1, message.kind, message.source, message.payload)
        assert claimed.attempts == (an_attempt(9, 1), an_attempt(9, 2))  # activity 1 has ended

    async def test_a_claim_whose_answer_was_lost_is_found(self, store: StoreWithJournal, hands: Register) -> None:
        worker = await hands()
        claims = [await worker.started() for _ in range(3)]
        in_hand = {claims[0].run_id: claims[0].number, claims[1].run_id: claims[1].number + 1}

        poll = await store.poll(worker.id, in_hand)

        assert sorted(poll.unseen, key=str) == sorted(claims[1:], key=str)

    async def test_a_poll_tells_what_there_is_to_claim(
        self, store: StoreWithJournal, hands: Register, rewind: Rewind
    ) -> None:
        worker, other = await hands(), await hands(build_id="other")
        nothing = await store.poll(worker.id, {})
        claim = await worker.started()
        start_at = await store.now() + timedelta(hours=1)
        await store.start_runs([a_new_run(start_at=start_at), a_new_run(start_at=start_at + timedelta(hours=1))])
        await store.start_runs([a_new_run(workflow="unknown")])
        await worker.write(claim, then=Block("NonDeterminism", "", "build-1"))

        mine, theirs = await store.poll(worker.id, {}), await store.poll(other.id, {})

        assert (nothing.unseen, nothing.due_at, nothing.has_blocked) == ((), None, False)
        assert (mine.unseen, mine.due_at, mine.has_blocked) == ((), start_at, False)
        assert (theirs.due_at, theirs.has_blocked) == (start_at, True)
        assert nothing.now <= mine.now <= theirs.now < start_at
        await rewind(3601)
        later = await store.poll(worker.id, {})
        assert later.due_at is not None
        assert later.due_at <= later.now

    # --- the journal --------------------------------------------------------------------------------------------------

    async def test_what_is_written_is_there_in_order(self, store: StoreWithJournal, hands: Register) -> None:
        """I4: the answer comes when the rows are durable; writes of one run that wait together are one row."""
        worker = await hands()
        claim = await worker.started()
        before = worker.journal.flushes

        futures = [
            worker.journal.submit(RunWrite(claim.run_id, claim.number, entries=(an_entry(n),))) for n in range(1, 6)
        ]
        answers = [await future for future in futures]

        assert all(not answer.stays and answer.began for answer in answers)
        assert await store.read_history(claim.run_id) == [an_entry(n) for n in range(1, 6)]
        assert worker.journal.flushes == before + 1

    async def test_a_run_of_ones_own_needs_no_claim(self, store: StoreWithJournal, hands: Register) -> None:
        worker, other = await hands(), await hands()

        run_id, answer = await worker.begin(an_entry(1), labels={"a": "b"}, form=Form.WHOLE)

        assert answer.began
        run = await store.read_run(run_id)
        assert run is not None
        assert (run.phase, run.worker, run.started_at, run.python) == (Phase.RUNNING, "worker", SOME_TIME, "3.13")
        assert (run.form, run.labels) == (Form.WHOLE, {"a": "b"})
        assert run.created_at == SOME_TIME  # never after its start
        assert await store.read_history(run_id) == [an_entry(1)]
        assert await other.claim() == []
        await worker.journal.submit(RunWrite(run_id, 1, then=Release()))
        assert await other.claim_ids() == [run_id]

    async def test_a_begin_that_is_refused_leaves_no_trace(self, store: StoreWithJournal, hands: Register) -> None:
        worker = await hands()
        run = a_new_run()
        await store.start_runs([run])

        _, answer = await worker.begin(an_entry(1), id=run.id, input='{"other":1}')

        assert not answer.began
        assert await store.read_history(run.id) == []
        assert [claim.number for claim in await worker.claim()] == [1]

    @pytest.mark.parametrize(
        ("then", "phase", "is_due"),
        [
            (Park(0, None, reason="r", message="m"), Phase.WAITING, False),
            (Park(0, SOME_TIME, Phase.COMPENSATING, reason="r", message="m"), Phase.COMPENSATING, True),
            (Keep(Phase.COMPENSATING, "r", "m"), Phase.COMPENSATING, False),
            (Block("r", "m", "build-1"), Phase.BLOCKED, False),
            (Finish(Phase.SUCCEEDED, "r", "m", output="1"), Phase.SUCCEEDED, False),
        ],
    )
    @pytest.mark.parametrize("is_own", [True, False])
    async def test_what_follows_is_written_with_the_entries(
        self, store: StoreWithJournal, hands: Register, then: Any, phase: Phase, is_due: bool, is_own: bool
    ) -> None:
        """In one flush, for a run that was claimed and for one that begins in it."""
        worker = await hands()
        if is_own:
            run_id, answer = await worker.begin(an_entry(1), then=then)
        else:
            claim = await worker.started()
            run_id, answer = claim.run_id, await worker.write(claim, an_entry(1), then=then)

        run = await store.read_run(run_id)

        assert not answer.stays
        assert run is not None
        assert (run.phase, run.reason, run.message) == (phase, "r", "m")
        assert (run.worker is None) == (not isinstance(then, Keep))
        assert run.is_done == (run.finished_at is not None)
        assert run.output == (then.output if isinstance(then, Finish) else None)
        assert (run.started_at, run.python) != (None, None)
        assert await store.read_history(run_id) == [an_entry(1)]
        assert await worker.claim_ids() == ([run_id] if is_due else [])

    async def test_a_compensating_run_is_claimed_as_such(self, hands: Register) -> None:
        worker = await hands()
        claim = await worker.started()
        await worker.write(claim, then=Park(0, SOME_TIME, Phase.COMPENSATING))

        [again] = await worker.claim()

        assert again.phase is Phase.COMPENSATING

    async def test_a_run_with_new_mail_is_not_parked(self, store: StoreWithJournal, hands: Register) -> None:
        """I7: what the worker has seen is compared with the row itself."""
        worker = await hands()
        claim = await worker.started()
        await store.send([a_message(claim.run_id)])

        answer = await worker.write(claim, then=Park(seen=0, wake_at=None, reason="r"))
        run = await store.read_run(claim.run_id)
        parked = await worker.write(claim, then=Park(seen=1, wake_at=None))

        assert answer.stays
        assert run is not None
        assert (run.phase, run.reason, run.worker) == (Phase.RUNNING, "", "worker")
        assert not parked.stays

    async def test_a_released_run_is_due_at_once(self, store: StoreWithJournal, hands: Register) -> None:
        worker, heir = await hands(), await hands()
        claim = await worker.started()

        await worker.write(claim, an_entry(1), then=Release())
        [again] = await heir.claim()

        assert (again.run_id, again.number, again.lost_count) == (claim.run_id, 2, 0)
        assert (await store.poll(worker.id, {})).unseen == ()

    async def test_who_let_a_run_go_can_change_it_no_more(self, store: StoreWithJournal, hands: Register) -> None:
        worker = await hands()
        claim = await worker.started()
        await worker.write(claim, then=Release())
        [again] = await worker.claim()

        with pytest.raises(HistoryConflictError):
            await worker.write(claim, then=Finish(Phase.FAILED))

        assert (await worker.write(again, then=Finish(Phase.SUCCEEDED))) is not None
        run = await store.read_run(claim.run_id)
        assert run is not None
        assert run.phase is Phase.SUCCEEDED

    async def test_an_entry_never_changes(self, store: StoreWithJournal, hands: Register) -> None:
        """I3: the same entry again is success, another at its position is a conflict of that run alone."""
        worker = await hands()
        claim, innocent = await worker.started(), await worker.started()
        await worker.write(claim, an_entry(1))
        await worker.write(claim, an_entry(1))

        bad = worker.journal.submit(RunWrite(claim.run_id, claim.number, entries=(an_entry(1, payload="other"),)))
        good = worker.journal.submit(RunWrite(innocent.run_id, innocent.number, entries=(an_entry(1),)))

        with pytest.raises(HistoryConflictError):
            await bad
        await good
        assert await store.read_history(claim.run_id) == [an_entry(1)]
        assert await store.read_history(innocent.run_id) == [an_entry(1)]

    @pytest.mark.parametrize(
        "bad",
        [
            {"entries": (an_entry(1, payload="a\0b"),)},
            {"entries": (an_entry(1, name="\ud800"),)},
            {"entries": (an_entry(1, number=2**40),)},
            {"attempts": (an_attempt(1, 1, failure="\0"),)},
            {"then": Keep(Phase.RUNNING, message="\0")},
        ],
    )
    async def test_a_bad_value_stops_nobody_else(
        self, store: StoreWithJournal, hands: Register, bad: dict[str, Any]
    ) -> None:
        worker = await hands()
        claims = [await worker.started() for _ in range(7)]

        futures = [
            worker.journal.submit(
                RunWrite(claim.run_id, claim.number, **(bad if nth == 3 else {"entries": (an_entry(1),)}))
            )
            for nth, claim in enumerate(claims)
        ]

        with pytest.raises(PayloadRefusedError):
            await futures[3]
        for nth, claim in enumerate(claims):
            if nth != 3:
                await futures[nth]
            assert await store.read_history(claim.run_id) == ([] if nth == 3 else [an_entry(1)])

    async def test_what_ran_ahead_of_a_refused_write_is_refused(self, store: StoreWithJournal, hands: Register) -> None:
        """Else its history would have a gap. What takes the refused one's place is written."""
        worker = await hands()
        claim = await worker.started()

        bad = worker.journal.submit(RunWrite(claim.run_id, claim.number, entries=(an_entry(1, payload="\0"),)))
        ahead = worker.journal.submit(RunWrite(claim.run_id, claim.number, entries=(an_entry(2),)))

        with pytest.raises(PayloadRefusedError):
            await bad
        with pytest.raises(PayloadRefusedError):
            await ahead
        await worker.write(claim, then=Keep(Phase.RUNNING, "reason"))
        with pytest.raises(PayloadRefusedError):
            await worker.write(claim, an_entry(3))
        await worker.write(claim, an_entry(1), then=Finish(Phase.FAILED, "PayloadRefused"))
        assert await store.read_history(claim.run_id) == [an_entry(1)]

    # --- transactions of activities ----------------------------------------------------------------------------------

    async def test_an_activity_s_own_transaction_appends_its_entry_and_what_it_sends(
        self, store: StoreWithJournal, hands: Register
    ) -> None:
        mine = await hands()
        claim = await mine.started()
        await mine.write(claim, an_entry(position=1))
        transaction = await store.begin_transaction(mine.id)

        assert await transaction.hold(claim.run_id, claim.number)
        sent = Outgoing(7, OutboxKind.SET_VALUE, '{"name":"a","value":"1"}')
        await transaction.commit(claim.run_id, claim.number, [an_entry(position=2), an_entry(position=3)], [sent])

        assert [entry.position for entry in await store.read_history(claim.run_id)] == [1, 2, 3]
        assert await store.read_values(claim.run_id) == {"a": "1"}

    async def test_it_is_undone_and_leaves_nothing(self, store: StoreWithJournal, hands: Register) -> None:
        mine = await hands()
        claim = await mine.started()
        transaction = await store.begin_transaction(mine.id)

        assert await transaction.hold(claim.run_id, claim.number)
        await transaction.rollback()

        assert await store.read_history(claim.run_id) == []

    async def test_who_does_not_hold_the_run_or_is_buried_can_t_hold_it_in_one(
        self, store: StoreWithJournal, hands: Register
    ) -> None:
        """I2: neither with an older claim, nor of another worker's run, nor after the burial."""
        mine, other = await hands(name="mine"), await hands(name="other")
        claim = await mine.started()
        before, foreign, late = [await store.begin_transaction(each.id) for each in (mine, other, mine)]

        assert not await before.hold(claim.run_id, claim.number - 1)
        assert not await foreign.hold(claim.run_id, claim.number)
        await before.rollback()
        await foreign.rollback()
        await late.rollback()  # a burial ends the backends of its worker
        await store.bury_worker(mine.id, even_if_alive=True)
        with pytest.raises((WorkerFencedError, StoreUnavailableError)):
            await (await store.begin_transaction(mine.id)).hold(claim.run_id, claim.number)

    # --- many events -------------------------------------------------------------------------------------------------

    async def test_many_events_are_stored_in_order_each_once_and_each_is_told_of(
        self, store: StoreWithJournal, hands: Register
    ) -> None:
        await store.set_starters("default", ["w"], [Starter("w", "t.go", {}, Form.WHOLE)])
        mine = await hands()
        target = await mine.started()
        sent = [
            Sending(CloudEvent(id="1", source="/s", type="t.go")),
            Sending(CloudEvent(id="2", source="/s", type="t.other")),
            Sending(CloudEvent(id="1", source="/s", type="t.go")),
            Sending(CloudEvent(id="3", source="/s", type="t.go"), to=target.run_id),
            Sending(CloudEvent(id="4", source="/s", type="t.go"), to=uuid4()),
        ]

        first = await store.send_events(sent)
        again = await store.send_events(sent[:2])

        assert first == [
            Receipt(0, 1, True),
            Receipt(0, 0, True),
            Receipt(0, 0, False),
            Receipt(1, 0, True),
            Receipt(0, 0, True),
        ]
        assert again == [Receipt(0, 0, False), Receipt(0, 0, False)]
        [brought] = await store.read_inbox(target.run_id, 0)
        assert json.loads(brought.payload)["id"] == "3"
        assert await store.send_events([]) == []

    # --- inbox --------------------------------------------------------------------------------------------------------

    async def test_a_message_sent_twice_is_there_once(self, store: StoreWithJournal, hands: Register) -> None:
        worker = await hands()
        claim, other = await worker.started(), await worker.started()
        message = a_message(claim.run_id)

        counts = [
            await store.send([message, message]),
            await store.send([message, a_message(claim.run_id), a_message(other.run_id, source=message.source)]),
            await store.send([]),
        ]

        assert counts == [1, 2, 0]
        assert [row.number for row in await store.read_inbox(claim.run_id, 0)] == [1, 2]
        assert [row.number for row in await store.read_inbox(claim.run_id, 1)] == [2]
        assert [row.source for row in await store.read_inbox(other.run_id, 0)] == [message.source]

    async def test_runs_that_are_done_or_unknown_get_no_mail(self, store: StoreWithJournal, hands: Register) -> None:
        worker = await hands()
        claim = await worker.started()
        await worker.write(claim, then=Finish(Phase.SUCCEEDED))

        assert await store.send([a_message(claim.run_id), a_message(uuid4())]) == 0
        assert await store.read_inbox(claim.run_id, 0) == []

    @pytest.mark.parametrize(
        ("parked_as", "woken_by"),
        [
            (Phase.WAITING, set(MessageKind)),
            (Phase.SUSPENDED, {MessageKind.CANCEL, MessageKind.RESUME}),
            (Phase.COMPENSATING, set()),  # it waits for a retry, which nothing hurries
            (Phase.PENDING, set()),  # delayed; a cancel ends it
            (Phase.BLOCKED, set()),
        ],
    )
    @pytest.mark.parametrize("kind", list(MessageKind))
    async def test_mail_wakes_who_waits_for_it(
        self, store: StoreWithJournal, hands: Register, parked_as: Phase, woken_by: set[MessageKind], kind: MessageKind
    ) -> None:
        worker = await hands()
        later = await store.now() + timedelta(hours=1)
        if parked_as is Phase.PENDING:
            run_id = a_new_run(start_at=later).id
            await store.start_runs([a_new_run(id=run_id, start_at=later)])
        else:
            claim = await worker.started()
            run_id = claim.run_id
            await worker.write(
                claim, then=Block("", "", "build-1") if parked_as is Phase.BLOCKED else Park(0, later, parked_as)
            )

        assert await store.send([a_message(run_id, kind=kind)]) == 1

        assert await worker.claim_ids() == ([run_id] if kind in woken_by else [])
        run = await store.read_run(run_id)
        assert run is not None
        if parked_as is Phase.PENDING and kind is MessageKind.CANCEL:
            assert run.phase is Phase.CANCELLED
        elif kind not in woken_by and parked_as is not Phase.BLOCKED:
            assert run.wake_at == later

    async def test_a_cancelled_run_that_nobody_has_taken_ends_at_once(
        self, store: StoreWithJournal, hands: Register
    ) -> None:
        """No worker may ever have its workflow; one that has been taken is its worker's to end."""
        worker = await hands()
        taken = (await worker.started()).run_id
        waiting = a_new_run(workflow="nobody-has-it", is_resource=True)
        await store.start_runs([waiting])
        said = json.dumps({"reason": "Deleted", "message": "its object is gone"})

        await store.send([a_message(each, kind=MessageKind.CANCEL, payload=said) for each in (taken, waiting.id)])

        run, other = await store.read_run(waiting.id), await store.read_run(taken)
        assert run is not None
        assert other is not None
        assert (run.phase, run.reason, run.message) == (Phase.CANCELLED, "Deleted", "its object is gone")
        assert run.finished_at is not None
        assert other.phase is Phase.RUNNING
        assert [each.run.id for each in await store.take_unmirrored(hold_seconds=60, limit=10)] == [waiting.id]

    # --- workers ------------------------------------------------------------------------------------------------------

    async def test_workers_are_listed(self, store: StoreWithJournal, hands: Register) -> None:
        worker = await hands(name="w", pod_uid="p1", namespace="n", workflows={"b": Form.WHOLE, "a": Form.WHOLE})
        other = await hands(pod_uid="p2")
        await other.started()
        await store.drain_worker(other.id)

        first, second = await store.list_workers()

        assert (first.id, first.name, first.pod_uid, first.namespace) == (worker.id, "w", "p1", "n")
        assert (first.workflows, first.build_id, first.python, first.runs) == (("a", "b"), "build-1", "3.13", 0)
        assert (first.is_expired, first.is_draining) == (False, False)
        assert (second.id, second.is_draining, second.runs) == (other.id, True, 1)
        assert await store.workers_of_pod("p2") == [other.id]
        assert await store.workers_of_pod("") == []

    async def test_who_gives_no_sign_of_life_is_expired(
        self, store: StoreWithJournal, hands: Register, rewind: Rewind
    ) -> None:
        worker, alive = await hands(ttl_seconds=5), await hands(ttl_seconds=50)
        await rewind(10)

        seen = await store.renew_lease(alive.id, ttl_seconds=50)
        assert seen.is_ours
        assert seen.expired == (worker.id,)
        assert seen.burial_check_seconds >= 10
        assert await store.expired_workers() == [worker.id]
        renewed = await store.renew_lease(worker.id, ttl_seconds=5)
        assert renewed.is_ours
        assert renewed.expired == ()
        assert renewed.burial_check_seconds < 10
        assert await store.expired_workers() == []
        assert not any(row.is_expired for row in await store.list_workers())
        assert await store.bury_worker(worker.id) == await store.bury_worker(alive.id) == []
        assert (await store.renew_lease(worker.id, ttl_seconds=5)).is_ours

    async def test_a_buried_worker_can_write_no_more(self, store: StoreWithJournal, hands: Register) -> None:
        """I2: a fenced worker's write changes nothing."""
        zombie, heir = await hands(), await hands()
        claim = await zombie.started()
        await zombie.write(claim, an_entry(1))

        freed = await store.bury_worker(zombie.id, even_if_alive=True)
        [inherited] = await heir.claim()

        assert freed == [claim.run_id]
        assert (inherited.number, inherited.lost_count, inherited.lost_noted) == (2, 1, 0)
        with pytest.raises(WorkerFencedError):
            await zombie.write(claim, an_entry(2))
        with pytest.raises(WorkerFencedError):
            await zombie.write(claim, then=Finish(Phase.FAILED))
        with pytest.raises(WorkerFencedError):
            await zombie.claim()
        with pytest.raises(WorkerFencedError):
            await store.claim_blocked(zombie.id, limit=1)
        assert not (await store.renew_lease(zombie.id, ttl_seconds=5)).is_ours
        assert await store.bury_worker(zombie.id, even_if_alive=True) == []
        assert await store.read_history(claim.run_id) == [an_entry(1)]

    async def test_a_run_that_ends_its_workers_is_blocked(self, store: StoreWithJournal, hands: Register) -> None:
        """Until a worker with another build comes; losses_max is 5."""
        claim = await (await hands()).started()
        for lost in range(1, 6):
            [holder] = [row.id for row in await store.list_workers()]
            assert await store.bury_worker(holder, even_if_alive=True) == [claim.run_id]
            worker = await hands(name="w 100%")
            claims = await worker.claim()
            assert [each.lost_count for each in claims] == ([lost] if lost < 5 else [])

        run = await store.read_run(claim.run_id)
        same, other = await hands(), await hands(build_id="build-2")

        assert run is not None
        assert (run.phase, run.reason, run.wake_at, run.worker) == (Phase.BLOCKED, "WorkerLost", None, None)
        assert run.message.startswith("5 workers in a row")
        assert "w 100%" in run.message
        assert await store.claim_blocked(same.id, limit=9) == []
        [taken] = await store.claim_blocked(other.id, limit=9)
        assert (taken.run_id, taken.phase, taken.lost_count) == (claim.run_id, Phase.RUNNING, 5)

    @pytest.mark.parametrize("then", [None, Keep(Phase.RUNNING), Park(0, SOME_TIME)])
    async def test_an_entry_ends_a_row_of_losses(self, store: StoreWithJournal, hands: Register, then: Any) -> None:
        first, second = await hands(), await hands()
        claim = await first.started()
        await store.bury_worker(first.id, even_if_alive=True)
        [claim] = await second.claim()

        await second.write(claim, then=Keep(Phase.RUNNING), losses_noted=True)
        await second.write(claim, an_entry(1), then=then)
        await store.bury_worker(second.id, even_if_alive=True)
        [again] = await (await hands()).claim()

        expected = 0 if isinstance(then, Park) else 1
        assert (again.lost_count, again.lost_noted) == (expected, 0)

    @pytest.mark.parametrize("then", [None, Keep(Phase.RUNNING), Park(0, SOME_TIME)])
    async def test_losses_that_were_noted_stay_noted(self, store: StoreWithJournal, hands: Register, then: Any) -> None:
        first, second = await hands(), await hands()
        claim = await first.started()
        await store.bury_worker(first.id, even_if_alive=True)
        [claim] = await second.claim()

        await second.write(claim, then=then, losses_noted=True, attempts=(an_attempt(1, 1),))
        await store.bury_worker(second.id, even_if_alive=True)
        [again] = await (await hands()).claim()

        assert (again.lost_count, again.lost_noted) == (1 if isinstance(then, Park) else 2, 1)

    async def test_a_blocked_run_is_for_other_builds(self, store: StoreWithJournal, hands: Register) -> None:
        """And never again for one that it was blocked with, whatever made it due meanwhile."""
        worker, other = await hands(), await hands(build_id="build-2")
        claim = await worker.started()
        await worker.write(claim, then=Block("NonDeterminism", "m", "build-1"))

        assert await store.claim_blocked(worker.id, limit=9) == []
        [taken] = await store.claim_blocked(other.id, limit=9)
        assert (taken.run_id, taken.number, taken.phase) == (claim.run_id, 2, Phase.RUNNING)
        await other.write(taken, then=Park(0, SOME_TIME))
        assert await worker.claim() == []
        assert await store.next_due_at(worker.id) is None
        assert await other.claim_ids() == [claim.run_id]

    # --- resources ----------------------------------------------------------------------------------------------------

    async def test_wishes_are_kept(self, store: StoreWithJournal) -> None:
        run, plain = a_new_run(is_resource=True), a_new_run()
        await store.start_runs([run, plain])
        wishes = Wishes(suspend=True, cancel=True, deletion_policy=DeletionPolicy.ORPHAN, ttl_seconds=3)

        await store.set_wishes({run.id: wishes, uuid4(): wishes})

        [row] = await store.resources(None)
        assert (row.run_id, row.namespace, row.name, row.phase) == (run.id, "default", run.name, Phase.PENDING)
        assert row.wishes == wishes
        assert await store.read_resources([run.id, plain.id, uuid4()]) == {run.id: row}
        assert await store.resources(["other"]) == []
        assert await store.resources(["default"]) == [row]

    async def test_a_status_is_owed_until_it_was_written(self, store: StoreWithJournal, hands: Register) -> None:
        worker = await hands()
        claim = await worker.started(is_resource=True)
        await worker.started()  # no resource, owes nothing

        [owed] = await store.take_unmirrored(hold_seconds=0, limit=9)
        await store.mark_mirrored({claim.run_id: owed.version})
        nothing = await store.take_unmirrored(hold_seconds=0, limit=9)
        await worker.write(claim, an_entry(1))
        unseen = await store.take_unmirrored(hold_seconds=0, limit=9)
        await worker.write(claim, then=Keep(Phase.COMPENSATING), attempts=(an_attempt(7, 1),))
        [changed] = await store.take_unmirrored(hold_seconds=0, limit=9)
        await worker.write(claim, then=Keep(Phase.COMPENSATING, message="m"))
        await store.mark_mirrored({claim.run_id: changed.version})
        [still] = await store.take_unmirrored(hold_seconds=0, limit=9)

        assert owed.run.phase is Phase.RUNNING
        assert nothing == unseen == []
        assert (changed.run.phase, changed.attempts) == (Phase.COMPENSATING, 1)
        assert changed.version > owed.version
        assert (still.run.message, still.version) == ("m", changed.version + 1)

    async def test_the_first_status_waits_and_final_ones_come_first(
        self, store: StoreWithJournal, hands: Register, rewind: Rewind
    ) -> None:
        worker = await hands()
        old = await worker.started(is_resource=True)
        await rewind(60)
        new, short = await worker.started(is_resource=True), await worker.started(is_resource=True)
        await worker.write(short, then=Finish(Phase.SUCCEEDED))

        async def owed(limit: int) -> list[Any]:
            return [each.run.id for each in await store.take_unmirrored(hold_seconds=30, limit=limit)]

        assert await owed(9) == [short.run_id, old.run_id]
        assert await owed(1) == [short.run_id]
        await rewind(60)
        assert await owed(9) == [short.run_id, old.run_id, new.run_id]

    async def test_a_final_status_is_owed_until_it_was_written_itself(
        self, store: StoreWithJournal, hands: Register
    ) -> None:
        worker = await hands()
        claim = await worker.started(is_resource=True)
        [before] = await store.take_unmirrored(hold_seconds=0, limit=9)
        await worker.write(claim, then=Finish(Phase.SUCCEEDED))

        await store.mark_mirrored({claim.run_id: before.version})
        [final] = await store.take_unmirrored(hold_seconds=3600, limit=9)
        await store.mark_mirrored({claim.run_id: final.version})

        assert final.run.phase is Phase.SUCCEEDED
        assert await store.take_unmirrored(hold_seconds=0, limit=9) == []

    async def test_a_resource_is_looked_after_until_nothing_is_owed(
        self, store: StoreWithJournal, hands: Register
    ) -> None:
        worker = await hands()
        claim = await worker.started(is_resource=True)
        assert len(await store.resources(None)) == 1

        await worker.write(claim, then=Finish(Phase.SUCCEEDED))
        [row] = await store.resources(None)
        assert row.phase is Phase.SUCCEEDED
        [owed] = await store.take_unmirrored(hold_seconds=0, limit=9)
        await store.mark_mirrored({claim.run_id: owed.version})

        assert await store.resources(None) == []
        assert list(await store.read_resources([claim.run_id])) == [claim.run_id]

    async def test_nothing_is_owed_to_an_object_that_is_gone(self, store: StoreWithJournal, hands: Register) -> None:
        worker = await hands()
        claim = await worker.started(is_resource=True, wishes=Wishes(ttl_seconds=0))

        await store.resources_gone([claim.run_id, uuid4()])
        await worker.write(claim, then=Finish(Phase.CANCELLED))

        assert await store.take_unmirrored(hold_seconds=0, limit=9) == []
        assert await store.resources(None) == await store.expired_resources(limit=9) == []
        run = await store.read_run(claim.run_id)
        assert run is not None
        assert run.phase is Phase.CANCELLED

    async def test_an_object_expires_after_its_ttl(
        self, store: StoreWithJournal, hands: Register, rewind: Rewind
    ) -> None:
        worker = await hands()
        claims = [await worker.started(is_resource=True, wishes=Wishes(ttl_seconds=ttl)) for ttl in (10, 100, None)]
        for claim in claims:
            await worker.write(claim, then=Finish(Phase.SUCCEEDED))
        await rewind(50)

        assert await store.expired_resources(limit=9) == []  # the status comes first
        owed = await store.take_unmirrored(hold_seconds=0, limit=9)
        await store.mark_mirrored({each.run.id: each.version for each in owed})
        assert [row.run_id for row in await store.expired_resources(limit=9)] == [claims[0].run_id]
        await store.set_wishes({claims[0].run_id: Wishes(ttl_seconds=1000), claims[2].run_id: Wishes(ttl_seconds=0)})
        assert [row.run_id for row in await store.expired_resources(limit=9)] == [claims[2].run_id]
        assert {row.run_id for row in await store.resources(None)} == {claim.run_id for claim in claims}
        await store.resources_gone([claims[2].run_id])
        assert await store.expired_resources(limit=9) == []

    # --- emitted events ---------------------------------------------------------------------------------------------

    async def test_what_a_run_emits_is_delivered_in_order_and_once(
        self, store: StoreWithJournal, hands: Register, rewind: Rewind
    ) -> None:
        """I8: also if it is carried out twice, and if a late copy of the flush comes."""
        worker = await hands()
        claim = await worker.started(namespace="shop")
        await emits(store, worker, claim, 1, 2)
        await store.emit([claim.run_id])
        await emits(store, worker, claim, 3, told=(0, 1))

        [emitter] = await store.claim_emitters(room=9, failing_max=9, lease_seconds=30)
        assert await store.claim_emitters(room=9, failing_max=9, lease_seconds=30) == []
        events = (await store.read_emitted([claim.run_id], limit=9))[claim.run_id]
        assert [each.event.id for each in events] == ["1", "2", "told 0", "3", "told 1"]
        assert (emitter.attempts, emitter.failing_seconds) == (0, 0)
        delivered = Settled(claim.run_id, emitter.claim, emitter.version, events[1].position, has_more=True)
        assert await store.settle_emitters([delivered]) == (2, 0)
        assert await store.settle_emitters([delivered]) == (0, 0)

        [emitter] = await store.claim_emitters(room=9, failing_max=9, lease_seconds=30)
        await emits(store, worker, claim, 4)  # while it is claimed
        await store.settle_emitters([Settled(claim.run_id, emitter.claim, emitter.version, events[-1].position)])
        [emitter] = await store.claim_emitters(room=9, failing_max=9, lease_seconds=30)
        [last] = (await store.read_emitted([claim.run_id], limit=9))[claim.run_id]
        assert last.event.id == "4"
        await store.settle_emitters([Settled(claim.run_id, emitter.claim, emitter.version, last.position)])
        await rewind(99)
        assert await store.claim_emitters(room=9, failing_max=9, lease_seconds=30) == []
        assert (await store.backlog()).emitted == 0

    async def test_a_claim_of_a_dead_relay_is_taken_over_and_says_nothing_any_more(
        self, store: StoreWithJournal, hands: Register, rewind: Rewind
    ) -> None:
        worker = await hands()
        claim = await worker.started()
        await emits(store, worker, claim, 1)
        [dead] = await store.claim_emitters(room=9, failing_max=9, lease_seconds=30)
        due_at = (await store.poll(worker.id, {claim.run_id: claim.number})).emitted_due_at
        await rewind(31)

        [heir] = await store.claim_emitters(room=9, failing_max=9, lease_seconds=30)
        [event] = (await store.read_emitted([claim.run_id], limit=9))[claim.run_id]

        assert due_at is not None
        assert due_at > await store.now() - timedelta(seconds=2)
        assert heir.claim == dead.claim + 1
        assert await store.settle_emitters([Settled(claim.run_id, dead.claim, 1, event.position)]) == (0, 0)
        assert await store.settle_emitters([Settled(claim.run_id, heir.claim, 1, event.position)]) == (1, 0)
        assert (await store.poll(worker.id, {claim.run_id: claim.number})).emitted_due_at is None

    async def test_what_fails_waits_and_leaves_room(
        self, store: StoreWithJournal, hands: Register, rewind: Rewind
    ) -> None:
        worker = await hands()
        claims = [await worker.started() for _ in range(3)]
        for claim in claims:
            await emits(store, worker, claim, 1)
        failed = await store.claim_emitters(room=2, failing_max=0, lease_seconds=30)
        assert len(failed) == 2
        again = [
            Settled(each.run_id, each.claim, each.version, failure="500", attempts=1, delay_seconds=5)
            for each in failed
        ]
        await store.settle_emitters(again)
        assert len(await store.claim_emitters(room=9, failing_max=9, lease_seconds=1)) == 1
        await rewind(6)

        [one] = await store.claim_emitters(room=1, failing_max=1, lease_seconds=1)
        assert one.attempts == 1
        assert 6 <= one.failing_seconds < 30
        both = await store.claim_emitters(room=2, failing_max=1, lease_seconds=1)
        assert sorted(each.attempts for each in both) == [0, 1]

    async def test_a_dead_letter_holds_up_nobody_and_can_be_sent_again(
        self, store: StoreWithJournal, hands: Register, rewind: Rewind
    ) -> None:
        worker = await hands()
        claim, other = await worker.started(namespace="shop", name="order"), await worker.started(namespace="bank")
        await emits(store, worker, claim, 1, 2)
        await emits(store, worker, other, 1)
        for each in await store.claim_emitters(room=9, failing_max=9, lease_seconds=30):
            [first, *more] = (await store.read_emitted([each.run_id], limit=9))[each.run_id]
            dead = Settled(
                each.run_id, each.claim, each.version, None, first.position, "410 Gone", 1, has_more=bool(more)
            )
            assert await store.settle_emitters([dead]) == (0, 1)

        [emitter] = await store.claim_emitters(room=9, failing_max=9, lease_seconds=30)
        assert (emitter.run_id, emitter.attempts) == (claim.run_id, 0)
        assert len(await store.list_dead_letters(None, limit=9)) == (await store.backlog()).dead_letters == 2
        [letter] = await store.list_dead_letters("shop", limit=9)
        assert await store.list_dead_letters("shop", limit=9, before=letter.id) == []
        assert (letter.run_id, letter.run_name, letter.event.id) == (claim.run_id, "order", "1")
        assert (letter.attempts, letter.failure) == (1, "410 Gone")

        assert not await store.resend_dead_letter(letter.id, namespace="elsewhere")
        assert await store.resend_dead_letter(letter.id)
        assert not await store.resend_dead_letter(letter.id)
        events = (await store.read_emitted([claim.run_id], limit=9))[claim.run_id]
        assert [each.event.id for each in events] == ["2", "1"]
        [letter] = await store.list_dead_letters(None, limit=9)
        assert await store.purge_dead_letters(older_than_seconds=600, limit=9) == 0
        assert not await store.delete_dead_letter(letter.id, namespace="elsewhere")
        assert await store.delete_dead_letter(letter.id, namespace=letter.namespace)
        assert not await store.delete_dead_letter(letter.id)
        await store.settle_emitters([Settled(claim.run_id, emitter.claim, 1, None, events[0].position, "x", 1)])
        await rewind(601)
        assert await store.purge_dead_letters(older_than_seconds=600, limit=9) == 1

    # --- health -------------------------------------------------------------------------------------------------------

    async def test_runs_that_nobody_can_take_say_so(self, store: StoreWithJournal, hands: Register) -> None:
        worker = await hands(python="3.12", workflows={"process_order": Form.WHOLE})
        begun = await worker.started(workflow="process_order")
        await worker.write(begun, then=Release())
        await store.bury_worker(worker.id, even_if_alive=True)
        typo, nowhere = a_new_run(workflow="proces_order", is_resource=True), a_new_run(workflow="xyz", priority=5)
        await store.start_runs([typo, nowhere, a_new_run(start_at=await store.now() + timedelta(hours=1))])
        await hands(python="3.13", workflows={"process_order": Form.WHOLE})

        assert await store.mark_stranded() == 3
        assert await store.mark_stranded() == 0

        runs = {run.id: run for run in await store.list_runs(RunFilter(), limit=9)}
        stranded = [runs[run_id] for run_id in (begun.run_id, typo.id, nowhere.id)]
        assert {run.reason for run in stranded} == {"WorkflowNotRegistered"}
        assert [run.phase for run in stranded] == [Phase.RUNNING, Phase.PENDING, Phase.PENDING]
        assert "Python 3.12" in runs[begun.run_id].message
        assert "'process_order'" in runs[typo.id].message
        assert "'xyz'" in runs[nowhere.id].message
        assert [each.run.id for each in await store.take_unmirrored(hold_seconds=0, limit=9)] == [typo.id]

        await hands(workflows={"proces_order": Form.WHOLE, "xyz": Form.WHOLE})
        assert await store.mark_stranded() == 2
        assert {run.reason for run in await store.list_runs(RunFilter(workflow="xyz"), limit=9)} == {""}

    async def test_the_backlog_is_counted(self, store: StoreWithJournal, hands: Register, rewind: Rewind) -> None:
        worker = await hands()
        await store.start_runs([a_new_run()])
        await rewind(30)
        held, blocked, waiting = await worker.started(), await worker.started(), await worker.started()
        await worker.write(blocked, then=Block("r", "m", "build-1"))
        await worker.write(waiting, then=Park(0, None))
        await store.start_runs([a_new_run(workflow="other")])
        await rewind(30)

        backlog = await store.backlog()

        assert held is not None
        assert (backlog.due, backlog.held, backlog.open, backlog.blocked) == (1, 2, 5, 1)
        assert 30 <= backlog.oldest_due_seconds < 60
