"""Rows to statuses: what has not been written yet is in the rows, so a leader's crash loses nothing."""

import asyncio
import contextlib
import math
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from romancy.base import log
from romancy.base.clock import Clock
from romancy.base.settings import ControlSettings
from romancy.control import conditions, jobs
from romancy.control.conditions import Shown, Stalled
from romancy.control.kube import Kube, KubeError, KubeUnavailableError, Target, is_refused
from romancy.control.resources import RUNS
from romancy.control.runs import DONE, LOST, Seen
from romancy.model.run import Run
from romancy.store.interface import ResourceRow, Store, Unmirrored, Wakeups

logger = log.get(__name__)

POLL_SECONDS: Final = 5.0
"""The safety net behind Wakeups.on_mirror."""
HELD_TOGETHER_SECONDS: Final = 0.05
"""Runs that began within so short a time are looked at together when their first write is held back no more."""
REFUSED_SECONDS_MAX: Final = 60.0
"""Between two tries of a status that is refused for what it is."""
FORBIDDEN_SECONDS_MAX: Final = 4.0
"""Between two tries in a namespace in which no status may be written: one write tells whether that has changed."""
CONTRADICTED_SECONDS: Final = 2.0
"""How long a status may say something else than the row, with no write of ours that explains it."""
WRITTEN_MAX: Final = 5000
NO_VERSION: Final = 0
"""Of a write that no row owes."""


@dataclass(slots=True)
class Failure:
    """A status that could not be written, and when it is tried again."""

    count: int
    again_at: float


@dataclass(slots=True)
class Refusal:
    """No status can be written in a namespace: a right or the definition is missing."""

    count: int
    again_at: float


class Held:
    """When to look again for runs whose first write is held back: each soon after its time, however many others begin."""

    def __init__(self, hold_seconds: float) -> None:
        self._hold_seconds = hold_seconds
        self._looks_at: deque[float] = deque()

    def heard(self, now: float) -> None:
        """What is owed by now may be held back."""
        at = now + self._hold_seconds
        if not self._looks_at or self._looks_at[-1] < at:
            self._looks_at.append(at + HELD_TOGETHER_SECONDS)

    def next_after(self, looked_at: float) -> float:
        """When to look again after a look that began then; never, if nobody waits for it."""
        while self._looks_at and self._looks_at[0] <= looked_at:
            self._looks_at.popleft()
        return self._looks_at[0] if self._looks_at else math.inf


@dataclass(frozen=True, slots=True)
class Contradiction:
    """A status was seen that says something else than the row."""

    namespace: str
    since: float


class Mirror:
    """Belongs to control's loop. `gone` is called with an object's state when it is found to be no more, `told` when
    `refused` has changed, `shown` with each new state of a run that was written, and whether it was shown as Stalled before.

    Attributes:
        refused: by namespace, why no status is written there.
    """

    def __init__(
        self,
        kube: Kube,
        settings: ControlSettings,
        bucket: jobs.TokenBucket,
        *,
        clock: Clock,
        gone: Callable[[Seen], None],
        told: Callable[[], None],
        shown: Callable[[Run, int, bool], None],
        tries: jobs.Tries,
    ) -> None:
        self._kube, self._settings, self._bucket, self._gone = kube, settings, bucket, gone
        self._clock, self._told, self._shown, self._tries = clock, told, shown, tries
        self._batch = max(settings.status_writes_at_once, round(settings.status_writes_per_second / 2))
        self._woken = asyncio.Event()
        self.refused: dict[str, str] = {}
        self._refusals: dict[str, Refusal] = {}
        self._passed_over = 0
        self._failures: dict[UUID, Failure] = {}
        # What a status needs and the row does not have: seen on the objects of open runs, and forgotten at their end.
        self._generations: dict[UUID, int] = {}
        self._stalled: dict[UUID, Stalled] = {}
        self._owed: dict[UUID, str] = {}  # with its namespace
        self._contradicted: dict[UUID, Contradiction] = {}
        # Marking skips rows that a flush holds: such a version is given again, and need not be written again.
        self._written: OrderedDict[UUID, int] = OrderedDict()
        self._ended: OrderedDict[UUID, int] = OrderedDict()  # the generation that the final status shows

    def wake(self) -> None:
        """A status may be owed."""
        self._woken.set()

    def settled(self, seen: Seen, row: ResourceRow | None) -> None:
        """The store knows this state of the object: its status may say so. `row` is what the store knew before."""
        self._contradicted.pop(seen.uid, None)
        is_shown = not seen.is_gone and seen.phase != "" and seen.engine == self._settings.engine
        if is_shown and row is not None and seen.phase != row.phase.value:
            # Mostly it is only late. But a write of a leader before us may have come after ours, held up on its way; and if
            # the run has ended, nothing would ever put that right.
            loop = asyncio.get_running_loop()
            if not self._contradicted:  # else somebody is waited for already, and when that is over for the next
                loop.call_later(CONTRADICTED_SECONDS, self.wake)
            self._contradicted[seen.uid] = Contradiction(seen.namespace, loop.time())
        # The row of a changed spec may be as it was, and then nothing else would write that the change was seen.
        is_owed = (seen.was_accepted and seen.observed_generation != seen.generation) or seen.reason == LOST
        # An end that was written takes the object out of the watch, with the state before it: a change that was not filed by
        # then is shown by no status, and no event tells of it any more.
        ended_with = self._ended.pop(seen.uid, None)
        has_left = seen.is_gone and not seen.is_certain and ended_with not in {None, seen.generation}
        if has_left:
            is_owed = True
        elif seen.is_gone or (seen.phase in DONE and not is_owed):
            # A write whose answer was lost makes a finished run leave the watch, and must be written again as it was.
            # Whether it is lost may not be known yet: the write itself forgets when it has been answered.
            if seen.uid not in self._failures and ended_with is None:
                self._forget(seen.uid)
            return
        self._generations[seen.uid] = seen.generation
        if seen.uid not in self._stalled and (found := seen.stalled_since()) is not None:
            self._stalled[seen.uid] = Stalled(*found)
        if is_owed:
            self._owed[seen.uid] = seen.namespace
            self.wake()

    async def run(self, store: Store, wakeups: Wakeups) -> None:
        """Write what is owed, for ever."""
        wakeups.on_mirror(self.wake)
        loop = asyncio.get_running_loop()
        held = Held(self._settings.status_hold_seconds)
        held.heard(loop.time())  # what began before
        while True:
            if self._woken.is_set():
                self._woken.clear()
                held.heard(loop.time())
            began_at = loop.time()
            try:
                count = await self.run_once(store)
                self._tries.done("mirror")
            except jobs.EXPECTED as error:
                failures = self._tries.failed("mirror", error)
                pause = jobs.backoff_seconds(failures)
                logger.warning("mirror_failed", failures=failures, error=str(error), again_in_seconds=round(pause, 2))
                await asyncio.sleep(pause)
                held.heard(loop.time())
                continue
            if count >= self._batch:
                continue
            again_at = [each.again_at for each in self._failures.values()]
            again_at += [each.again_at for each in self._refusals.values()]
            again_at += [each.since + CONTRADICTED_SECONDS for each in self._contradicted.values()]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min([loop.time() + POLL_SECONDS, held.next_after(began_at), *again_at])):
                    await self._woken.wait()

    async def run_once(self, store: Store) -> int:
        """Write one batch, final states first. Returns how many runs were owed a status."""
        now = asyncio.get_running_loop().time()
        owed = await store.take_unmirrored(
            hold_seconds=self._settings.status_hold_seconds,
            limit=self._batch + len(self._failures) + self._passed_over,
        )
        due = [
            each for each in owed if each.run.id not in self._failures or self._failures[each.run.id].again_at <= now
        ]
        if len(owed) < self._batch + len(self._failures) + self._passed_over:
            self._forget_refusals_of_none(due, now)
        ready = self._allowed(due, now)[: self._batch]
        for each in ready:
            self._owed.pop(each.run.id, None)
        # One that was postponed, and whose status is owed no more, would be waited for in vain.
        taken = {each.run.id for each in owed} | self._owed.keys()
        for run_id in [run_id for run_id, each in self._failures.items() if each.again_at <= now]:
            if run_id not in taken:
                self._forget(run_id)
        for run_id in [each for each, seen in self._contradicted.items() if seen.since + CONTRADICTED_SECONDS <= now]:
            self._owed[run_id] = self._contradicted.pop(run_id).namespace
        ready += await self._generations_owed(store, self._batch - len(ready), now)
        versions: dict[UUID, int] = {}
        unanswered: dict[UUID, KubeUnavailableError] = {}
        at_once = asyncio.Semaphore(self._settings.status_writes_at_once)

        async def write(each: Unmirrored) -> None:
            async with at_once:
                try:
                    is_written = self._written.get(each.run.id) == each.version or await self._write(each)
                except KubeUnavailableError as error:
                    is_written, unanswered[each.run.id] = False, error
                if is_written:
                    versions[each.run.id] = each.version
                elif each.version == NO_VERSION:
                    self._owed[each.run.id] = each.run.namespace

        try:
            async with asyncio.TaskGroup() as writing:
                for each in ready:
                    writing.create_task(write(each))
        finally:
            self._remember(versions)
        await store.mark_mirrored({run_id: version for run_id, version in versions.items() if version != NO_VERSION})
        if unanswered and not versions:
            raise next(
                iter(unanswered.values())
            )  # the server is away, and no run is to blame: they are all tried again
        for each in ready:
            if each.run.id in unanswered:
                self._postpone(each.run, unanswered[each.run.id])
        return len(ready)

    def _allowed(self, due: list[Unmirrored], now: float) -> list[Unmirrored]:
        """Without those of namespaces in which we may not write; one of each is tried when it is time again."""
        tried: set[str] = set()
        allowed: list[Unmirrored] = []
        for each in due:
            refusal = self._refusals.get(each.run.namespace)
            if refusal is None:
                allowed.append(each)
            elif refusal.again_at <= now and each.run.namespace not in tried:
                tried.add(each.run.namespace)
                allowed.append(each)
        self._passed_over = len(due) - len(allowed)  # the next look goes so much further, so that others get their turn
        return allowed

    def _forget_refusals_of_none(self, due: list[Unmirrored], now: float) -> None:
        """Where nothing is owed any more, as in a deleted namespace, no write will tell that it is over."""
        namespaces = {each.run.namespace for each in due} | {*self._owed.values()}
        for namespace in [each for each, refusal in self._refusals.items() if refusal.again_at <= now]:
            if namespace not in namespaces:
                del self._refusals[namespace], self.refused[namespace]
                self._told()

    async def _generations_owed(self, store: Store, room: int, now: float) -> list[Unmirrored]:
        """Runs whose row owes nothing, but whose object has a new generation to be acknowledged, or says what is not so."""
        found: list[Unmirrored] = []
        ready = [
            run_id
            for run_id, namespace in self._owed.items()
            if (run_id not in self._failures or self._failures[run_id].again_at <= now)
            and (namespace not in self._refusals or self._refusals[namespace].again_at <= now)
        ]
        for run_id in ready[: max(0, room)]:
            run = await store.read_run(run_id)
            self._owed.pop(run_id, None)
            if run is not None:
                found.append(Unmirrored(run=run, version=NO_VERSION, attempts=0, is_gone=False))
        return found

    async def _write(self, each: Unmirrored) -> bool:
        """Write one status. Returns whether nothing more is owed for this version; what is refused is tried again later.

        Raises:
            KubeUnavailableError: no answer came, and it may have been written.
        """
        run = each.run
        now = self._clock.now()
        before = self._stalled.get(run.id)
        stalled = conditions.stalled_since(run, before, now)
        shown = Shown(
            engine=self._settings.engine,
            generation=self._generations.get(run.id),
            attempts=each.attempts,
            stalled_before=stalled,
            output_bytes_max=self._settings.output_inline_bytes_max,
        )
        await self._bucket.take()
        if run.is_done and each.version != NO_VERSION and shown.generation is not None:
            self._ended[run.id] = shown.generation  # before the write: its event may overtake its answer
            while len(self._ended) > WRITTEN_MAX:
                self._ended.popitem(last=False)
        target = Target(RUNS, run.namespace, run.name, run.id)
        try:
            is_there = await self._kube.patch_status(target, conditions.of_run(run, shown, now=now))
        except KubeError as error:
            if is_refused(error, target):
                self._refuse(run.namespace, error)
            else:
                self._postpone(run, error)
            return False
        self._failures.pop(run.id, None)
        if self._refusals.pop(run.namespace, None) is not None:
            del self.refused[run.namespace]
            self._told()
            logger.info("statuses_written_again", namespace=run.namespace)
            self.wake()
        if not is_there:
            logger.info("resource_gone", namespace=run.namespace, name=run.name, run_id=str(run.id))
            self._gone(Seen.missing(run.id, run.namespace, run.name))
        else:
            if stalled.is_true or run.id in self._stalled:
                self._stalled[run.id] = stalled
            if each.version != NO_VERSION:
                self._shown(run, each.version, before is not None and before.is_true)
        if run.is_done or not is_there:
            self._forget(run.id)
        return True

    def _refuse(self, namespace: str, error: KubeError) -> None:
        now = asyncio.get_running_loop().time()
        known = self._refusals.get(namespace)
        if known is not None and known.again_at > now:
            return  # another write of the same batch has said so
        count = 1 if known is None else known.count + 1
        pause = jobs.backoff_seconds(count, longest=FORBIDDEN_SECONDS_MAX)
        self._refusals[namespace] = Refusal(count, now + pause)
        if known is None:
            self._told()
        self.refused[namespace] = f"{error.text or error.word} ({error.code}): {error.hint or error.message}"
        logger.warning(
            "statuses_refused",
            namespace=namespace,
            error=str(error),
            hint=error.hint,
            failures=count,
            again_in_seconds=round(pause, 2),
        )

    def _postpone(self, run: Run, error: Exception) -> None:
        count = self._failures[run.id].count + 1 if run.id in self._failures else 1
        pause = max(jobs.backoff_seconds(count, longest=REFUSED_SECONDS_MAX), jobs.retry_after_seconds(error))
        self._failures[run.id] = Failure(count, asyncio.get_running_loop().time() + pause)
        logger.warning(
            "status_not_written",
            namespace=run.namespace,
            name=run.name,
            error=str(error),
            failures=count,
            again_in_seconds=round(pause, 2),
        )

    def _remember(self, versions: dict[UUID, int]) -> None:
        for run_id, version in versions.items():
            if version != NO_VERSION:
                self._written[run_id] = version
                self._written.move_to_end(run_id)
        while len(self._written) > WRITTEN_MAX:
            self._written.popitem(last=False)

    def _forget(self, run_id: UUID) -> None:
        self._generations.pop(run_id, None)
        self._stalled.pop(run_id, None)
        self._failures.pop(run_id, None)
        self._owed.pop(run_id, None)
