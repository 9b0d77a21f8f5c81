"""Every metric: its name, its labels, what it tells. `GET /metrics` shows them in Prometheus' text format.

Labels are names in code (workflows, activities), reasons and outcomes: never ids, or each run would be a series of its own.
"""

from collections.abc import Iterable
from functools import cache
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, PlatformCollector, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase

REGISTRY: Final = CollectorRegistry()
PROCESS: Final = (ProcessCollector(registry=REGISTRY), PlatformCollector(registry=REGISTRY))

_SHORT: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LONG: Final = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600, 21600, 86400, 604800)
_SIZES: Final = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000)


class KnownGauge(Gauge):
    """A gauge without labels that is there only while its value is known: an old one is taken for the truth, and so is a 0."""

    _is_known = False

    def set(self, value: float) -> None:
        """This is the value from now on."""
        super().set(value)
        self._is_known = True

    def forget(self) -> None:
        """Nobody knows the value any more."""
        self._is_known = False

    def collect(self) -> Iterable[Metric]:
        """The metric, if its value is known."""
        return super().collect() if self._is_known else ()


@cache
def child[M: MetricWrapperBase](metric: M, *values: str) -> M:
    """The child of a metric with these labels: found once, for what happens in each step of a run."""
    return metric.labels(*values)


# --- gateway --------------------------------------------------------------------------------------------------------------

EVENTS_TAKEN: Final = Counter(
    "romancy_events_taken_total",
    "Events that came by HTTP and were stored here; those sent again are not counted.",
    registry=REGISTRY,
)

# --- worker ---------------------------------------------------------------------------------------------------------------

RUNS_FINISHED: Final = Counter(
    "romancy_runs_finished_total",
    "Runs that have ended here, by outcome: Succeeded, Failed, Cancelled. Alert on Failed.",
    ["workflow", "outcome"],
    registry=REGISTRY,
)
RUN_SECONDS: Final = Histogram(
    "romancy_run_duration_seconds",
    "From the first claim of a run to its end.",
    ["workflow", "outcome"],
    buckets=_LONG,
    registry=REGISTRY,
)
RUNS_CLAIMED: Final = Counter(
    "romancy_runs_claimed_total", "Runs that this worker took up, new ones and others.", ["workflow"], registry=REGISTRY
)
RUNS_BLOCKED: Final = Counter(
    "romancy_runs_blocked_total",
    "Runs that could not go on with this build of their workflow, by reason.",
    ["workflow", "reason"],
    registry=REGISTRY,
)
ACTIVITY_SECONDS: Final = Histogram(
    "romancy_activity_duration_seconds",
    "Attempts of activities, by what came of them: completed, failed, cancelled.",
    ["activity", "outcome"],
    buckets=_LONG,
    registry=REGISTRY,
)
ACTIVITY_RETRIES: Final = Counter(
    "romancy_activity_retries_total",
    "Failed attempts that are followed by another; the last one of an activity is not among them.",
    ["activity"],
    registry=REGISTRY,
)
WORKER_SLOTS: Final = Gauge(
    "romancy_worker_slots", "Slots of a worker, by state: used, free.", ["worker", "state"], registry=REGISTRY
)
WORKER_PARKED: Final = Gauge(
    "romancy_worker_parked_runs",
    "Parked runs that are kept in memory to save their replay.",
    ["worker"],
    registry=REGISTRY,
)

EVENTS_DELIVERED: Final = Counter(
    "romancy_outbox_delivered_total", "Emitted events that the sink took from this process.", registry=REGISTRY
)
DELIVERIES_FAILED: Final = Counter(
    "romancy_outbox_failed_total",
    "Attempts to deliver an emitted event that failed, by what becomes of it: retried, dead.",
    ["outcome"],
    registry=REGISTRY,
)

# --- store ----------------------------------------------------------------------------------------------------------------

FLUSH_RUNS: Final = Histogram(
    "romancy_flush_runs", "Runs that were written by one flush of the journal.", buckets=_SIZES, registry=REGISTRY
)
FLUSH_SECONDS: Final = Histogram(
    "romancy_flush_seconds", "From sending a flush to its commit.", buckets=_SHORT, registry=REGISTRY
)
WORKERS_BURIED: Final = Counter("romancy_workers_buried_total", "Workers that this process buried.", registry=REGISTRY)
RUNS_RECOVERED: Final = Counter(
    "romancy_runs_recovered_total", "Runs that were freed by burials, to go on elsewhere.", registry=REGISTRY
)

EVENTS_PURGED: Final = Counter(
    "romancy_events_purged_total", "Events that were deleted when their retention was over.", registry=REGISTRY
)
RUNS_PURGED: Final = Counter(
    "romancy_runs_purged_total",
    "Ended runs that this process deleted, by outcome: kept long enough, or purged by hand.",
    ["outcome"],
    registry=REGISTRY,
)

# --- control --------------------------------------------------------------------------------------------------------------

LEADER: Final = Gauge(
    "romancy_leader", "1 while this process holds the Lease, else 0. Alert if the sum is not 1.", registry=REGISTRY
)
STATUS_WRITES: Final = Counter(
    "romancy_status_writes_total",
    "Writes of a status of a resource, by what came of them: written, gone (its object), refused (a right or the definition is "
    "missing), failed (tried again).",
    ["outcome"],
    registry=REGISTRY,
)
KUBERNETES_EVENTS: Final = Counter(
    "romancy_kubernetes_events_total",
    "Events of Kubernetes about runs and the engine, by what came of them: written, dropped (more at once than there is room "
    "for), refused (a right is missing), failed. The statuses say it all the same.",
    ["outcome"],
    registry=REGISTRY,
)
DUE_RUNS: Final = KnownGauge(
    "romancy_due_runs", "Runs that wait for a free slot of a worker. Only the leader has it.", registry=REGISTRY
)
OLDEST_DUE_SECONDS: Final = KnownGauge(
    "romancy_oldest_due_seconds",
    "How long the longest due run has waited for a worker. Only the leader has it. Alert on it: add workers.",
    registry=REGISTRY,
)
HELD_RUNS: Final = KnownGauge(
    "romancy_held_runs", "Runs in the hands of workers. Only the leader has it.", registry=REGISTRY
)
OPEN_RUNS: Final = KnownGauge(
    "romancy_open_runs", "Runs that have not ended. Only the leader has it.", registry=REGISTRY
)
BLOCKED_RUNS: Final = KnownGauge(
    "romancy_blocked_runs",
    "Runs that no build of their workflow could go on with. Only the leader has it. Alert on it.",
    registry=REGISTRY,
)
WORKERS: Final = KnownGauge(
    "romancy_workers", "Workers with a valid lease. Only the leader has it. Alert on 0.", registry=REGISTRY
)
EVENTS_PENDING: Final = KnownGauge(
    "romancy_outbox_pending",
    "Emitted events that the sink has not taken yet, counted up to 100,001. Only the leader has it. Alert if it grows.",
    registry=REGISTRY,
)
DEAD_LETTERS: Final = KnownGauge(
    "romancy_outbox_dead",
    "Emitted events that the sink did not take, counted up to 100,001. Only the leader has it. Alert on it.",
    registry=REGISTRY,
)
HEALTH: Final = (
    EVENTS_PENDING,
    DEAD_LETTERS,
    DUE_RUNS,
    OLDEST_DUE_SECONDS,
    HELD_RUNS,
    OPEN_RUNS,
    BLOCKED_RUNS,
    WORKERS,
)
"""What the leader knows by asking the store; forgotten when it leads no more or the store does not answer."""
