"""sql/events.sql."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from romancy.testing.memory.tables import EventRow, Row, Tables


class Events(Tables):
    """Events, and who waits for them."""

    def store_events(
        self,
        *,
        sources: Sequence[str],
        event_ids: Sequence[str],
        types: Sequence[str],
        targets: Sequence[UUID | None],
        payloads: Sequence[str],
        attributes: Sequence[str],
    ) -> list[Row]:
        known = {(row.source, row.event_id): number for number, row in self.event.items()}
        rows: list[Row] = []
        given = zip(sources, event_ids, types, targets, payloads, attributes, strict=True)
        for place, (source, event_id, type, target, payload, searched) in enumerate(given, 1):
            self.events_ever += 1
            number = known.setdefault((source, event_id), self.events_ever)
            is_new = number == self.events_ever
            if is_new:
                now = self.clock.now()
                self.event[number] = EventRow(source, event_id, type, target, now, payload, json.loads(searched))
            rows.append({"place": place, "id": number, "is_new": is_new})
        return rows

    def read_interest(self, *, types: Sequence[str]) -> list[Row]:
        nothing = dict.fromkeys(("attributes", "namespace", "workflow", "wanted", "form"))
        asked = set(types)
        shapes = [
            {**nothing, "type": of, "attributes": attributes} for of, attributes in sorted(self.shape) if of in asked
        ]
        return shapes + [
            {
                "type": of,
                "attributes": None,
                "namespace": namespace,
                "workflow": workflow,
                "wanted": wanted,
                "form": form,
            }
            for (namespace, workflow), (of, wanted, form) in sorted(self.starter.items())
            if of in asked
        ]

    def set_starters(
        self,
        *,
        namespace: str,
        offered: Sequence[str],
        workflows: Sequence[str],
        types: Sequence[str],
        wanteds: Sequence[str],
        forms: Sequence[str],
    ) -> list[Row]:
        for workflow in offered:
            self.starter.pop((namespace, workflow), None)
        for workflow, type, wanted, form in zip(workflows, types, wanteds, forms, strict=True):
            self.starter[namespace, workflow] = (type, wanted, form)
        return []

    def find_waiting(self, *, keys: Sequence[UUID]) -> list[Row]:
        wanted = set(keys)
        return [
            {"key": key, "run_id": run_id}
            for run_id, made in self.subscription.items()
            for key in sorted(wanted & set(made.values()))
        ]

    def subscribe(
        self,
        *,
        run_ids: Sequence[UUID],
        numbers: Sequence[int],
        keys: Sequence[UUID],
        types: Sequence[str],
        shapes: Sequence[str],
    ) -> list[Row]:
        there = []
        for run_id, number, key, type, shape in zip(run_ids, numbers, keys, types, shapes, strict=True):
            if (row := self.outbox.get(run_id, {}).get(number)) is not None:  # a late copy subscribes nobody
                self.shape.add((type, shape))
                self.subscription.setdefault(run_id, {}).setdefault(number, key)
                there.append({"run_id": run_id, "number": number, "at": row.at})
        return there

    def unsubscribe(self, *, run_ids: Sequence[UUID], numbers: Sequence[int]) -> list[Row]:
        for run_id, number in zip(run_ids, numbers, strict=True):
            self.subscription.get(run_id, {}).pop(number, None)
        return []

    def unsubscribe_all(self, *, run_ids: Sequence[UUID]) -> list[Row]:
        for run_id in run_ids:
            if run_id not in self.due:
                self.subscription.pop(run_id, None)
        return []

    def find_events(
        self, *, run_ids: Sequence[UUID], matches: Sequence[str], sinces: Sequence[datetime | None], limit: int
    ) -> list[Row]:
        found: list[Row] = []
        for run_id, match, since in zip(run_ids, matches, sinces, strict=True):
            found += self._kept(run_id, json.loads(match), since, limit)
        return found

    def find_events_of_type(
        self, *, run_ids: Sequence[UUID], types: Sequence[str], sinces: Sequence[datetime | None], limit: int
    ) -> list[Row]:
        found: list[Row] = []
        for run_id, type, since in zip(run_ids, types, sinces, strict=True):
            found += self._kept(run_id, {"ce-type": type}, since, limit)
        return found

    def _kept(self, run_id: UUID, match: dict[str, Any], since: datetime | None, limit: int) -> list[Row]:
        if (run := self.run.get(run_id)) is None:
            return []
        had = {row.event_id for row in self.inbox.get(run_id, {}).values()}
        begin = since or run.created_at
        found = [
            {"run_id": run_id, "id": number}
            for number, row in sorted(self.event.items())
            if row.target is None and row.at >= begin and number not in had and _contains(row.attributes, match)
        ]
        return found[:limit]


def _contains(attributes: dict[str, Any], match: dict[str, Any]) -> bool:
    """jsonb's @>: 1 is no true."""
    return all(
        name in attributes
        and attributes[name] == value
        and isinstance(attributes[name], bool) == isinstance(value, bool)
        for name, value in match.items()
    )
