"""Objects seen on their way to the store: the newest state of each, drained in batches, with retries of our own.

kopf never tries an `on.event` handler again, and never tells of what was deleted while nobody watched: so everything
passes through here, and `compare` finds what was missed.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final
from uuid import UUID

from romancy.base import log
from romancy.base.clock import Clock
from romancy.base.settings import ControlSettings
from romancy.control import conditions, jobs
from romancy.control.kube import Json, Kube, KubeError, Target, path_of
from romancy.control.resources import RUNS, WorkflowRunSpec
from romancy.control.runs import (
    DONE,
    Change,
    Foreign,
    Gone,
    Intent,
    Lose,
    Nothing,
    Refuse,
    Rules,
    Seen,
    Start,
    decide,
    wishes_of,
)
from romancy.errors import PayloadRefusedError, StoreError
from romancy.model.run import NewRun, Wishes
from romancy.store.interface import ResourceRow, Store

logger = log.get(__name__)

BATCH: Final = 500
STATUS_AT_ONCE: Final = 10
TOLD_MAX: Final = 500
"""Objects that are told at once that the database is away; the others see it on the WorkflowEngine."""
SURE_SECONDS: Final = 10.0
"""An object is gone when two lists so far apart lack it."""
LISTS_MAX: Final = 5
"""A list that took too long for its snapshot is begun anew so often."""


class Intake:
    """Belongs to control's loop. `settled` is called with each object that the store knows now, and the row before;
    `started` when there are new runs; `unrun` with each object that is no run: the reason and its text.
    """

    def __init__(
        self,
        kube: Kube,
        rules: Rules,
        settings: ControlSettings,
        *,
        clock: Clock,
        settled: Callable[[Seen, ResourceRow | None], None],
        started: Callable[[], None],
        unrun: Callable[[Seen, str, str], None] = lambda _seen, _reason, _text: None,
        tries: jobs.Tries | None = None,
    ) -> None:
        self._kube, self._rules, self._settings, self._settled = kube, rules, settings, settled
        self._clock, self._started, self._unrun = clock, started, unrun
        self._tries = tries or jobs.Tries()
        self._waiting: dict[UUID, Seen] = {}
        self._filled = asyncio.Event()
        self._told: set[UUID] = set()
        self._sure: set[UUID] = (
            set()
        )  # open runs that were taken in here, and of which nothing was left half done since
        self.foreign: dict[UUID, str] = {}
        self.must_compare = asyncio.Event()
        self.listed, self.drained = asyncio.Event(), asyncio.Event()

    def file(self, seen: Seen) -> None:
        """Keep the newest state; whatever was filed of it before is forgotten. Never waits, never fails."""
        if seen.uid not in self._waiting and len(self._waiting) >= self._settings.intake_max:
            if not self.must_compare.is_set():
                logger.warning("intake_overflowed", waiting=len(self._waiting), hint="a comparison finds the rest")
            self.must_compare.set()
            return
        self._waiting[seen.uid] = seen
        self._filled.set()
        self.drained.clear()

    async def run(self, store: Store) -> None:
        """Drain for ever."""
        while True:
            if not self._waiting:
                self._filled.clear()
                self.drained.set()
                await self._filled.wait()
            try:
                await self.run_once(store)
                self._tries.done("intake")
            except jobs.EXPECTED as error:
                failures = self._tries.failed("intake", error)
                pause = max(jobs.backoff_seconds(failures), jobs.retry_after_seconds(error))
                logger.warning("intake_failed", waiting=len(self._waiting), failures=failures, error=str(error))
                if isinstance(error, StoreError) and failures > 1:
                    await self.tell_store_away(str(error))
                await asyncio.sleep(pause)

    async def run_once(self, store: Store) -> None:
        """Take one batch to the store. What fails is filed again, unless something newer came meanwhile."""
        batch = [self._waiting.pop(uid) for uid in list(self._waiting)[:BATCH]]
        try:
            rows = await store.read_resources([seen.uid for seen in batch])
            intents = [
                (seen, decide(seen, rows.get(seen.uid), self._rules, is_sure=seen.uid in self._sure)) for seen in batch
            ]
            await self._act(store, intents)
        except BaseException:
            for seen in batch:
                self._waiting.setdefault(seen.uid, seen)
                self._sure.discard(seen.uid)
            raise
        self._sure.difference_update(seen.uid for seen in batch if seen.is_gone or seen.phase in DONE)
        self._sure.update(seen.uid for seen in batch if not (seen.is_gone or seen.phase in DONE))
        for seen, _intent in intents:
            self._settled(seen, rows.get(seen.uid))
        self._told.difference_update(seen.uid for seen in batch)

    async def _act(self, store: Store, intents: Sequence[tuple[Seen, Intent]]) -> None:
        starts = [(seen, intent) for seen, intent in intents if isinstance(intent, Start)]
        refused = await self._start(store, [(seen, start.run) for seen, start in starts])
        if len(starts) > len(refused):
            self._started()
        messages = [
            message
            for seen, intent in intents
            if isinstance(intent, Start | Change | Gone) and seen.uid not in refused
            for message in intent.messages
        ]
        # An order of a process that stood still must not come after a newer one of another leader: a suspend after the resume.
        await self._kube.until_trusted()
        if messages:
            await store.send(messages)  # before what says that they were sent
        wishes: dict[UUID, Wishes] = {}
        gone: list[UUID] = []
        for seen, intent in intents:
            self.foreign.pop(seen.uid, None)
            match intent:
                case Start(wishes=Wishes() as asked) if seen.uid not in refused:
                    wishes[seen.uid] = asked
                case Change():
                    wishes[seen.uid] = intent.wishes
                case Gone():
                    gone.append(seen.uid)
                case Refuse():
                    refused[seen.uid] = intent
                case Foreign() if not seen.is_gone:
                    self.foreign[seen.uid] = intent.engine
                case Foreign() | Start() | Lose() | Nothing():
                    pass
        await store.set_wishes(wishes)
        await store.resources_gone(gone)
        await self._answer(intents, refused)
        if starts or messages or gone:
            logger.info("runs_filed", started=len(starts), messages=len(messages), gone=len(gone), refused=len(refused))

    async def _start(self, store: Store, runs: Sequence[tuple[Seen, NewRun]]) -> dict[UUID, Refuse]:
        """Start the runs; those that the database refuses are told apart, and the others start."""
        try:
            await store.start_runs([run for _seen, run in runs])
        except PayloadRefusedError as error:
            if len(runs) == 1:
                return {runs[0][0].uid: Refuse("SpecInvalid", error.message)}
            half = len(runs) // 2
            return {**await self._start(store, runs[:half]), **await self._start(store, runs[half:])}
        return {}

    async def _answer(self, intents: Sequence[tuple[Seen, Intent]], refused: dict[UUID, Refuse]) -> None:
        """Write the status of what has no row to be mirrored from."""
        now, engine = self._clock.now(), self._rules.engine
        answers: list[tuple[Seen, Json]] = []
        for seen, intent in intents:
            if (why := refused.get(seen.uid)) is not None:
                logger.warning("run_refused", namespace=seen.namespace, name=seen.name, reason=why.reason)
                status = conditions.refused(
                    engine=engine, generation=seen.generation, reason=why.reason, message=why.message, now=now
                )
                answers.append((seen, status))
            elif isinstance(intent, Lose) and seen.reason != conditions.LOST:
                logger.error("run_lost", namespace=seen.namespace, name=seen.name, uid=str(seen.uid))
                answers.append((seen, conditions.lost(engine=engine, generation=seen.generation, now=now)))
        await self._write(answers)
        for seen, status in answers:
            self._unrun(seen, status["reason"], status["message"])

    async def tell_store_away(self, message: str) -> None:
        """Say in the status of new objects that the database is away, once each."""
        new = [
            seen
            for seen in self._waiting.values()
            if not (seen.is_gone or seen.phase or seen.uid in self._told or seen.engine not in {"", self._rules.engine})
        ]
        now, engine = self._clock.now(), self._rules.engine
        answers = [
            (seen, conditions.store_away(engine=engine, generation=seen.generation, message=message, now=now))
            for seen in new[: TOLD_MAX - len(self._told)]
        ]
        self._told.update(seen.uid for seen, _status in answers)
        try:
            await self._write(answers)
        except jobs.EXPECTED as error:
            logger.warning("status_not_written", error=str(error))

    async def _write(self, answers: Sequence[tuple[Seen, Json]]) -> None:
        for begin in range(0, len(answers), STATUS_AT_ONCE):
            part = answers[begin : begin + STATUS_AT_ONCE]
            await asyncio.gather(
                *(
                    self._kube.patch_status(Target(RUNS, seen.namespace, seen.name, seen.uid), status)
                    for seen, status in part
                )
            )

    async def compare(self, store: Store) -> None:
        """File every object that the store may not know, and the deletion of those that are there no more.

        The rows are read before the list: whatever has a row was there when the list was made, or is gone.
        """
        rows = await self._rows(store)
        listed = await self._list(rows)
        self.listed.set()
        if missing := {uid: row for uid, row in rows.items() if uid not in listed}:
            logger.info("resources_missing", count=len(missing), again_in_seconds=SURE_SECONDS)
            await asyncio.sleep(SURE_SECONDS)
            listed = await self._list({})
            for uid, row in missing.items():
                if uid not in listed:
                    self.file(Seen.missing(row.run_id, row.namespace, row.name))
        logger.info("resources_compared", listed=len(listed), rows=len(rows), missing=len(missing))

    async def _rows(self, store: Store) -> dict[UUID, ResourceRow]:
        namespaces = self._settings.watch_namespaces or None
        return {row.run_id: row for row in await store.resources(namespaces)}

    async def _list(self, rows: dict[UUID, ResourceRow]) -> set[UUID]:
        """The uids of all objects; those that the store may not know are filed on the way."""
        for attempt in range(LISTS_MAX):
            listed: set[UUID] = set()
            try:
                for namespace in self._settings.watch_namespaces or (None,):
                    async for page in self._kube.pages(path_of(RUNS, namespace=namespace)):
                        for thing in page:
                            seen = Seen.of(thing)
                            listed.add(seen.uid)
                            row = rows.get(seen.uid)
                            if self._may_be_news(seen, row):
                                self.file(seen)
                            elif row is not None:  # thousands that wait need not be read once more to know that
                                self._settled(seen, row)
            except KubeError as error:
                if error.code != 410 or attempt == LISTS_MAX - 1:
                    raise
                logger.info("list_expired", listed=len(listed))
            else:
                return listed
        raise AssertionError("unreachable")

    def _may_be_news(self, seen: Seen, row: ResourceRow | None) -> bool:
        if seen.observed_generation != seen.generation:
            return True
        if row is None:
            return seen.phase not in DONE  # else it has ended, and nothing is owed to it
        if seen.engine != self._rules.engine:
            return True
        try:
            return wishes_of(WorkflowRunSpec.model_validate(seen.spec or {}), self._rules) != row.wishes
        except ValueError:
            return False
