"""What control compares with the objects that it sees, and what it must tell people of runs that nobody can take."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from romancy.model.run import Phase, Wishes
from romancy.store.interface import Backlog, ResourceRow
from romancy.store.notify import mirror_channel
from romancy.store.pool import Connected
from romancy.store.queries import SQL
from romancy.store.runs import wishes_of

STRANDED_MAX: Final = 1000
"""Runs that are told apart in one statement: bounds its locks."""


LATE_COMMIT: Final = timedelta(seconds=60)
"""A run is due since its transaction began, and is seen when that is committed: no later than this, or after a restart."""
_EVER: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class _Told:
    """What the due runs of a queue were told, and until which wake_at."""

    message: str
    until: datetime


class Resources(Connected):
    """The part of the store that knows runs as objects."""

    _told: dict[tuple[int, str], _Told]

    async def set_wishes(self, wishes: Mapping[UUID, Wishes]) -> None:
        """Store what their owners want. Messages that follow from it are sent apart."""
        if wishes:
            await self._fetch(
                SQL.set_wishes(
                    ids=list(wishes),
                    suspends=[wish.suspend for wish in wishes.values()],
                    cancels=[wish.cancel for wish in wishes.values()],
                    deletion_policies=[wish.deletion_policy for wish in wishes.values()],
                    ttls=[wish.ttl_seconds for wish in wishes.values()],
                )
            )

    async def resources(self, namespaces: Sequence[str] | None) -> list[ResourceRow]:
        """Runs of resources that are open, or whose status or deletion is still owed, and whose object is not gone."""
        names = None if namespaces is None else list(namespaces)
        return [_resource_of(row) for row in await self._list(SQL.resources(namespaces=names))]

    async def read_resources(self, run_ids: Sequence[UUID]) -> dict[UUID, ResourceRow]:
        """Those of these runs that are of resources, whether their object is gone or not."""
        return {row["id"]: _resource_of(row) for row in await self._fetch(SQL.read_resources(ids=list(run_ids)))}

    async def resources_gone(self, run_ids: Sequence[UUID]) -> None:
        """Their objects are deleted: nothing is mirrored to them any more.

        `resources` does not show them after this, so what must follow from the deletion (a cancel) is sent before.
        """
        if run_ids:
            await self._fetch(SQL.resources_gone(ids=list(run_ids)))

    async def expired_resources(self, *, limit: int) -> list[ResourceRow]:
        """Finished runs whose ttl_seconds is over, whose last status was written and whose object is not gone."""
        assert limit >= 1
        return [_resource_of(row) for row in await self._fetch(SQL.expired_resources(limit=limit))]

    async def mark_stranded(self) -> int:
        """Set, and take back, the reason WorkflowNotRegistered of due runs, by what live workers offer. How many changed."""
        rows = await self.stranded_queues()
        stranded = [row for row in rows if row["queue"] is not None]
        offers = await self.offers() if stranded else {}
        messages = {
            (row["priority"], row["queue"]): stranded_message(row["workflow"], row["python"], offers)
            for row in stranded
        }
        changed = await self.unstrand([queue for _priority, queue in messages]) if rows[0]["has_told"] else 0
        # Who has been told once is not read again each time: there may be very many of them.
        self._told = {key: told for key, told in self._told.items() if messages.get(key) == told.message}
        for (priority, queue), message in messages.items():
            changed += await self.strand(priority, queue, message)
        return changed

    async def stranded_queues(self) -> list[Any]:
        """Rows of priority, queue (None if there is none), workflow, python; and has_told: some run has been told so."""
        return await self._fetch(SQL.stranded_queues())

    async def offers(self) -> dict[str, list[str]]:
        """The workflows that live workers have, each with the Python minors that it is there for."""
        return {row["workflow"]: list(row["pythons"]) for row in await self._fetch(SQL.offers())}

    async def strand(self, priority: int, queue: str, message: str) -> int:
        """Say of the due runs of a queue why they do not move; how many were not told yet."""
        told = self._told.get((priority, queue))
        since = told.until if told else _EVER
        asked_at: datetime | None = None
        total = 0
        while True:
            [row] = await self._fetch(
                SQL.strand(
                    priority=priority,
                    queue=queue,
                    message=message,
                    since=since,
                    limit=STRANDED_MAX,
                    mirror_channel=mirror_channel(self.settings),
                )
            )
            asked_at = asked_at or row["asked_at"]
            total += int(row["changed"])
            if row["changed"] < STRANDED_MAX:
                self._told[priority, queue] = _Told(message, asked_at - LATE_COMMIT)
                return total
            since = row["last_at"]

    async def unstrand(self, queues: Sequence[str]) -> int:
        """Take that back of the runs of all other queues; how many there were."""
        statement = SQL.unstrand(queues=list(queues), limit=STRANDED_MAX, mirror_channel=mirror_channel(self.settings))
        total = 0
        while True:
            [row] = await self._fetch(statement)
            total += int(row["changed"])
            if row["changed"] < STRANDED_MAX:
                return total

    async def backlog(self) -> Backlog:
        """The counts of the health view."""
        [row] = await self._list(SQL.backlog())
        return Backlog(
            due=row["due"],
            held=row["held"],
            open=row["open"],
            blocked=row["blocked"],
            oldest_due_seconds=row["oldest_due_seconds"],
            emitted=row["emitted"],
            dead_letters=row["dead_letters"],
        )


def stranded_message(workflow: str, python: str | None, offers: Mapping[str, Sequence[str]]) -> str:
    """Why nobody takes a run of this workflow, for people. `python` is the minor that it began on, if it has begun."""
    if workflow in offers and python is not None:
        have = " and ".join(sorted(offers[workflow]))
        return (
            f"this run began on Python {python}, and no live worker runs workflow {workflow!r} on that (they have {have}): "
            f"a run keeps its minor version. Start a worker with Python {python}"
        )
    near = difflib.get_close_matches(workflow, offers, n=3, cutoff=0.6)
    advice = (
        f"near names are {', '.join(map(repr, near))}" if near else "start a worker that has it, or correct the name"
    )
    return f"no live worker has workflow {workflow!r}: {advice}"


def _resource_of(row: Any) -> ResourceRow:
    return ResourceRow(
        run_id=row["id"],
        namespace=row["namespace"],
        name=row["name"],
        phase=Phase(row["phase"]),
        wishes=wishes_of(row),
    )
