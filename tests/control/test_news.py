"""What is told as Events: decided purely; then for real, through the API server, and when that refuses."""

import asyncio
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from romancy.base.clock import SystemClock
from romancy.base.metrics import REGISTRY
from romancy.base.settings import ControlSettings, Settings
from romancy.control import news
from romancy.control.kube import Kube, Target
from romancy.control.news import Action, News, Recorder
from romancy.control.resources import ENGINES, RUNS
from romancy.model.run import Form, Phase, Reason, Run
from romancy.store.interface import Block, ResourceRow, RunWrite
from romancy.store.postgres import PostgresStore
from tests.control.conftest import Controlled, claimed, eventually, finish, status_where
from tests.control.objects import a_run, change, create, engine_where, read
from tests.control.rights import PODS, RULES, WATCH_LEASE, allow, make_account
from tests.control.test_conditions import a_run as a_row
from tests.controlplane.plane import ControlPlane, kubectl
from tests.store.hands import Hands

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def told_of(run: Run, told: str | None = None) -> tuple[str, str, bool] | None:
    found = news.of_run(run, told, 1)
    return found and (found.reason, found.action.value, found.is_warning)


def test_what_people_hear_of_a_run() -> None:
    blocked = a_row(Phase.BLOCKED, reason=Reason.NON_DETERMINISM)
    failed = a_row(Phase.FAILED, reason=Reason.TIMED_OUT)

    assert told_of(a_row(Phase.RUNNING)) is None
    assert told_of(a_row(Phase.WAITING)) is None
    assert told_of(a_row(Phase.SUCCEEDED)) is None
    assert told_of(a_row(Phase.CANCELLED)) is None
    assert told_of(blocked) == ("NonDeterminism", "Block", True)
    assert told_of(blocked, "NonDeterminism") is None
    assert told_of(blocked, "WorkflowNotRegistered") == ("NonDeterminism", "Block", True)
    assert told_of(a_row(Phase.RUNNING), "NonDeterminism") == ("Running", "Resume", False)
    assert told_of(a_row(Phase.SUCCEEDED), "NonDeterminism") == ("Succeeded", "Finish", False)
    assert told_of(failed) == ("TimedOut", "Finish", True)
    assert told_of(replace(failed, reason=Reason.COMPENSATION_FAILED)) == ("CompensationFailed", "Finish", True)
    assert told_of(a_row(Phase.PENDING, reason=Reason.WORKFLOW_NOT_REGISTERED)) == (
        "WorkflowNotRegistered",
        "Claim",
        True,
    )


def test_a_lost_worker_is_told_of_open_runs_alone() -> None:
    def row(phase: Phase) -> ResourceRow:
        return ResourceRow(uuid4(), "shop", phase.value.lower(), phase, a_row().wishes)

    found = news.of_lost_worker([row(phase) for phase in (Phase.RUNNING, Phase.BLOCKED, Phase.FAILED)], "pod-1", 7)

    assert [(each.target.name, each.reason, each.action) for each in found] == [("running", "WorkerLost", Action.MOVE)]
    assert "pod-1" in found[0].note


def test_what_people_hear_of_the_engine() -> None:
    def status(leader: str, ready: str = "True", **more: Any) -> dict[str, Any]:
        condition = {"type": "Ready", "status": ready, "reason": "Ready", "message": "m", "lastTransitionTime": "t"}
        return {"leader": leader, "version": "1", "schemaVersion": 1, "conditions": [condition], **more}

    def told(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, bool]]:
        target = Target(ENGINES, "here", "romancy", UUID(int=1))
        return [(each.reason, each.is_warning) for each in news.of_engine(target, before, now, now["leader"])]

    assert told({}, status("a")) == [("Leading", False)]
    assert told(status("a"), status("a")) == []
    assert told(status("a"), status("b")) == [("Leading", False)]
    assert told(status("a"), status("a", schemaVersion=2)) == [("Migrated", False)]
    assert told(status("a"), status("a", ready="False")) == [("Ready", True)]


def test_an_event_keeps_the_limits_of_the_api() -> None:
    target = Target(RUNS, "shop", "o" * 253, UUID(int=1))

    body = News(target, "R" * 200, Action.FINISH, "ü" * 2000, "1").body("p" * 200, NOW)

    assert len(body["note"].encode()) <= 1024
    assert (len(body["reason"]), len(body["reportingInstance"])) == (128, 128)
    assert len(body["metadata"]["name"]) <= 253
    assert body["eventTime"] == "2026-01-01T12:00:00.000000Z"


def events_of(plane: ControlPlane, namespace: str, name: str) -> list[dict[str, Any]]:
    items = plane.call("GET", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")["items"]
    return [each for each in items if each["regarding"]["name"] == name]


def counted(outcome: str) -> float:
    return REGISTRY.get_sample_value("romancy_kubernetes_events_total", {"outcome": outcome}) or 0


def some_news(namespace: str, number: int = 0, note: str = "it failed") -> News:
    return News(Target(RUNS, namespace, f"order-{number}", uuid4()), "TimedOut", Action.FINISH, note, "1")


@pytest.mark.kube
class TestForReal:
    async def test_a_run_s_troubles_are_told_and_kubectl_shows_them(
        self, cluster: ControlPlane, namespace: str, store: PostgresStore, hands: Hands, control: Controlled
    ) -> None:
        create(cluster, namespace, a_run("order"))
        claim = await claimed(hands)
        await hands.journal.submit(
            RunWrite(claim.run_id, claim.number, then=Block("NonDeterminism", "at position 3", "build-1"))
        )
        await status_where(cluster, namespace, "order", lambda status: status.get("phase") == "Blocked", "blocked")
        await eventually(lambda: events_of(cluster, namespace, "order"), "it is told")
        fit = await eventually(lambda: engine_where(cluster, namespace, "CodeFits", "False"), "the engine says it")
        healer = await Hands.of(store, name="healer", workflows={"w": Form.WHOLE}, build_id="build-2")
        [again] = await eventually(lambda: store.claim_blocked(healer.id, limit=1), "another build takes it")
        await status_where(cluster, namespace, "order", lambda status: status.get("phase") == "Running", "it goes on")
        await finish(healer, again, Phase.FAILED, reason="TimedOut", message="it took longer than 5 s")
        found = await eventually(lambda: self._three(cluster, namespace), "its end is told")
        await eventually(lambda: engine_where(cluster, namespace, "CodeFits", "True"), "the engine says it")

        [*told] = [(each["reason"], each["action"], each["type"]) for each in found]
        assert sorted(told) == [
            ("NonDeterminism", "Block", "Warning"),
            ("Running", "Resume", "Normal"),
            ("TimedOut", "Finish", "Warning"),
        ]
        message = next(each["message"] for each in fit["status"]["conditions"] if each["type"] == "CodeFits")
        assert f"{namespace}/order (NonDeterminism)" in message
        shown = self._kubectl(cluster, "describe", "wfr", "order", "-n", namespace)
        for word in ("Events:", "NonDeterminism", "at position 3", "TimedOut", "it took longer than 5 s"):
            assert word in shown
        assert "TimedOut" in self._kubectl(cluster, "events", "--for", "wfr/order", "-n", namespace)
        assert any(each["reason"] == "Leading" for each in events_of(cluster, namespace, "romancy"))
        await asyncio.gather(healer.journal.close(), return_exceptions=True)

    async def test_the_next_leader_tells_nothing_twice(
        self, cluster: ControlPlane, namespace: str, hands: Hands, start_control: Any
    ) -> None:
        """Neither the trouble that the status shows already, nor the end whose write was not marked."""
        first = await start_control()
        create(cluster, namespace, a_run("order"))
        claim = await claimed(hands)
        await hands.journal.submit(RunWrite(claim.run_id, claim.number, then=Block("StepTooLong", "no end", "build-1")))
        await eventually(lambda: events_of(cluster, namespace, "order"), "it is told")
        await first.end()
        await start_control(status_hold_seconds=0.1)
        change(cluster, namespace, "order", ttlSecondsAfterFinished=1000)
        seen = await status_where(
            cluster, namespace, "order", lambda status: status["observedGeneration"] == 2, "the second has seen it"
        )
        create(cluster, namespace, a_run("later"))
        await finish(hands, await claimed(hands), Phase.FAILED, reason="WorkflowFailed", message="no")
        await eventually(lambda: events_of(cluster, namespace, "later"), "what comes after it is told")

        assert seen["status"]["phase"] == "Blocked"
        [event] = events_of(cluster, namespace, "order")
        assert event.get("series") is None

    async def test_a_success_and_activities_are_not_told(
        self, cluster: ControlPlane, namespace: str, hands: Hands, control: Controlled
    ) -> None:
        create(cluster, namespace, a_run("order"))
        await finish(hands, await claimed(hands))
        await status_where(cluster, namespace, "order", lambda status: status.get("phase") == "Succeeded", "it ended")

        assert events_of(cluster, namespace, "order") == []

    async def test_runs_of_a_lost_worker_are_told(
        self, cluster: ControlPlane, namespace: str, store: PostgresStore, control: Controlled
    ) -> None:
        await eventually(lambda: engine_where(cluster, namespace, "StoreAvailable", "True"), "the timer ticks")
        dead = await Hands.of(store, name="dead", workflows={"w": Form.WHOLE}, ttl_seconds=1)
        create(cluster, namespace, a_run("order"))
        await claimed(dead)

        [told] = await eventually(lambda: events_of(cluster, namespace, "order"), "it is told")

        assert (told["reason"], told["action"], told["reportingInstance"]) == ("WorkerLost", "Move", "pod-1")
        assert told["regarding"]["uid"] == read(cluster, namespace, "order")["metadata"]["uid"]
        await asyncio.gather(dead.journal.close(), return_exceptions=True)

    async def test_no_right_to_events_stops_nothing_and_is_said_once(
        self,
        cluster: ControlPlane,
        namespace: str,
        settings: Settings,
        hands: Hands,
        tmp_path: Path,
    ) -> None:
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(make_account(cluster, namespace))
        allow(cluster, namespace, [*RULES, PODS, WATCH_LEASE])
        part = settings.control.model_copy(update={"kubeconfig": str(kubeconfig)})
        control = Controlled(settings.model_copy(update={"control": part}))
        before = counted("refused")

        with capture_logs() as lines:
            control.start()
            for number in range(5):
                create(cluster, namespace, a_run(f"order-{number}"))
            done: set[UUID] = set()
            while len(done) < 5:
                for claim in await eventually(hands.claim, "they are due"):
                    await finish(hands, claim, Phase.FAILED, reason="WorkflowFailed", message="no")
                    done.add(claim.run_id)
            for number in range(5):
                await status_where(
                    cluster, namespace, f"order-{number}", lambda status: status.get("phase") == "Failed", "it ended"
                )
            await eventually(lambda: counted("refused") >= before + 6, "all are given up: five runs and the leader")
            await control.end()

        asked = cluster.requests_of(f"system:serviceaccount:{namespace}:romancy", resource="events")
        assert [each.code for each in asked] == [403]
        assert [each["event"] for each in lines].count("kubernetes_events_refused") == 1

    async def test_the_same_news_again_counts_up(self, cluster: ControlPlane, namespace: str) -> None:
        async with Kube.open(ControlSettings(kubeconfig=str(cluster.kubeconfig))) as kube:
            recorder = Recorder(kube, "pod-1", clock=SystemClock())
            one = some_news(namespace)
            other = Recorder(kube, "pod-2", clock=SystemClock())  # told the same by its row: one Event
            for each in (one, replace(one, nonce="2"), replace(one, nonce="3")):
                await recorder._tell(each)
            await other._tell(one)

        [event] = events_of(cluster, namespace, one.target.name)
        assert event["series"]["count"] == 3
        assert event["reportingInstance"] == "pod-1"

    async def test_what_there_is_no_room_for_is_dropped_and_counted_and_nobody_waits(
        self, cluster: ControlPlane, namespace: str
    ) -> None:
        before = {outcome: counted(outcome) for outcome in ("dropped", "written")}
        async with Kube.open(ControlSettings(kubeconfig=str(cluster.kubeconfig))) as kube:
            recorder = Recorder(kube, "pod-1", clock=SystemClock(), per_second=20)
            began_at = asyncio.get_running_loop().time()
            recorder.put(*(some_news(namespace, number) for number in range(news.WAITING_MAX + 50)))
            took = asyncio.get_running_loop().time() - began_at
            writing = asyncio.create_task(recorder.run())
            await eventually(lambda: counted("written") >= before["written"] + 30, "the rate goes on")
            rated = asyncio.get_running_loop().time() - began_at
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

        assert counted("dropped") == before["dropped"] + 50
        assert took < 0.5
        assert rated > 0.4  # 20 at once, then 20 a second

    def _three(self, plane: ControlPlane, namespace: str) -> list[dict[str, Any]]:
        found = events_of(plane, namespace, "order")
        return found if len(found) >= 3 else []

    def _kubectl(self, plane: ControlPlane, *arguments: str) -> str:
        done = subprocess.run(
            [*kubectl(), "--kubeconfig", str(plane.kubeconfig), *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout
