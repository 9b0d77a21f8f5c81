"""What control asks of the store fails in each way: nothing of any object is lost, nothing is done twice (I6)."""

import asyncio
from functools import partial
from uuid import UUID

import pytest

from romancy.base.settings import Settings
from romancy.model.run import Phase
from romancy.store.postgres import PostgresStore
from tests.chaos.fleet import all_holds
from tests.control.conftest import Controlled, eventually, finish, status_where
from tests.control.objects import a_run, change, create, delete, read
from tests.controlplane.plane import ControlPlane
from tests.proxy import Mode, proxy_to
from tests.store.hands import Hands

pytestmark = pytest.mark.kube

STATEMENTS = [
    *("read_resources", "start_runs", "send", "set_wishes", "resources_gone", "take_unmirrored", "mark_mirrored"),
    *("resources", "expired_resources", "expired_workers", "stranded_queues"),
]
COUNT = 6


@pytest.mark.parametrize("mode", [Mode.NOT_APPLIED, Mode.UNHEARD, Mode.LATE], ids=lambda mode: mode.value)
async def test_each_statement_of_control_fails_once(
    cluster: ControlPlane, namespace: str, settings: Settings, store: PostgresStore, hands: Hands, mode: Mode
) -> None:
    kept, deleted = [f"kept-{number}" for number in range(COUNT)], [f"deleted-{number}" for number in range(COUNT)]
    async with proxy_to(settings.database) as (proxy, far):
        control = Controlled(settings.model_copy(update={"database": far}))
        faults = {statement: proxy.fail(mode, statement) for statement in STATEMENTS}
        control.start()
        uids: dict[str, UUID] = {}
        for name in (*kept, *deleted):
            uids[name] = UUID(create(cluster, namespace, a_run(name))["metadata"]["uid"])
            if name in (kept[1], deleted[1]):  # the rest meets what has failed
                await asyncio.wait_for(control.leads.wait(), 10)

        claims = {claim.run_id: claim for claim in await hands.claim()}

        async def are_claimed() -> bool:
            claims.update({claim.run_id: claim for claim in await hands.claim()})
            return len(claims) == 2 * COUNT

        await eventually(are_claimed, "all runs are due", seconds=20)
        for name in kept:
            change(cluster, namespace, name, ttlSecondsAfterFinished=600)
        for name in deleted:
            delete(cluster, namespace, name)
        for name in deleted:
            await eventually(partial(store.read_inbox, uids[name], 0), f"{name} is cancelled", seconds=20)
        for name in kept:
            await finish(hands, claims[uids[name]], output='"done"')
        for name in kept:
            is_so = lambda status: status["phase"] == "Succeeded" and status["observedGeneration"] == 2  # noqa: E731
            await status_where(cluster, namespace, name, is_so, "its end is shown", seconds=20)
        for statement, fault in faults.items():
            await eventually(fault.happened.is_set, f"{statement} fails", seconds=20)
            fault.release.set()
            if mode is Mode.LATE:
                await asyncio.wait_for(fault.landed.wait(), 10)

        async def nothing_is_owed() -> bool:
            return await store.take_unmirrored(hold_seconds=0, limit=1) == []

        await eventually(nothing_is_owed, "nothing is owed", seconds=20)
        await all_holds(settings.database)
        for name in deleted:
            assert [row.source for row in await store.read_inbox(uids[name], 0)] == ["resource:deleted"]
        for name in kept:
            # A comparison by a new leader can't know whether the change was to resume it, and says so once more.
            assert {row.source for row in await store.read_inbox(uids[name], 0)} <= {"resource:resume:2"}
            assert (await store.read_resources([uids[name]]))[uids[name]].wishes.ttl_seconds == 600
            assert read(cluster, namespace, name)["status"]["output"] == "done"
            run = await store.read_run(uids[name])
            assert run is not None
            assert run.phase is Phase.SUCCEEDED
        await control.end()
