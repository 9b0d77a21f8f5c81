"""Failed runs that go on: from their last checkpoint, with all attempts of what had failed."""

import json
from uuid import UUID

from romancy.errors import RetryRefusedError, RunNotFoundError
from romancy.model.history import MessageKind
from romancy.model.retried import point_of
from romancy.model.run import Phase, Reason, Run
from romancy.store.claims import Claims
from romancy.store.notify import due_channel, mirror_channel
from romancy.store.queries import SQL

_ANEW = "start a new run"


class Retries(Claims):
    """The part of the store that retries runs."""

    async def retry_run(self, run_id: UUID, *, by: str = "") -> bool:
        """Have a failed run go on from its last checkpoint. False if it was retried before, and is open.

        Args:
            by: who asks, kept with the message.

        Raises:
            RunNotFoundError: there is no such run.
            RetryRefusedError: it has not failed, or not in a way that can be taken up; nothing was changed.
        """
        while True:
            run = await self.read_run(run_id)
            if run is None:
                raise RunNotFoundError(str(run_id))
            if not run.is_done and await self._was_retried(run_id):
                return False
            _refuse_others(run)
            if left := (await self.read_outboxes([run_id])).get(run_id):
                await self.carry_out(left)  # its end: what it had open elsewhere is closed
            history = await self.read_history(run_id)
            last = history[-1].position if history else run.numbers.get("position", 0)
            [row] = await self._fetch(
                SQL.retry_run(
                    run_id=run_id,
                    finished_at=run.finished_at,
                    payload=json.dumps({"from": point_of(run, history), "to": last, "by": by}),
                    due_channel=due_channel(self.settings),
                    mirror_channel=mirror_channel(self.settings),
                )
            ) or [None]
            if row is not None and row["is_retried"]:
                return True
            if row is not None and await self.read_run(run_id) == run:
                raise _refused(run, row["is_compensated"], is_child=row["is_child"], is_gone=row["is_gone"])

    async def _was_retried(self, run_id: UUID) -> bool:
        return any(row.kind is MessageKind.RETRY for row in await self.read_inbox(run_id, 0))


def _refuse_others(run: Run) -> None:
    """What the row of a run says against its retry."""
    if run.recurred_into is not None:
        raise RetryRefusedError(
            f"run {run.id} is a former iteration of {run.recurred_into}", hint=f"retry {run.recurred_into}"
        )
    if run.phase is not Phase.FAILED:
        raise RetryRefusedError(
            f"run {run.namespace}/{run.name} is {run.phase}; only a run that has Failed is retried",
            hint=_ANEW if run.is_done else "see why it does not move: romancy why",
        )
    if run.reason == Reason.COMPENSATION_FAILED:
        raise _refused(run, True, is_child=False, is_gone=False)
    if run.wishes.cancel:
        raise RetryRefusedError(
            f"the WorkflowRun {run.namespace}/{run.name} asks for its cancellation", hint="apply another WorkflowRun"
        )


def _refused(run: Run, is_compensated: bool | None, *, is_child: bool, is_gone: bool) -> RetryRefusedError:
    named = f"run {run.namespace}/{run.name}"
    if is_compensated is None:
        return RetryRefusedError(
            f"{named} ended under a former release, which has not kept whether something was taken back", hint=_ANEW
        )
    if is_compensated:
        return RetryRefusedError(f"{named} has taken back what it had done", hint=_ANEW)
    if is_child:
        return RetryRefusedError(
            f"{named} is a child, and the run that started it knows that it failed",
            hint="retry the run that started it",
        )
    if is_gone:
        return RetryRefusedError(f"the WorkflowRun {named.removeprefix('run ')} was deleted", hint="apply it again")
    return RetryRefusedError(
        f"{named} had child runs open, which were cancelled with it or have ended since", hint=_ANEW
    )
