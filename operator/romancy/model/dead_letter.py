"""A dead letter: an event that a run has emitted, and that no sink took."""

from datetime import datetime
from uuid import UUID

from romancy.model.event import CloudEvent
from romancy.model.record import record


@record
class DeadLetter:
    """An event that no sink took. `run_name` is empty if the run has been purged."""

    id: int
    run_id: UUID
    namespace: str
    run_name: str
    at: datetime
    died_at: datetime
    attempts: int
    failure: str
    event: CloudEvent
