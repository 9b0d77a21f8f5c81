"""sql/channels.sql."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from uuid import UUID

from romancy.model.channel import type_of
from romancy.testing.memory.tables import EventRow, InboxRow, Row, Tables

_PREFIX = type_of("")


class Channels(Tables):
    """Messages between runs."""

    def fix_modes(self, *, names: Sequence[str], modes: Sequence[str]) -> list[Row]:
        for name, mode in zip(names, modes, strict=True):
            self.channel.setdefault(name, mode)
        return [{"name": name, "mode": self.channel[name]} for name in dict.fromkeys(names)]

    def enqueue(self, *, source: str, event_id: str, type: str, payload: str, channel: str) -> list[Row]:
        if any((row.source, row.event_id) == (source, event_id) for row in self.event.values()):
            return [{"is_new": False}]
        self.events_ever += 1
        self.event[self.events_ever] = EventRow(source, event_id, type, None, self.clock.now(), payload, {})
        self.pending.setdefault(channel, set()).add(self.events_ever)
        return [{"is_new": True}]

    def demand(self, *, channels: Sequence[str], run_ids: Sequence[UUID], numbers: Sequence[int]) -> list[Row]:
        for channel, run_id, number in zip(channels, run_ids, numbers, strict=True):
            if number not in self.outbox.get(run_id, {}):
                continue  # a late copy wants nothing
            answers = self.inbox.get(run_id, {}).values()
            if not any(row.kind == "Answer" and row.source.startswith(f"answer:{number}:") for row in answers):
                self.demands.setdefault((run_id, number), (channel, self.clock.now()))
        return []

    def undemand(self, *, run_ids: Sequence[UUID], numbers: Sequence[int]) -> list[Row]:
        for run_id, number in zip(run_ids, numbers, strict=True):
            self.demands.pop((run_id, number), None)
        return []

    def hand_out(self, *, channel: str, limit: int, due_channel: str, inbox_channel: str) -> list[Row]:
        now = self.clock.now()
        messages = sorted(self.pending.get(channel, ()))[:limit]
        wanting = sorted(
            (at, run_id, number)
            for (run_id, number), (name, at) in self.demands.items()
            if name == channel and run_id in self.due
        )
        woken: list[str] = []
        told: list[tuple[int, UUID]] = []
        handed = 0
        for event_id, (_at, run_id, number) in zip(messages, wanting, strict=False):
            row = self.due[run_id]
            wake_at = row.wake_at
            if row.worker_id is None and row.phase == "Waiting":
                wake_at = now if wake_at is None else min(wake_at, now)
            new = self.due[run_id] = replace(row, inbox_version=row.inbox_version + 1, wake_at=wake_at)
            answer = InboxRow("Answer", now, f"answer:{number}:{event_id}", "", event_id)
            self.inbox.setdefault(run_id, {})[new.inbox_version] = answer
            self.pending[channel].discard(event_id)
            del self.demands[run_id, number]
            handed += 1
            if new.is_due(now):
                woken.append(new.queue)
            if new.worker_id is not None:
                told.append((new.worker_id, run_id))
        queues_notified = self.tell(due_channel, woken)
        for worker_id, run_id in told:
            self.tell(f"{inbox_channel}{worker_id}", [run_id.hex])
        return [{"handed": handed, "queues_notified": queues_notified, "workers_notified": len(told)}]

    def give_back(self, *, run_ids: Sequence[UUID], numbers: Sequence[int], event_ids: Sequence[int]) -> list[Row]:
        back = []
        for run_id, number, event_id in zip(run_ids, numbers, event_ids, strict=True):
            if self.outbox.get(run_id, {}).pop(number, None) is not None:
                back.append(event_id)
            if not self.outbox.get(run_id):
                self.outbox.pop(run_id, None)
        return [{"channel": channel} for channel in self._back(back)]

    def return_untaken(self, *, run_ids: Sequence[UUID], numbers: Sequence[int]) -> list[Row]:
        lost: list[int] = []
        freed: set[str] = set()
        for run_id, upto in zip(run_ids, numbers, strict=True):
            had = {entry.inbox for entry in self.history.get(run_id, {}).values()}
            for number, row in list(self.inbox.get(run_id, {}).items()):
                if row.kind != "Answer" or row.event_id is None or row.is_had or number in had:
                    continue
                if int(row.source.split(":")[1]) <= upto:
                    self.inbox[run_id][number] = replace(row, is_had=True)
                    lost.append(row.event_id)
            for key in [key for key in self.demands if key[0] == run_id and key[1] <= upto]:
                freed.add(self.demands.pop(key)[0])
        return [{"channel": channel} for channel in sorted({*self._back(lost), *freed})]

    def _back(self, event_ids: Iterable[int]) -> list[str]:
        channels = []
        for event_id in event_ids:
            channel = self.event[event_id].type.removeprefix(_PREFIX)
            self.pending.setdefault(channel, set()).add(event_id)
            channels.append(channel)
        return list(dict.fromkeys(channels))

    def join_groups(self, *, groups: Sequence[str], run_ids: Sequence[UUID], numbers: Sequence[int]) -> list[Row]:
        for group, run_id, number in zip(groups, run_ids, numbers, strict=True):
            if number in self.outbox.get(run_id, {}):
                self.member.add((group, run_id))
        return []

    def leave_groups(self, *, groups: Sequence[str | None], run_ids: Sequence[UUID]) -> list[Row]:
        for group, run_id in zip(groups, run_ids, strict=True):
            self.member -= {each for each in self.member if each[1] == run_id and group in (None, each[0])}
        return []

    def read_members(self, *, group: str) -> list[Row]:
        return [{"run_id": run_id} for name, run_id in sorted(self.member) if name == group and run_id in self.due]
