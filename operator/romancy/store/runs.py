"""Runs as people see them: started, found, listed. What changes while a run is open is the journal's."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from romancy.model.run import DeletionPolicy, Form, NewRun, Phase, Run, Wishes
from romancy.store.interface import RunFilter, Started
from romancy.store.notify import due_channel, mirror_channel
from romancy.store.pool import Connected, Statement
from romancy.store.queries import SQL
from romancy.store.texts import labels_text, size_bytes


class Runs(Connected):
    """The part of the store that starts and shows runs."""

    async def start_runs(self, runs: Sequence[NewRun]) -> list[Started]:
        """Insert runs that nobody holds yet, and wake workers that have their workflows. Twice is once (I6).

        Returns:
            In order; `existing` is the run that had the id before, also if it stood twice in `runs`.

        Raises:
            PayloadRefusedError: a text can't be stored; none of the runs was started.
        """
        firsts: dict[UUID, NewRun] = {}
        for run in runs:
            assert run.start_at is None or run.start_at.tzinfo is not None, "a naive time would be taken as local"
            size_bytes([run.namespace, run.name, run.workflow, run.input])
            firsts.setdefault(run.id, run)
        if not firsts:
            return []
        new = list(firsts.values())
        [row] = await self._fetch(
            SQL.start_runs(
                ids=[run.id for run in new],
                namespaces=[run.namespace for run in new],
                names=[run.name for run in new],
                workflows=[run.workflow for run in new],
                inputs=[run.input for run in new],
                forms=[run.form for run in new],
                priorities=[run.priority for run in new],
                timeouts=[run.timeout_seconds for run in new],
                labels=[labels_text(run.labels) for run in new],
                start_ats=[run.start_at for run in new],
                are_resources=[run.is_resource for run in new],
                suspends=[run.wishes.suspend for run in new],
                cancels=[run.wishes.cancel for run in new],
                deletion_policies=[run.wishes.deletion_policy for run in new],
                ttls=[run.wishes.ttl_seconds for run in new],
                parent_ids=[run.parent.id if run.parent else None for run in new],
                parent_numbers=[run.parent.number if run.parent else None for run in new],
                parent_closes=[run.parent.close if run.parent else None for run in new],
                due_channel=due_channel(self.settings),
                mirror_channel=mirror_channel(self.settings),
            )
        )
        started = set(row["started"])
        is_new = [run is firsts[run.id] and run.id in started for run in runs]
        others = {run.id for run, new_here in zip(runs, is_new, strict=True) if not new_here}
        existing = {run.id: run for run in await self.read_runs(list(others))} if others else {}
        return [
            Started(run.id, None if new_here else existing.get(run.id))
            for run, new_here in zip(runs, is_new, strict=True)
        ]

    async def read_run(self, run_id: UUID) -> Run | None:
        """One run, open or done."""
        found = await self.read_runs([run_id])
        return found[0] if found else None

    async def read_runs(self, run_ids: Sequence[UUID]) -> list[Run]:
        """Those of these runs that exist, in any order."""
        return [run_of(row) for row in await self._fetch(SQL.read_runs(ids=list(run_ids)))]

    async def find_run(self, namespace: str, name: str) -> Run | None:
        """The newest run of that name."""
        found = await self._page(SQL.find_run(namespace=namespace, name=name))
        return found[0] if found else None

    async def list_runs(self, where: RunFilter, *, limit: int) -> list[Run]:
        """Newest first (created_at, id).

        Raises:
            SearchTooBroadError: it took longer than a statement may: filters without an index let too few through.
        """
        assert limit >= 1
        if where.finished_from or where.finished_before:  # what has finished is done
            where = replace(where, phases=frozenset(phase for phase in where.phases or Phase if phase.is_done))
            return await self.list_done_runs(where, limit=limit) if where.phases else []
        if where.phases and not any(phase.is_done for phase in where.phases):
            return await self.list_open_runs(where, limit=limit)
        if where.phases and all(phase.is_done for phase in where.phases):
            return await self.list_done_runs(where, limit=limit)
        return await self.list_any_runs(where, limit=limit)

    async def list_any_runs(self, where: RunFilter, *, limit: int) -> list[Run]:
        """A page of open and done runs."""
        phases = sorted(where.phases) or None
        return await self._page(SQL.list_any_runs(**_filter(where), phases=phases, limit=limit))

    async def list_open_runs(self, where: RunFilter, *, limit: int) -> list[Run]:
        """A page of runs in phases of open runs; none is done."""
        return await self._page(SQL.list_open_runs(**_filter(where), phases=sorted(where.phases), limit=limit))

    async def list_done_runs(self, where: RunFilter, *, limit: int) -> list[Run]:
        """A page of runs in phases of done runs; none is open."""
        return await self._page(
            SQL.list_done_runs(
                **_filter(where),
                phases=sorted(where.phases),
                finished_from=where.finished_from,
                finished_before=where.finished_before,
                limit=limit,
            )
        )

    async def _page(self, statement: Statement) -> list[Run]:
        return [run_of(row) for row in await self._search(statement)]


def _filter(where: RunFilter) -> dict[str, Any]:
    after_at, after_id = where.after or (None, None)
    id_first, id_last = where.ids or (None, None)
    return {
        "namespace": where.namespace,
        "workflow": where.workflow,
        "labels": labels_text(where.labels) if where.labels else None,
        "name_part": where.name_part,
        "id_first": id_first,
        "id_last": id_last,
        "created_from": where.created_from,
        "created_before": where.created_before,
        "input_part": where.input,
        "after_at": after_at,
        "after_id": after_id,
    }


def run_of(row: Any) -> Run:
    """A run from a row of `run_shown`."""
    return Run(
        id=row["id"],
        namespace=row["namespace"],
        name=row["name"],
        workflow=row["workflow"],
        input=row["input"],
        form=None if row["form"] is None else Form(row["form"]),
        priority=row["priority"],
        phase=Phase(row["phase"]),
        reason=row["reason"],
        message=row["message"],
        labels=json.loads(row["labels"]),
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        wake_at=row["wake_at"],
        worker=row["worker"],
        python=row["python"],
        timeout_seconds=row["timeout_seconds"],
        output=row["output"],
        failure=row["failure"],
        is_resource=row["is_resource"],
        wishes=wishes_of(row),
        numbers=json.loads(row["numbers"]),
        recurred_into=row["recurred_into"],
        first_input=row["first_input"],
    )


def wishes_of(row: Any) -> Wishes:
    """What the owner wants, from any row that has these columns."""
    return Wishes(
        suspend=row["wish_suspend"],
        cancel=row["wish_cancel"],
        deletion_policy=DeletionPolicy(row["deletion_policy"]),
        ttl_seconds=row["ttl_seconds"],
    )
