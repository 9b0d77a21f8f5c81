"""Channels: messages between runs. A message is an event; of a competing channel it is pending until a run takes it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from romancy.errors import ChannelModeError, PayloadTooLargeError, RunNotFoundError, StoreUnavailableError
from romancy.model import channel as channels
from romancy.model.channel import ChannelMode
from romancy.model.event import CloudEvent
from romancy.model.history import Message, MessageKind
from romancy.model.outbox import OutboxRow
from romancy.store.events import Events
from romancy.store.notify import due_channel, inbox_channel
from romancy.store.queries import SQL
from romancy.store.texts import size_bytes

HANDED_MAX: Final = 100
_TRIES_MAX: Final = 5
_ALL: Final = 2**31 - 1


class Channels(Events):
    """The part of the store that knows channels and groups."""

    async def publish(self, channel: str, mode: ChannelMode, message: CloudEvent) -> None:
        """Publish a message; the same source and id is the same message.

        Raises:
            ChannelModeError: the channel has another mode.
            PayloadTooLargeError: the message is too large.
        """
        await self._check_mode(channel, mode)
        text = message.as_text()
        if (size := size_bytes([text])) > channels.MESSAGE_BYTES_MAX:
            raise PayloadTooLargeError(
                what=f"a message to channel {channel!r}", size_bytes=size, max_bytes=channels.MESSAGE_BYTES_MAX
            )
        if mode is ChannelMode.COMPETING:
            await self._enqueue(channel, message, text)
            await self.hand_out([channel])
        else:
            await self.send_event(message, bytes_max=channels.MESSAGE_BYTES_MAX)

    async def send_to(self, namespace: str, run: str, channel: str, mode: ChannelMode, message: CloudEvent) -> bool:
        """Send a message to one run; False if that is done, or has it already.

        Args:
            run: a UUID is an id, anything else the newest run of that name.

        Raises:
            RunNotFoundError: there is no such run.
            ChannelModeError: the channel has another mode.
        """
        await self._check_mode(channel, mode)
        try:
            found = await self.read_run(UUID(run))
        except ValueError:
            found = await self.find_run(namespace, run)
        if found is None:
            raise RunNotFoundError(run)
        receipt = await self.send_event(message, to=found.id, bytes_max=channels.MESSAGE_BYTES_MAX)
        return receipt.runs > 0

    async def _check_mode(self, channel: str, mode: ChannelMode) -> None:
        is_now = (await self._modes({channel: mode}))[channel]
        if is_now is not mode:
            raise ChannelModeError(channel=channel, mode=is_now, wanted=mode)

    async def _modes(self, wanted: Mapping[str, ChannelMode]) -> dict[str, ChannelMode]:
        for _ in range(_TRIES_MAX):
            found = await self._fix_modes(wanted)
            if len(found) == len(wanted):
                return found
        raise StoreUnavailableError("a channel was made by others at the same time")

    async def _fix_modes(self, wanted: Mapping[str, ChannelMode]) -> dict[str, ChannelMode]:
        rows = await self._fetch(SQL.fix_modes(names=list(wanted), modes=list(wanted.values())))
        return {row["name"]: ChannelMode(row["mode"]) for row in rows}

    async def _enqueue(self, channel: str, message: CloudEvent, text: str) -> None:
        await self._fetch(
            SQL.enqueue(source=message.source, event_id=message.id, type=message.type, payload=text, channel=channel)
        )

    # --- what runs ask ----------------------------------------------------------------------------------------------

    async def answer_channels(self, rows: Sequence[OutboxRow]) -> None:
        """Open channels, publish and send messages, in order; each run is told how it went."""
        for row in rows:
            asked = json.loads(row.payload)
            try:
                await self._do(row, asked)
            except ChannelModeError as error:
                told: dict[str, Any] = {"mode": error.mode}
            except RunNotFoundError:
                told = {"unknown": f"{asked['namespace']}/{asked['to']}"}
            else:
                told = {}
            await self.send([_answer(row, told)])

    async def announce(self, rows: Sequence[OutboxRow]) -> None:
        """Publish what activities have published in their transactions; they are told nothing."""
        for row in rows:
            await self._do(row, json.loads(row.payload))

    async def _do(self, row: OutboxRow, asked: dict[str, Any]) -> None:
        channel, mode = asked["channel"], ChannelMode(asked["mode"])
        if "data" not in asked:
            await self._check_mode(channel, mode)
            return
        message = channels.message_of(
            channel, asked["data"], asked["metadata"], source=f"run/{row.run_id}", id=str(row.number)
        )
        if "to" in asked:
            await self.send_to(asked["namespace"], asked["to"], channel, mode, message)
        else:
            await self.publish(channel, mode, message)

    async def take(self, rows: Sequence[OutboxRow]) -> None:
        """Runs want a message of a competing channel: the next that is pending, or that comes."""
        names = [json.loads(row.payload)["channel"] for row in rows]
        await self._demand(rows, names)
        await self.hand_out(names)

    async def _demand(self, rows: Sequence[OutboxRow], names: Sequence[str]) -> None:
        await self._fetch(
            SQL.demand(channels=list(names), run_ids=[row.run_id for row in rows], numbers=[row.number for row in rows])
        )

    async def undemand(self, rows: Sequence[OutboxRow]) -> None:
        """They want it no more."""
        numbers = [json.loads(row.payload)["number"] for row in rows]
        await self._fetch(SQL.undemand(run_ids=[row.run_id for row in rows], numbers=numbers))

    async def hand_out(self, names: Iterable[str]) -> None:
        """Bring pending messages of these channels to those who want one."""
        for name in dict.fromkeys(names):
            while await self._hand_out(name) >= HANDED_MAX:
                pass

    async def _hand_out(self, name: str) -> int:
        [row] = await self._fetch(
            SQL.hand_out(
                channel=name,
                limit=HANDED_MAX,
                due_channel=due_channel(self.settings),
                inbox_channel=inbox_channel(self.settings),
            )
        )
        return int(row["handed"])

    async def give_back(self, rows: Sequence[OutboxRow]) -> None:
        """Messages that came too late are pending again. Deletes the rows."""
        event_ids = [json.loads(row.payload)["event"] for row in rows]
        found = await self._fetch(
            SQL.give_back(
                run_ids=[row.run_id for row in rows], numbers=[row.number for row in rows], event_ids=event_ids
            )
        )
        await self.hand_out([row["channel"] for row in found])

    async def return_untaken(self, upto: Mapping[UUID, int]) -> None:
        """Runs that are done, or whose iteration is over, give back what they were handed and have not had."""
        found = await self._fetch(SQL.return_untaken(run_ids=list(upto), numbers=list(upto.values())))
        await self.hand_out([row["channel"] for row in found])

    # --- groups -------------------------------------------------------------------------------------------------------

    async def join_groups(self, rows: Sequence[OutboxRow]) -> None:
        """Runs become members."""
        groups = [json.loads(row.payload)["group"] for row in rows]
        run_ids, numbers = [row.run_id for row in rows], [row.number for row in rows]
        await self._fetch(SQL.join_groups(groups=groups, run_ids=run_ids, numbers=numbers))

    async def leave_groups(self, groups: Sequence[tuple[str | None, UUID]]) -> None:
        """Runs leave a group, or all (None)."""
        names, run_ids = [name for name, _ in groups], [run_id for _, run_id in groups]
        await self._fetch(SQL.leave_groups(groups=names, run_ids=run_ids))

    async def read_members(self, group: str) -> list[UUID]:
        """The open runs of a group."""
        return [row["run_id"] for row in await self._fetch(SQL.read_members(group=group))]


def _answer(row: OutboxRow, told: dict[str, Any]) -> Message:
    return Message(row.run_id, MessageKind.ANSWER, f"answer:{row.number}:", json.dumps(told))
