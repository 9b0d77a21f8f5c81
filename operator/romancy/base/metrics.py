"""Every metric: its name, its labels, what it tells. `GET /metrics` shows them in Prometheus' text format.

Labels are names in code (workflows, activities), reasons and outcomes: never ids, or each run would be a series of its own.
"""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector

REGISTRY: Final = CollectorRegistry()
PROCESS: Final = (ProcessCollector(registry=REGISTRY), PlatformCollector(registry=REGISTRY))

_SHORT: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LONG: Final = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600, 21600, 86400, 604800)
_SIZES: Final = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000)

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
