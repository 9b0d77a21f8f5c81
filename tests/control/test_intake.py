"""What the intake holds, and what it does when it can't hold it."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from romancy.base.clock import SystemClock
from romancy.base.settings import ControlSettings
from romancy.control.intake import Intake
from romancy.control.kube import Kube
from romancy.control.runs import Rules, Seen
from romancy.errors import StoreUnavailableError
from romancy.model.run import Wishes
from romancy.store.postgres import PostgresStore
from tests.controlplane.plane import ControlPlane

pytestmark = pytest.mark.kube

RULES = Rules(engine="romancy", ttl_seconds=60, input_bytes_max=1000)


@pytest.fixture
async def kube(cluster: ControlPlane) -> AsyncIterator[Kube]:
    async with Kube.open(ControlSettings(kubeconfig=str(cluster.kubeconfig))) as kube:
        yield kube


def seen(uid: UUID | None = None, **spec: object) -> Seen:
    return Seen(uid=uid or uuid4(), namespace="shop", name="order", spec={"workflow": "w", **spec})


async def test_the_newest_state_of_an_object_wins(kube: Kube, store: PostgresStore) -> None:
    intake = Intake(
        kube, RULES, ControlSettings(), clock=SystemClock(), settled=lambda _seen, _row: None, started=lambda: None
    )
    uid = uuid4()

    intake.file(seen(uid, priority=1))
    intake.file(seen(uid, priority=2))
    await intake.run_once(store)

    run = await store.read_run(uid)
    assert run is not None
    assert run.priority == 2


async def test_what_does_not_fit_is_left_to_a_comparison(kube: Kube, store: PostgresStore) -> None:
    intake = Intake(
        kube,
        RULES,
        ControlSettings(intake_max=100),
        clock=SystemClock(),
        settled=lambda _seen, _row: None,
        started=lambda: None,
    )
    objects = [seen() for _ in range(101)]

    for each in objects:
        intake.file(each)
    intake.file(seen(objects[0].uid, priority=7))  # one that is waiting already needs no room
    await intake.run_once(store)

    assert intake.must_compare.is_set()
    assert len(await store.resources(None)) == 100
    first = await store.read_run(objects[0].uid)
    assert first is not None
    assert first.priority == 7


async def test_what_fails_is_filed_again_unless_something_newer_came(
    kube: Kube, store: PostgresStore, cluster: ControlPlane
) -> None:
    settled: list[Seen] = []
    intake = Intake(
        kube,
        RULES,
        ControlSettings(),
        clock=SystemClock(),
        settled=lambda seen, _row: settled.append(seen),
        started=lambda: None,
    )
    uid = uuid4()
    intake.file(seen(uid, priority=1))
    async with PostgresStore(store.settings) as away:
        pass  # closed: it answers nobody

    with pytest.raises(StoreUnavailableError):
        await intake.run_once(away)
    assert settled == []
    intake.file(seen(uid, priority=2))
    await intake.run_once(store)

    assert [each.spec for each in settled] == [{"workflow": "w", "priority": 2}]


class _ForgetsOneWish(PostgresStore):
    """Goes away between the order and the wish."""

    is_away = False

    async def set_wishes(self, wishes: Mapping[UUID, Wishes]) -> None:
        if self.is_away:
            raise StoreUnavailableError("away")
        await super().set_wishes(wishes)


async def test_an_order_left_half_done_is_made_good_by_the_next_state(kube: Kube, store: PostgresStore) -> None:
    """The suspend was sent and its wish not kept; then the owner resumed it, which the watch told before the first was tried
    again. Row and spec agreed, and the run would have stayed suspended for ever."""
    intake = Intake(
        kube, RULES, ControlSettings(), clock=SystemClock(), settled=lambda _seen, _row: None, started=lambda: None
    )
    uid = uuid4()
    async with _ForgetsOneWish(store.settings) as shaky:
        intake.file(seen(uid))
        await intake.run_once(shaky)
        shaky.is_away = True
        intake.file(replace(seen(uid, suspend=True), generation=2, observed_generation=1))
        with pytest.raises(StoreUnavailableError):
            await intake.run_once(shaky)
        shaky.is_away = False
        intake.file(replace(seen(uid, suspend=False), generation=3, observed_generation=1))
        await intake.run_once(shaky)

        inbox = await shaky.read_inbox(uid, 0)
        assert [row.source for row in inbox] == ["resource:suspend:2", "resource:resume:3"]

        intake.file(replace(seen(uid, ttlSecondsAfterFinished=5), generation=4, observed_generation=1))
        await intake.run_once(shaky)
        assert len(await shaky.read_inbox(uid, 0)) == 2  # nothing is half done any more
