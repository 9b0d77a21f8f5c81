"""OpenTelemetry: spans of runs and activities. Needs `romancy[otel]`, and an exporter.

    App(..., middleware=[Tracing()])                  # in one's own program
    ROMANCY_MIDDLEWARE=romancy.otel:Tracing           # in the operator

A span a leg of a run (from its claim until it is parked or has ended), linked with the leg before; a span an attempt of an
activity, beneath its leg. A run is of the trace that it came from: of whoever started it, of its parent, of the event that
started it; else of one of its own, whose id is the run's. With `TracerProvider(id_generator=SpanIds())` the ids of spans are made
of what they are about: the run and claim, or the run, the number of the activity and its attempt.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from opentelemetry import trace as otel
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from romancy.model import trace
from romancy.model.trace import TraceParent
from romancy.sdk.activity import ActivityInfo
from romancy.sdk.middleware import Leg, Middleware

_NEXT: Final[ContextVar[int | None]] = ContextVar("romancy_span_id", default=None)


class SpanIds(RandomIdGenerator):
    """An id generator for `TracerProvider`: of the engine's spans the ids that they are to have, of all others random ones."""

    def generate_span_id(self) -> int:
        """64 bits, not 0."""
        wanted = _NEXT.get()
        return super().generate_span_id() if wanted is None else wanted


class Tracing(Middleware):
    """Makes the spans.

    Args:
        provider: of tracers; by default the one that is set for the process.
    """

    def __init__(self, provider: otel.TracerProvider | None = None) -> None:
        self._tracer = otel.get_tracer("romancy", tracer_provider=provider)

    @contextmanager
    def run(self, leg: Leg) -> Iterator[None]:
        run = leg.run
        parent = trace.read(run.labels.get(trace.LABEL)) or trace.of_run(run.id, run.labels)
        before = [] if leg.is_first else [Link(_context(parent._replace(span_id=_leg_id(leg, leg.claim - 1))))]
        span = self._started(
            f"run {run.workflow}",
            span_id=_leg_id(leg, leg.claim),
            parent=parent,
            links=before,
            attributes={
                "romancy.run.id": str(run.id),
                "romancy.run.namespace": run.namespace,
                "romancy.run.name": run.name,
                "romancy.workflow": run.workflow,
                "romancy.claim": leg.claim,
                "romancy.replayed": leg.replayed,
            },
        )
        with otel.use_span(span, end_on_exit=True):
            yield
            span.set_attribute("romancy.ended", leg.ended)
            if leg.ended in {"Failed", "Blocked", "Dropped"}:
                span.set_status(Status(StatusCode.ERROR, leg.error or leg.ended))

    @contextmanager
    def activity(self, attempt: ActivityInfo) -> Iterator[None]:
        span = self._started(
            f"activity {attempt.activity}",
            span_id=trace.id_of(attempt.run_id, "activity", attempt.number, attempt.attempt),
            attributes={
                "romancy.run.id": str(attempt.run_id),
                "romancy.activity": attempt.activity,
                "romancy.number": attempt.number,
                "romancy.attempt": attempt.attempt,
            },
        )
        with otel.use_span(span, end_on_exit=True, record_exception=True, set_status_on_exception=True):
            yield

    def labels(self) -> Mapping[str, str]:
        context = otel.get_current_span().get_span_context()
        if not context.is_valid:
            return {}
        return {trace.LABEL: str(TraceParent(context.trace_id, context.span_id, int(context.trace_flags) & 1))}

    def _started(
        self,
        name: str,
        *,
        span_id: int,
        attributes: Mapping[str, str | int],
        parent: TraceParent | None = None,
        links: list[Link] | None = None,
    ) -> otel.Span:
        context = None if parent is None else otel.set_span_in_context(NonRecordingSpan(_context(parent)))
        token = _NEXT.set(span_id)
        try:
            return self._tracer.start_span(
                name, context, kind=SpanKind.INTERNAL, attributes=dict(attributes), links=links
            )
        finally:
            _NEXT.reset(token)


def _leg_id(leg: Leg, claim: int) -> int:
    return trace.id_of(leg.run.id, "claim", claim)


def _context(parent: TraceParent) -> SpanContext:
    return SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=TraceFlags(parent.flags))
