"""WorkflowRuns as they are seen, and what the store must be told of them. The deciding is pure; `intake` does it."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Self
from uuid import UUID

import kopf
from pydantic import ValidationError

from romancy.base.settings import Settings
from romancy.control import conditions
from romancy.control.kube import Json
from romancy.control.resources import GROUP, RUNS, VERSION, WorkflowRunSpec, seconds_of
from romancy.errors import PayloadTooLargeError
from romancy.model.history import Message, MessageKind
from romancy.model.run import DeletionPolicy, NewRun, Phase, Wishes
from romancy.store.interface import ResourceRow

DONE: Final = frozenset(phase.value for phase in Phase if phase.is_done)
UNFINISHED: Final = ",".join(f"status.phase!={phase}" for phase in Phase if phase.is_done)
"""Field selector of the watch: runs that have ended cost no list, no memory and no event."""
LOST: Final = conditions.LOST


@dataclass(frozen=True, slots=True)
class Seen:
    """The newest state of an object, as far as it matters here.

    `spec` is None if only its absence was seen. `is_certain`: it was looked for and not found; a DELETED event may only
    mean that a finished run left the watch's selector.
    """

    uid: UUID
    namespace: str
    name: str
    generation: int = 1
    spec: Json | None = None
    labels: tuple[tuple[str, str], ...] = ()
    phase: str = ""
    reason: str = ""
    engine: str = ""
    observed_generation: int | None = None
    was_accepted: bool = False
    stalled: tuple[str, str] | None = None  # status and lastTransitionTime of the condition
    is_gone: bool = False
    is_certain: bool = False

    @classmethod
    def of(cls, thing: Json, *, is_gone: bool = False) -> Self:
        """Read an object as the API gives it. Never fails: what is wrong with a spec `decide` says."""
        metadata, status = thing["metadata"], thing.get("status") or {}
        by_type = {each.get("type"): each for each in status.get("conditions") or []}
        stalled = by_type.get(conditions.Type.STALLED)
        return cls(
            uid=UUID(metadata["uid"]),
            namespace=metadata["namespace"],
            name=metadata["name"],
            generation=metadata.get("generation", 1),
            spec=thing.get("spec") or {},
            labels=tuple((metadata.get("labels") or {}).items()),
            phase=status.get("phase") or "",
            reason=status.get("reason") or "",
            engine=status.get("engine") or "",
            observed_generation=status.get("observedGeneration"),
            was_accepted=by_type.get(conditions.Type.ACCEPTED, {}).get("status") == "True",
            stalled=stalled and (stalled.get("status", ""), stalled.get("lastTransitionTime", "")),
            is_gone=is_gone,
        )

    @classmethod
    def missing(cls, run_id: UUID, namespace: str, name: str) -> Self:
        """The object of this run is certainly not there."""
        return cls(uid=run_id, namespace=namespace, name=name, is_gone=True, is_certain=True)

    def stalled_since(self) -> tuple[bool, datetime] | None:
        """The condition Stalled, read."""
        if self.stalled is None:
            return None
        try:
            return self.stalled[0] == "True", datetime.fromisoformat(self.stalled[1])
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class Start:
    """Insert the run; then send what its object asked for from the beginning, and then store the other wishes."""

    run: NewRun
    messages: tuple[Message, ...] = ()
    wishes: Wishes | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """Send the messages, then store the wishes: in this order, so that a crash between sends them again."""

    run_id: UUID
    wishes: Wishes
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Gone:
    """Send the messages, then note that there is no object any more."""

    run_id: UUID
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Refuse:
    """Say in the object's status why it will not be run."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Lose:
    """Say in the object's status that its row is missing."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """Leave it alone: it is another engine's."""

    engine: str


@dataclass(frozen=True, slots=True)
class Nothing:
    """The store knows it all."""


Intent = Start | Change | Gone | Refuse | Lose | Foreign | Nothing


@dataclass(frozen=True, slots=True)
class Rules:
    """What of the settings the deciding needs."""

    engine: str
    ttl_seconds: int
    input_bytes_max: int

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(
            engine=settings.control.engine,
            ttl_seconds=settings.control.ttl_seconds,
            input_bytes_max=settings.worker.payload_bytes_max,
        )


def decide(seen: Seen, row: ResourceRow | None, rules: Rules, *, is_sure: bool = False) -> Intent:
    """What the store must be told of an object, given what it knows already. Pure.

    Args:
        is_sure: whatever was sent of it is known to the row: by this leader, and without a failure in between.
    """
    if seen.engine not in {"", rules.engine}:
        return Foreign(seen.engine)
    if seen.is_gone:
        return _of_missing(seen, row, rules)
    if row is None and (seen.phase in DONE or seen.was_accepted or seen.reason == LOST):
        # An ended run whose row was purged is done with; another one without a row must not be run a second time.
        return Nothing() if seen.phase in DONE else Lose()
    try:
        spec = WorkflowRunSpec.model_validate(seen.spec or {})
        wishes = wishes_of(spec, rules)
        if row is None:
            # The row says that it is to be cancelled only when the message is sent: else a crash between would lose it.
            new = _new_run(seen, spec, replace(wishes, cancel=False), rules)
            return Start(new, _messages(seen, Wishes(), wishes, is_certain=True), wishes if wishes.cancel else None)
    except PayloadTooLargeError as error:
        return Refuse("TooLarge", f"{error.message}: {error.hint}")
    except ValueError as error:
        return Refuse("SpecInvalid", _problems(error)) if row is None else Nothing()
    if row.phase.is_done:
        return Nothing() if wishes == row.wishes else Change(row.run_id, wishes)
    # Else an order may have been sent whose wish was not kept: by a leader before, or by this one, whose store went away. A
    # generation that the status does not show yet is sent again; the same source twice is one message.
    is_certain = is_sure or seen.generation in {1, seen.observed_generation}
    messages = _messages(seen, row.wishes, wishes, is_certain=is_certain)
    return Change(row.run_id, wishes, messages) if messages or wishes != row.wishes else Nothing()


def wishes_of(spec: WorkflowRunSpec, rules: Rules) -> Wishes:
    """The mutable part of a spec, with the engine's defaults."""
    ttl_seconds = spec.ttl_seconds_after_finished
    return Wishes(
        suspend=spec.suspend,
        cancel=spec.cancel,
        deletion_policy=spec.deletion_policy,
        ttl_seconds=rules.ttl_seconds if ttl_seconds is None else ttl_seconds,
    )


def _of_missing(seen: Seen, row: ResourceRow | None, rules: Rules) -> Intent:
    if row is None:
        return Nothing()
    if row.phase.is_done:
        return Gone(row.run_id) if seen.is_certain else _of_left(seen, row, rules)
    policy = row.wishes.deletion_policy
    if seen.spec is not None:  # its last state, which the store may not have been told
        with contextlib.suppress(ValidationError):
            policy = WorkflowRunSpec.model_validate(seen.spec).deletion_policy
    if policy is DeletionPolicy.ORPHAN:
        return Gone(row.run_id)
    message = f"WorkflowRun {seen.namespace}/{seen.name} was deleted"
    return Gone(row.run_id, (_cancel(row.run_id, "deleted", reason="Deleted", message=message),))


def _of_left(seen: Seen, row: ResourceRow, rules: Rules) -> Intent:
    """It may only have left the watch's selector, with its last change: that of an object that is gone changes nothing."""
    with contextlib.suppress(ValueError):
        if seen.spec and (wishes := wishes_of(WorkflowRunSpec.model_validate(seen.spec), rules)) != row.wishes:
            return Change(row.run_id, wishes)
    return Nothing()


def _messages(seen: Seen, before: Wishes, now: Wishes, *, is_certain: bool) -> tuple[Message, ...]:
    messages = []
    if now.suspend != before.suspend or not is_certain:
        kind = MessageKind.SUSPEND if now.suspend else MessageKind.RESUME
        source = f"resource:{kind.value.lower()}:{seen.generation}"
        messages.append(Message(seen.uid, kind, source))
    if now.cancel and not before.cancel:
        message = f"spec.cancel of WorkflowRun {seen.namespace}/{seen.name} was set"
        messages.append(_cancel(seen.uid, "cancel", reason="Cancelled", message=message))
    return tuple(messages)


def _cancel(run_id: UUID, source: str, *, reason: str, message: str) -> Message:
    payload = json.dumps({"reason": reason, "message": message}, ensure_ascii=False)
    return Message(run_id, MessageKind.CANCEL, f"resource:{source}", payload)


def _new_run(seen: Seen, spec: WorkflowRunSpec, wishes: Wishes, rules: Rules) -> NewRun:
    # The text, not the model's copy: what was written is what is stored.
    text = json.dumps((seen.spec or {}).get("input") or {}, ensure_ascii=False, separators=(",", ":"))
    if (size := len(text.encode())) > rules.input_bytes_max:
        raise PayloadTooLargeError(what="spec.input", size_bytes=size, max_bytes=rules.input_bytes_max)
    return NewRun(
        id=seen.uid,
        namespace=seen.namespace,
        name=seen.name,
        workflow=spec.workflow,
        input=text,
        priority=spec.priority,
        timeout_seconds=None if spec.timeout is None else seconds_of(spec.timeout),
        labels=dict(seen.labels),
        is_resource=True,
        wishes=wishes,
    )


def _problems(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return f"spec: {error}"
    return "; ".join(
        f"spec.{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors(include_url=False)
    )


def registry(file: Callable[[Seen], None]) -> kopf.OperatorRegistry:
    """The kopf handlers of runs. They only file: kopf never tries `on.event` again, the intake does."""
    found = kopf.OperatorRegistry()

    @kopf.on.event(GROUP, VERSION, RUNS, registry=found)
    async def run_seen(event: kopf.RawEvent, **_: Any) -> None:
        """File the newest state of this object. Twice is once (I6); never waits, never fails."""
        file(Seen.of(dict(event["object"]), is_gone=event["type"] == "DELETED"))

    return found
