"""What a run has to write, gathered until it is handed to the journal, and what waits for it to be durable."""

import asyncio
from collections.abc import Callable, Sequence
from uuid import UUID

from romancy.errors import RomancyError
from romancy.model.command import CancelActivity, Command
from romancy.model.history import Attempt, Entry
from romancy.store.interface import Begin, Flushed, Journal, Keep, LetGo, RunWrite

ENTRIES_A_WRITE_MAX = 100
BYTES_A_WRITE_MAX = (
    1024 * 1024
)  # a write holds one payload more at most: it must fit into a flush, or the run is refused


class RunWasThereError(RomancyError):
    """The run that was to begin exists."""

    reason = "RunExists"

    def __init__(self) -> None:
        super().__init__("the run exists already")


class Writing:
    """The writes of one run under one claim.

    Attributes:
        claim: its number.
        begin: the run to insert with the next write.
        entries, keep, commands: what has gathered; commands are carried out when the write is durable.
        losses_noted: the losses of this claim are among the attempts of the next write.
        error: of the first write that failed.

    Args:
        act: carries out commands.
        changed: called when a write failed, or when activities have been cancelled.
    """

    def __init__(
        self,
        journal: Callable[[], Journal],
        run_id: UUID,
        claim: int,
        begin: Begin | None,
        act: Callable[[Sequence[Command]], None],
        changed: Callable[[], None],
    ) -> None:
        self.claim = claim
        self.begin = begin
        self.entries: list[Entry] = []
        self.losses_noted = False
        self.keep: Keep | None = None
        self.commands: list[Command] = []
        self.error: BaseException | None = None
        self._journal, self._run_id, self._act, self._changed = journal, run_id, act, changed
        self._beginning: asyncio.Future[Flushed] | None = None
        self._in_flight = 0
        self._cancels_in_flight = 0
        self._entries_bytes = 0

    @property
    def is_all_written(self) -> bool:
        """No write is on its way."""
        return self._in_flight == 0

    @property
    def has_cancels(self) -> bool:
        """Activities are to be cancelled when a write is durable that is not yet."""
        return self._cancels_in_flight > 0 or _has_cancels(self.commands)

    @property
    def is_full(self) -> bool:
        """What has gathered must be written before more is added."""
        return len(self.entries) >= ENTRIES_A_WRITE_MAX or self._entries_bytes >= BYTES_A_WRITE_MAX

    def add(self, entry: Entry) -> None:
        """Something happened."""
        self.entries.append(entry)
        self._entries_bytes += len(entry.payload)

    def submit(
        self,
        attempts: Sequence[Attempt],
        then: LetGo | None,
        durable: Callable[[RunWrite], None],
        settled: Callable[[], None],
    ) -> "asyncio.Future[Flushed] | None":
        """Hand over what has gathered; None if there was nothing, and its commands are carried out at once.

        Args:
            durable: called when it is, before its commands are carried out.
            settled: called after that.
        """
        commands, self.commands = self.commands, []
        if not (self.begin or self.entries or attempts or self.keep or then or self.losses_noted):
            self._act(commands)
            if _has_cancels(commands):
                self._changed()  # the run may be idle now
            return None
        write = RunWrite(
            self._run_id,
            self.claim,
            begin=self.begin,
            entries=tuple(self.entries),
            attempts=tuple(attempts),
            then=then or self.keep,
            losses_noted=self.losses_noted,
        )
        self.begin, self.entries, self.keep, self.losses_noted = None, [], None, False
        self._entries_bytes = 0
        cancels = _has_cancels(commands)
        self._in_flight += 1
        self._cancels_in_flight += cancels
        future = self._journal().submit(write)
        if write.begin is not None:
            self._beginning = future

        def done(future: "asyncio.Future[Flushed]") -> None:
            self._in_flight -= 1
            self._cancels_in_flight -= cancels
            if future.cancelled():
                self._changed()
            elif (error := future.exception()) is not None:
                self.error = self.error or error
                self.begin = write.begin  # refused with all the rest of it
                self._changed()
            elif not future.result().began:
                self.error = self.error or RunWasThereError()
                self._changed()
            else:
                durable(write)
                if commands:
                    self._act(commands)
                if cancels:
                    self._changed()  # the run may be idle now
                settled()

        future.add_done_callback(done)
        return future

    async def write_alone(self, then: LetGo) -> Flushed:
        """Write this and, if it is still owed, the begin; all else is given up."""
        return await self._journal().submit(RunWrite(self._run_id, self.claim, begin=self.begin, then=then))

    def raise_error(self) -> None:
        """Raise what the first failed write failed with."""
        if self.error is None and self._beginning is not None and _is_refused(self._beginning):
            # The answer is there, and `done` has not had its turn: what was written now would be written to another's run.
            self.error = RunWasThereError()
        if self.error is not None:
            raise self.error


def _is_refused(beginning: "asyncio.Future[Flushed]") -> bool:
    is_answered = beginning.done() and not beginning.cancelled() and beginning.exception() is None
    return is_answered and not beginning.result().began


def _has_cancels(commands: Sequence[Command]) -> bool:
    return bool(commands) and any(isinstance(command, CancelActivity) for command in commands)
