"""What a run has to write, gathered until it is handed to the journal, and what waits for it to be durable."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from romancy.model.command import CancelActivity, Command
from romancy.model.history import Attempt, Entry
from romancy.model.outbox import Outgoing
from romancy.store.interface import Begin, Keep, LetGo, RunWrite
from romancy.worker.attempts import Open

ENTRIES_A_WRITE_MAX = 100
BYTES_A_WRITE_MAX = (
    1024 * 1024
)  # a write holds one payload more at most: it must fit into a flush, or the run is refused


@dataclass(slots=True, eq=False)
class Sent:
    """A write that is on its way.

    Attributes:
        commands: carried out when it is durable.
        activities: may start when it is durable.
    """

    write: RunWrite
    commands: list[Command]
    activities: list[Open]
    has_cancels: bool


class Writing:
    """The writes of one run under one claim.

    Attributes:
        claim: its number.
        begin: the run to insert with the next write.
        entries, outbox, keep, commands: what has gathered.
        losses_noted: the losses of this claim are among the attempts of the next write.
    """

    def __init__(self, run_id: UUID, claim: int, begin: Begin | None) -> None:
        self.claim = claim
        self.begin = begin
        self.entries: list[Entry] = []
        self.outbox: list[Outgoing] = []
        self.losses_noted = False
        self.keep: Keep | None = None
        self.commands: list[Command] = []
        self._run_id = run_id
        self._in_flight = 0
        self._cancels_in_flight = 0
        self._entries_bytes = 0

    @property
    def is_empty(self) -> bool:
        """Nothing has gathered that a position or a command hangs on."""
        return not (self.entries or self.outbox or self.commands or self.begin)

    @property
    def is_all_written(self) -> bool:
        """No write is on its way."""
        return self._in_flight == 0

    @property
    def has_cancels(self) -> bool:
        """Activities are to be cancelled when a write is durable that is not yet."""
        return self._cancels_in_flight > 0 or has_cancels(self.commands)

    @property
    def is_full(self) -> bool:
        """What has gathered must be written before more is added."""
        return len(self.entries) >= ENTRIES_A_WRITE_MAX or self._entries_bytes >= BYTES_A_WRITE_MAX

    def add(self, entry: Entry) -> None:
        """Something happened."""
        self.entries.append(entry)
        self._entries_bytes += len(entry.payload)

    def post(self, outgoing: Outgoing) -> None:
        """Something is to be sent."""
        self.outbox.append(outgoing)
        self._entries_bytes += len(outgoing.payload)

    def take(self, attempts: Sequence[Attempt], then: LetGo | None) -> RunWrite | None:
        """All that has gathered as one write; None if there is nothing to write."""
        if not (self.entries or then or self.begin or attempts or self.keep or self.losses_noted or self.outbox):
            return None
        write = RunWrite(
            self._run_id,
            self.claim,
            self.begin,
            tuple(self.entries),
            tuple(attempts),
            then or self.keep,
            self.losses_noted,
            tuple(self.outbox),
        )
        self.begin, self.entries, self.keep, self.losses_noted, self.outbox = None, [], None, False, []
        self._entries_bytes = 0
        return write

    def take_entries(self) -> RunWrite:
        """What has gathered of entries and outbox, for a commit beside the journal."""
        write = RunWrite(self._run_id, self.claim, entries=tuple(self.entries), outbox=tuple(self.outbox))
        self.entries, self.outbox, self._entries_bytes = [], [], 0
        return write

    def sent(self, sent: Sent) -> None:
        """A write is on its way."""
        self._in_flight += 1
        self._cancels_in_flight += sent.has_cancels

    def answered(self, sent: Sent) -> None:
        """It has arrived, or never will."""
        self._in_flight -= 1
        self._cancels_in_flight -= sent.has_cancels

    def alone(self, then: LetGo, outbox: Sequence[Outgoing]) -> RunWrite:
        """This and, if it is still owed, the begin; all else is given up."""
        return RunWrite(self._run_id, self.claim, begin=self.begin, then=then, outbox=tuple(outbox))


def has_cancels(commands: Sequence[Command]) -> bool:
    """Activities are among what they cancel."""
    return bool(commands) and any(isinstance(command, CancelActivity) for command in commands)
