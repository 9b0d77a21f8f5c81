"""Every option, by part.

Environment: `ROMANCY_<PART>__<OPTION>`, as in `ROMANCY_WORKER__SLOTS=100`. Chart values have the same names.
"""

import difflib
import json
import os
import platform
import re
import socket
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from romancy.errors import SettingsError
from romancy.model.retry import RetryPolicy
from romancy.model.run import KEPT_SECONDS_MAX, KEPT_SECONDS_MIN


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DatabaseSettings(_Part):
    """PostgreSQL 14 or newer. The engine's connections are direct: no pooler in transaction mode between."""

    url: SecretStr = SecretStr("")
    """`postgresql://user:password@host:5432/name?sslmode=verify-full`. Also read from DATABASE_URL."""
    schema_name: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,62}$")] = "romancy"
    """The one schema that holds everything."""
    journal_connections: Annotated[int, Field(ge=1, le=8)] = 1
    """Connections that flush side by side; one is fastest below some thousand flushes a second."""
    pool_max: Annotated[int, Field(ge=2, le=100)] = 4
    """Connections for everything that is not the journal, claims, LISTEN or the lease."""
    transactions_max: Annotated[int, Field(ge=1, le=100)] = 10
    """Connections for transactional activities, opened when there are any; more of them at once wait."""
    connect_timeout_seconds: Annotated[float, Field(gt=0)] = 5
    statement_timeout_seconds: Annotated[float, Field(gt=0)] = 10
    """Above lock_timeout, so that a lock that is not given is told apart."""
    lock_timeout_seconds: Annotated[float, Field(gt=0)] = 5
    flush_rows_max: Annotated[int, Field(ge=1)] = 1000
    """Runs in one flush: bounds the transaction."""
    flush_bytes_max: Annotated[int, Field(ge=1)] = 8 * 1024 * 1024
    give_up_seconds: Annotated[float, Field(gt=0)] = 60
    """A flush is repeated for so long while PostgreSQL does not answer; then the worker lets itself be buried."""
    losses_max: Annotated[int, Field(ge=1)] = 5
    """Workers lost in a row without an entry, until a run is Blocked with reason WorkerLost."""


class WorkerSettings(_Part):
    """What a worker takes on."""

    name: str = ""
    """Shown in status and logs; empty: the pod's or host's name with the process id."""
    namespace: str = "default"
    """Kubernetes namespace of this process, and of runs that it starts by `start`."""
    pod_uid: str = ""
    """uid of the pod (downward API): its deletion then buries this worker at once."""
    build_id: str = ""
    """Names this build of the workflows; empty: a digest of their source files."""
    slots: Annotated[int, Field(ge=1, le=10_000)] = 500
    """Runs in memory at once."""
    retry: RetryPolicy = RetryPolicy()
    """How activities are tried again that do not say it themselves, as JSON: {"max_attempts": 3, "initial_interval": 0.5}."""
    activities_max: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Asynchronous activities at once."""
    threads_max: Annotated[int, Field(ge=1, le=1000)] = 16
    """Plain-function activities at once, each in a thread."""
    lease_seconds: Annotated[float, Field(ge=0.2)] = 6
    """How long a worker is believed to live without a sign. Renewed at a third of it."""
    poll_seconds: Annotated[float, Field(ge=0.05)] = 5
    """The slow poll: the safety net behind NOTIFY and the own next due time."""
    park_after_seconds: Annotated[float, Field(ge=0)] = 1
    """A run whose next timer or retry is nearer than this stays in memory."""
    parked_max: Annotated[int, Field(ge=0)] = 200
    """Recently parked runs that are kept in memory to save their replay."""
    payload_bytes_max: Annotated[int, Field(ge=1024)] = 1024 * 1024
    """The largest input and activity result. What workflow code hands over (arguments, its output) may always have 1 MiB:
    whether code is refused must not depend on a setting, or it would not replay."""
    history_entries_max: Annotated[int, Field(ge=10)] = 50_000
    drain_seconds: Annotated[float, Field(ge=0)] = 30
    """How long activities may take to end after SIGTERM; everything else is handed over at once."""
    loop_stuck_seconds: Annotated[float, Field(gt=0)] = 30
    """An event loop that has not turned for so long ends the process, with the stack that blocks it."""
    step_seconds_max: Annotated[float, Field(gt=0)] = 10
    """The longest step of a workflow's code."""


class ControlSettings(_Part):
    """The part that talks to Kubernetes, in the pod that holds the Lease."""

    enabled: bool = True
    kubeconfig: str = ""
    """Path; empty: the service account in a cluster, else $KUBECONFIG or ~/.kube/config."""
    namespace: str = "default"
    """The engine's own namespace: its Lease, its WorkflowEngine and its pods."""
    watch_namespaces: Annotated[tuple[str, ...], NoDecode] = ()
    """Namespaces whose WorkflowRuns are executed, separated by commas; empty: the whole cluster."""
    engine: str = "romancy"
    """Name of this engine: objects whose status names another are left alone."""
    lease_seconds: Annotated[float, Field(ge=1)] = 6
    renew_deadline_seconds: Annotated[float, Field(gt=0)] = 4
    retry_seconds: Annotated[float, Field(gt=0)] = 1
    bury_seconds: Annotated[float, Field(gt=0)] = 2
    """Interval of the kopf timer that looks for dead workers."""
    relist_seconds: Annotated[float, Field(gt=0)] = 600
    """Interval at which the objects are compared with the store."""
    intake_max: Annotated[int, Field(ge=100)] = 20_000
    """Objects that wait to be filed; above it the next comparison finds the rest."""
    status_writes_at_once: Annotated[int, Field(ge=1, le=100)] = 10
    status_writes_per_second: Annotated[float, Field(gt=0)] = 50
    status_hold_seconds: Annotated[float, Field(ge=0)] = 0.5
    """The first write of a run's status waits so long: a short run costs one."""
    output_inline_bytes_max: Annotated[int, Field(ge=0)] = 16 * 1024
    ttl_seconds: Annotated[int, Field(ge=0)] = 86_400
    """ttlSecondsAfterFinished of runs that do not give it."""

    @field_validator("watch_namespaces", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _long_enough(seconds: int) -> int:
    if 0 < seconds < KEPT_SECONDS_MIN:
        raise ValueError(f"must be 0 (for ever) or at least {KEPT_SECONDS_MIN}, not {seconds}")
    return seconds


Seconds = Annotated[int, Field(ge=0, le=KEPT_SECONDS_MAX), AfterValidator(_long_enough)]


class RetentionSettings(_Part):
    """How long ended runs are kept in PostgreSQL, by outcome: the row with input and output, history and messages; and events.

    0, the default, keeps them for ever: a deletion can't be taken back, history is what people look at when something went wrong,
    and as long as a run is kept, starting its id again is that run and no second one.
    """

    succeeded_seconds: Seconds = 0
    """Kept so long after they ended, at least 600 (ten minutes); 0: for ever. A run whose WorkflowRun is there is kept
    until that is gone (ttlSecondsAfterFinished)."""
    failed_seconds: Seconds = 0
    """The same for runs that failed, timed out ones too."""
    cancelled_seconds: Seconds = 0
    """The same for cancelled ones."""

    events_seconds: Annotated[float, Field(ge=60, le=10 * 365 * 86_400)] = 86_400
    """How long events are kept, and messages of broadcast channels. So long after it came an event is found by a run that begins
    to wait for it, and is recognized when it is sent again. What is still to be received is kept longer."""
    dead_letters_seconds: Seconds = 0
    """Emitted events that the sink did not take are kept so long after that; 0: for ever."""


class GatewaySettings(_Part):
    """HTTP."""

    host: str = "0.0.0.0"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """0: any free port, logged at start."""
    access: Annotated[str, Field(pattern="^(kubernetes|tokens|open)?$")] = ""
    """Who may use the API. kubernetes: the cluster says whose a token is, and RBAC on the resources of romancy.dev what they
    may do. tokens: those of `tokens_file`. open: everybody, everything. By default kubernetes where
    control is enabled, else tokens."""
    audiences: Annotated[tuple[str, ...], NoDecode] = ()
    """Tokens must be made for one of these, separated by commas; none: for the API server itself."""
    tokens_file: str = ""
    """A YAML or JSON file: a list of `{name, token, role, namespaces}`; role Viewer, Operator or Sender (of events), no
    namespaces: all."""
    events_token: SecretStr = SecretStr("")
    """With it, and nothing else, events may be sent to `/events`."""
    events_open: bool = False
    """Events need no token: where the network says who may send them."""
    requests_per_second: Annotated[float, Field(gt=0)] = 200
    """Of one caller, in the long run; a second's worth at once."""
    events_per_second: Annotated[float, Field(gt=0)] = 5_000
    """The same for requests that bring events."""

    @field_validator("audiences", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _text_map(text: str, what: str) -> dict[str, str]:
    """A JSON object of texts; empty of an empty text."""
    if not text:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{what} must be a JSON object: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"{what} must be a JSON object of texts")
    return found


class OutboxSettings(_Part):
    """Where events go that runs emit: one HTTP endpoint that takes CloudEvents."""

    sink_url: Annotated[str, Field(pattern=r"^(https?://[^\s/]+\S*)?$")] = ""
    """An http or https URL, as of a Knative broker. Also read from K_SINK. Without one this process delivers nothing: what is
    emitted is kept in PostgreSQL until a process with a sink delivers it."""
    structured: bool = False
    """Send the whole event as `application/cloudevents+json`, not its data with the attributes in headers."""
    headers: SecretStr = SecretStr("")
    """Further headers, as a JSON object: `{"Authorization": "Bearer ..."}`."""
    extensions: str = ""
    """Attributes that each event gets, as a JSON object of texts. Also read from K_CE_OVERRIDES."""
    ca_file: str = ""
    """A PEM file of authorities that the sink's certificate may be of; empty: the system's."""
    timeout_seconds: Annotated[float, Field(gt=0, le=300)] = 10
    """Of one request."""
    at_once: Annotated[int, Field(ge=2, le=1000)] = 20
    """Requests at once; half of them at most for events that have failed before."""
    backoff_seconds: Annotated[float, Field(gt=0)] = 1
    """After a failed attempt; doubled by each further one, half of it at random. A longer Retry-After of the sink counts."""
    backoff_max_seconds: Annotated[float, Field(gt=0)] = 300
    attempts_max: Annotated[int, Field(ge=1)] = 1000
    """Then an event is a dead letter. A sink that refuses one (400 to 499, but not 408, 425, 429) has it dead at once."""
    give_up_seconds: Annotated[float, Field(gt=0)] = 86_400
    """The same, so long after its first failed attempt."""
    lifecycle: bool = False
    """Emit an event when a run starts, is suspended, resumed, completed, faulted or cancelled (docs/events.md)."""

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, value: SecretStr) -> SecretStr:
        _text_map(value.get_secret_value(), "headers")
        return value

    @field_validator("extensions")
    @classmethod
    def _check_extensions(cls, value: str) -> str:
        for name in _text_map(value, "extensions"):
            if not (name.isascii() and name.isalnum() and name.islower()):
                raise ValueError(f"an extension is named by lower-case letters and digits, not {name!r}")
        return value

    @property
    def header_map(self) -> dict[str, str]:
        """Further headers by name."""
        return _text_map(self.headers.get_secret_value(), "headers")

    @property
    def extension_map(self) -> dict[str, str]:
        """Further attributes by name."""
        return _text_map(self.extensions, "extensions")

    def with_binding(self) -> "OutboxSettings":
        """With what a SinkBinding of Knative has put into the environment, where nothing else is given.

        Raises:
            SettingsError: it can't be read.
        """
        changes: dict[str, Any] = {}
        if not self.sink_url and (url := os.environ.get("K_SINK")):
            changes["sink_url"] = url
        if not self.extensions and (text := os.environ.get("K_CE_OVERRIDES")):
            try:
                changes["extensions"] = json.dumps(json.loads(text).get("extensions") or {})
            except (ValueError, AttributeError) as error:
                raise SettingsError(
                    f"K_CE_OVERRIDES: {error}", hint='a JSON object, as in {"extensions": {"team": "shop"}}'
                ) from error
        try:
            return OutboxSettings.model_validate({**self.model_dump(), **changes})
        except ValidationError as error:
            raise SettingsError(
                "; ".join(f"{_variable(('outbox', *problem['loc']))}: {problem['msg']}" for problem in error.errors()),
                hint="K_SINK is an http or https URL, and K_CE_OVERRIDES names extensions",
            ) from error


class LogSettings(_Part):
    level: Annotated[str, Field(pattern="^(DEBUG|INFO|WARNING|ERROR)$")] = "INFO"
    json_lines: bool = True


class Settings(BaseSettings):
    """All options of a process."""

    model_config = SettingsConfigDict(
        env_prefix="ROMANCY_", env_nested_delimiter="__", frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    workflows: Annotated[tuple[str, ...], NoDecode] = ()
    """Modules with workflows, separated by commas: `my.module,other.module`."""
    middleware: Annotated[tuple[str, ...], NoDecode] = ()
    """What stands around runs and activities, separated by commas: `my.module:Name,romancy.otel:Tracing`, the first outermost."""
    database: DatabaseSettings = DatabaseSettings()
    worker: WorkerSettings = WorkerSettings()
    control: ControlSettings = ControlSettings()
    retention: RetentionSettings = RetentionSettings()
    gateway: GatewaySettings = GatewaySettings()
    outbox: OutboxSettings = OutboxSettings()
    log: LogSettings = LogSettings()

    @field_validator("workflows", "middleware", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def load(**changes: Any) -> Settings:
    """Read the environment; `changes` (parts by name) win over it.

    Raises:
        SettingsError: an option is unknown, missing or out of range, with the name to correct.
    """
    _refuse_unknown()
    try:
        settings = Settings(**changes)
    except ValidationError as error:
        raise SettingsError(
            "; ".join(f"{_variable(problem['loc'])}: {problem['msg']}" for problem in error.errors()),
            hint="see docs/reference/settings.md",
        ) from error
    if not settings.database.url.get_secret_value() and (url := os.environ.get("DATABASE_URL")):
        database = settings.database.model_copy(update={"url": SecretStr(url)})
        settings = settings.model_copy(update={"database": database})
    return settings.model_copy(update={"outbox": settings.outbox.with_binding()})


def worker_name(settings: WorkerSettings) -> str:
    """The configured name, or host and process."""
    return settings.name or f"{socket.gethostname()}-{os.getpid()}"


def python_minor() -> str:
    """The minor version of this Python, "3.12": a run keeps the one that it began on."""
    return ".".join(platform.python_version_tuple()[:2])


def variables() -> dict[str, str]:
    """Every environment variable with the text that explains it."""
    found = {
        f"ROMANCY_{name.upper()}": Settings.model_fields[name].description or "" for name in ("workflows", "middleware")
    }
    for part, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, _Part):
            for name, option in field.annotation.model_fields.items():
                found[_variable((part, name))] = option.description or ""
    return found


# Variables of ours that are no options of the engine: set for a process by its parent, and those of the command line.
_OTHERS = frozenset(
    {
        "ROMANCY_HASHSEED_SET",
        "ROMANCY_API__URL",
        "ROMANCY_API__TOKEN",
        "ROMANCY_API__TOKEN_FILE",
        "ROMANCY_API__CA_FILE",
    }
)
# Kubernetes sets such variables in every pod beside a Service named romancy or romancy-something.
_SERVICE_LINK = re.compile(r"ROMANCY(_[A-Z0-9]+)*_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9A-Z_]+)?)")


def _refuse_unknown() -> None:
    known = {*variables(), *_OTHERS}
    for name in os.environ:
        if name.startswith("ROMANCY_") and name not in known and not _SERVICE_LINK.fullmatch(name):
            near = difflib.get_close_matches(name, known, n=2)
            raise SettingsError(
                f"there is no option {name}", hint=f"did you mean {' or '.join(near)}?" if near else "take it away"
            )


def _variable(location: tuple[int | str, ...]) -> str:
    return "ROMANCY_" + "__".join(str(part) for part in location).upper()
