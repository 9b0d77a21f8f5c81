"""What people should hear of, as events.k8s.io/v1 Events: `kubectl describe` shows them. What is news is decided purely here.

(An event, elsewhere in this house, is a CloudEvent; these are Kubernetes'.) They are a courtesy: they have a rate of their
own, wait for nobody and hold nobody up. What there is no room for is dropped and counted, and what the API server refuses is
said once and left; the statuses say it all the same.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final
from urllib.parse import quote
from uuid import UUID

from romancy.base import log, metrics
from romancy.base.clock import Clock
from romancy.control import conditions, jobs
from romancy.control.kube import Json, Kube, KubeError, KubeUnavailableError, Target
from romancy.control.resources import API_VERSION, ENGINES, RUNS
from romancy.model.message import message_of
from romancy.model.run import Phase, Reason, Run
from romancy.store.interface import ResourceRow

logger = log.get(__name__)

CONTROLLER: Final = "romancy.dev/engine"
WAITING_MAX: Final = 1000
"""Events that wait to be written; what comes on top of them is dropped."""
EVENTS_PER_SECOND: Final = 10.0
"""Of one leader, beside its status writes. A burst of a second's worth, so 1,000 failures are told within 100 s."""
TRIES_MAX: Final = 3
REFUSED_SECONDS: Final = 60.0
"""After a refusal no event is tried in that namespace for so long."""
KNOWN_MAX: Final = 2000
"""Events that are remembered, so that the same news again counts up and makes no second object."""
TOLD_MAX: Final = 10_000
"""Runs in trouble that are remembered."""
NOTE_BYTES_MAX: Final = 1024  # what the API takes; so are the next two
WORD_MAX: Final = 128
NAME_MAX: Final = 253
_KINDS: Final = {RUNS: "WorkflowRun", ENGINES: "WorkflowEngine"}


class Action(StrEnum):
    """What was done, or could not be: the API wants a word for it beside the reason."""

    BLOCK = "Block"
    RESUME = "Resume"
    CLAIM = "Claim"
    MOVE = "Move"
    FINISH = "Finish"
    ACCEPT = "Accept"
    LEAD = "Lead"
    UPGRADE = "Upgrade"
    OBSERVE = "Observe"


@dataclass(frozen=True, slots=True)
class News:
    """One thing to hear of an object. The same `nonce` is the same news: told by two leaders it is one Event."""

    target: Target
    reason: str  # the word of the condition
    action: Action
    note: str
    nonce: str
    is_warning: bool = True

    @property
    def series(self) -> str:
        """News of the same series are one Event that counts."""
        return _digest(str(self.target.uid), self.reason, self.action, self.note)

    @property
    def name(self) -> str:
        """Of the Event."""
        head = self.target.name[: NAME_MAX - 17].rstrip("-.")
        return f"{head}.{_digest(str(self.target.uid), self.reason, self.action, self.nonce)}"

    @property
    def path(self) -> str:
        """Of the collection that it belongs to: the API wants it in the namespace of the object."""
        return f"/apis/events.k8s.io/v1/namespaces/{quote(self.target.namespace)}/events"

    def body(self, reporter: str, now: datetime) -> Json:
        """The Event."""
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": self.name, "namespace": self.target.namespace},
            "eventTime": micro_time_of(now),
            "type": "Warning" if self.is_warning else "Normal",
            "reason": self.reason[:WORD_MAX],
            "action": self.action.value,
            "note": conditions.cut(self.note, NOTE_BYTES_MAX),
            "regarding": {
                "apiVersion": API_VERSION,
                "kind": _KINDS[self.target.resource],
                "namespace": self.target.namespace,
                "name": self.target.name,
                "uid": str(self.target.uid),
            },
            "reportingController": CONTROLLER,
            "reportingInstance": reporter[:WORD_MAX],
        }


def micro_time_of(moment: datetime) -> str:
    """A time as Events have it: UTC, to the microsecond."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


def of_run(run: Run, told: str | None, version: int) -> News | None:
    """What there is to hear of a run's new state. Pure.

    Args:
        run: as its status shows it now.
        told: the reason of the trouble that was told last and is not over; None: there is none.
        version: of the row's state, so that two leaders tell one thing.
    """
    target = Target(RUNS, run.namespace, run.name, run.id)
    word, note = run.reason or run.phase.value, message_of(run)
    match run.phase:
        case Phase.FAILED:
            return News(target, word, Action.FINISH, note, str(version))
        case Phase.SUCCEEDED | Phase.CANCELLED:
            # An end as it was wished is no news, unless somebody was told that it would not come.
            how = f"the run ended as {run.phase} after all: it was stalled before ({told})"
            return None if told is None else News(target, word, Action.FINISH, how, str(version), is_warning=False)
        case _ if conditions.is_stalled(run):
            action = Action.BLOCK if run.phase is Phase.BLOCKED else Action.CLAIM
            return None if told == word else News(target, word, action, note, str(version))
        case _ if told is not None:
            how = f"the run goes on: {note} (it was stalled before: {told})"
            return News(target, word, Action.RESUME, how, str(version), is_warning=False)
        case _:
            return None


def of_lost_worker(rows: Iterable[ResourceRow], worker: str, worker_id: int) -> list[News]:
    """What there is to hear of runs that a lost worker held. One that is Blocked by that has its own news."""
    note = f"worker {worker} was lost; another one takes the run over and goes on behind its last finished activity"
    return [
        News(Target(RUNS, row.namespace, row.name, row.run_id), Reason.WORKER_LOST, Action.MOVE, note, f"{worker_id}")
        for row in rows
        if not row.phase.is_done and row.phase is not Phase.BLOCKED
    ]


def of_refused(target: Target, reason: str, message: str, generation: int) -> News:
    """What there is to hear of an object that has no row, and so no run."""
    return News(target, reason, Action.ACCEPT, message, str(generation))


def of_engine(target: Target, before: Json, now: Json, leader: str) -> list[News]:
    """What there is to hear of the engine when its status `before` becomes `now`. Pure."""
    found: list[News] = []
    if before.get("leader") != leader:
        gone = f" (before: {before['leader']})" if before.get("leader") else ""
        found.append(
            News(
                target, "Leading", Action.LEAD, f"{leader} leads{gone}", _nonce(now, "Ready", leader), is_warning=False
            )
        )
    steps = [
        f"{what} {before[key]} -> {now[key]}"
        for key, what in (("version", "version"), ("schemaVersion", "schema"))
        if before.get(key) and before[key] != now.get(key)
    ]
    if steps:
        text = "; ".join(steps)
        found.append(News(target, "Migrated", Action.UPGRADE, text, text + leader, is_warning=False))
    old = {each["type"]: each for each in before.get("conditions") or []}
    for each in now.get("conditions") or []:
        was, kind = old.get(each["type"]), each["type"]
        if kind not in {"Ready", "CodeFits"} or was is None or was["status"] == each["status"]:
            continue
        note, is_good = f"{kind} is {each['status']}: {each['message']}", each["status"] == "True"
        found.append(
            News(target, each["reason"], Action.OBSERVE, note, _nonce(now, kind, leader), is_warning=not is_good)
        )
    return found


def _nonce(status: Json, kind: str, leader: str) -> str:
    times = [each["lastTransitionTime"] for each in status.get("conditions") or [] if each["type"] == kind]
    return f"{kind} {leader} {' '.join(times)}"


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(errors="replace"), digest_size=8).hexdigest()


class Recorder:
    """Writes Events one after the other, beside everything else. Belongs to control's loop."""

    def __init__(self, kube: Kube, reporter: str, *, clock: Clock, per_second: float = EVENTS_PER_SECOND) -> None:
        self._kube, self._reporter, self._clock = kube, reporter, clock
        self._bucket = jobs.TokenBucket(per_second)
        self._waiting: asyncio.Queue[News] = asyncio.Queue(WAITING_MAX)
        self._known: OrderedDict[str, tuple[str, int]] = OrderedDict()  # series -> name of the Event, how often
        self._refused_until: dict[str, float] = {}
        self._is_dropping = False
        # The trouble that a run was told of last, and that is not over.
        self._told: OrderedDict[UUID, str] = OrderedDict()

    def run_shown(self, run: Run, version: int, *, was_stalled: bool) -> None:
        """A run's status was written. Never waits, never fails.

        `was_stalled`: its object said so before, so that a new leader does not tell it again.
        """
        word = run.reason or run.phase.value
        told = self._told.get(run.id)
        if told is None and was_stalled:  # an earlier leader has told it
            told = word if conditions.is_stalled(run) else "told by an earlier leader"
        news = of_run(run, told, version)
        if conditions.is_stalled(run):
            self._told[run.id] = word
            if len(self._told) > TOLD_MAX:  # then the object says that it was told
                self._told.popitem(last=False)
        else:
            self._told.pop(run.id, None)
        if news is not None:
            self.put(news)

    def put(self, *news: News) -> None:
        """File news to be written, as far as there is room. Never waits, never fails."""
        now = asyncio.get_running_loop().time()
        for each in news:
            if self._refused_until.get(each.target.namespace, now) > now:
                metrics.KUBERNETES_EVENTS.labels("refused").inc()
                continue
            try:
                self._waiting.put_nowait(each)
            except asyncio.QueueFull:
                metrics.KUBERNETES_EVENTS.labels("dropped").inc()
                if not self._is_dropping:
                    logger.warning(
                        "kubernetes_events_dropped", waiting=WAITING_MAX, hint="the statuses of the runs say it too"
                    )
                self._is_dropping = True
            else:
                self._is_dropping = False

    async def run(self) -> None:
        """Write what is filed, for ever."""
        while True:
            news = await self._waiting.get()
            if self._refused_until.get(news.target.namespace, 0.0) > asyncio.get_running_loop().time():
                metrics.KUBERNETES_EVENTS.labels("refused").inc()
                continue
            await self._bucket.take()
            metrics.KUBERNETES_EVENTS.labels(await self._write(news)).inc()

    async def _write(self, news: News) -> str:
        """One Event. Returns what came of it."""
        for attempt in range(1, TRIES_MAX + 1):
            try:
                await self._tell(news)
            except KubeUnavailableError as error:
                failure: Exception = error
            except KubeError as error:
                if error.code in {401, 403, 404}:
                    self._refuse(news, error)
                    return "refused"
                failure = error
                if error.code not in {429, 500, 503, 504}:
                    break
            else:
                self._refused_until.pop(news.target.namespace, None)
                return "written"
            await asyncio.sleep(max(jobs.backoff_seconds(attempt), jobs.retry_after_seconds(failure)))
        logger.warning("kubernetes_event_not_written", name=news.target.name, reason=news.reason, error=str(failure))
        return "failed"

    async def _tell(self, news: News) -> None:
        now = self._clock.now()
        if news.series in self._known:
            name, count = self._known[news.series]
            series = {"count": count + 1, "lastObservedTime": micro_time_of(now)}
            try:
                await self._kube.call(
                    "PATCH", f"{news.path}/{name}", {"series": series}, kind="application/merge-patch+json"
                )
            except KubeError as error:
                if error.code != 404 or error.name != name:
                    raise
                del self._known[news.series]  # an Event lives for an hour: this is a new one
            else:
                self._remember(news.series, name, count + 1)
                return
        try:
            await self._kube.call("POST", news.path, news.body(self._reporter, now))
        except KubeError as error:
            if error.code != 409:  # else another leader has told it, or we have and did not hear the answer
                raise
        self._remember(news.series, news.name, 1)

    def _remember(self, series: str, name: str, count: int) -> None:
        self._known[series] = (name, count)
        self._known.move_to_end(series)
        while len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)

    def _refuse(self, news: News, error: KubeError) -> None:
        now = asyncio.get_running_loop().time()
        namespace = news.target.namespace
        # What is deleted takes nothing new: that is nobody's fault.
        if namespace not in self._refused_until and "being terminated" not in error.text:
            logger.warning(
                "kubernetes_events_refused",
                namespace=namespace,
                error=str(error),
                hint="let the engine's service account create and patch events of events.k8s.io there; all else goes on",
            )
        for each in [each for each, until in self._refused_until.items() if until < now - REFUSED_SECONDS]:
            del self._refused_until[each]
        self._refused_until[namespace] = now + REFUSED_SECONDS
