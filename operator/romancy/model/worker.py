"""A worker, as lists show it."""

from datetime import datetime

from romancy.model.record import record


@record
class WorkerRow:
    """A registered worker. `is_expired` by the database's clock; `runs` is how many it holds."""

    id: int
    name: str
    pod_uid: str
    namespace: str
    workflows: tuple[str, ...]
    build_id: str
    python: str
    started_at: datetime
    expires_at: datetime
    is_expired: bool
    is_draining: bool
    runs: int
