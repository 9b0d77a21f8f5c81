"""Case 59: spans of runs and activities, in the trace that a run came from; nothing while a history is replayed."""

from collections.abc import Iterator
from uuid import UUID

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from romancy import NO_RETRY, App, Event, WorkflowContext, activity, workflow
from romancy.base.settings import DatabaseSettings
from romancy.model import trace
from romancy.model.run import Phase
from romancy.otel import SpanIds, Tracing
from tests.cases.conftest import QUICK, in_phase, until
from tests.outbox.sink import StubSink

pytestmark = pytest.mark.usefixtures("verified")
CAME = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Ordered(Event, type="com.traced.ordered"):
    """Starts a run."""

    order: str


@activity(retry=NO_RETRY)
async def traced_step(order: str) -> str:
    if order == "bad":
        raise ValueError(order)
    return order


@workflow
async def traced_child(order: str) -> str:
    return await traced_step(order)


@workflow(starts_on=Ordered)
async def traced(ctx: WorkflowContext, ordered: Ordered) -> str:
    await traced_step(ordered.order)
    await ctx.wait_event("com.traced.on")
    ctx.emit("com.traced.done", ordered.order)
    return await traced_child(ordered.order)


class Spans:
    """What was exported."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(id_generator=SpanIds(), shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracing = Tracing(self.provider)

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


@pytest.fixture
def spans() -> Iterator[Spans]:
    made = Spans()
    yield made
    made.provider.shutdown()


def ids(span: ReadableSpan) -> tuple[int, int, int | None]:
    context = span.get_span_context()
    assert context is not None
    return context.trace_id, context.span_id, span.parent.span_id if span.parent else None


async def test_a_run_is_of_the_trace_of_the_event_that_started_it(database: DatabaseSettings, spans: Spans) -> None:
    """Through the event, the waits, the child, and what it emits."""
    came = trace.read(CAME)
    assert came is not None
    async with (
        StubSink() as stub,
        App(database, [traced, traced_child], worker=QUICK, middleware=[spans.tracing], outbox=stub.settings()) as app,
    ):
        await app.send_event(Ordered(order="o1"), extensions={"traceparent": CAME})

        async def is_started() -> bool:
            return bool(list(await app.list(workflow="traced")))

        await until(is_started, "the run is there")
        [run] = await app.list(workflow="traced")
        handle = app.handle(str(run.id))
        await in_phase(handle, Phase.WAITING)
        await app.send_event("com.traced.on")
        assert await handle.result(timeout=10) == "o1"

        async def has_come() -> bool:
            return bool(stub.requests)

        await until(has_come, "the event has come")

    legs = spans.named("run traced")
    assert len(legs) >= 2
    first, *later = legs
    assert ids(first) == (came.trace_id, trace.id_of(run.id, "claim", 1), came.span_id)
    for nth, leg in enumerate(later, 2):
        assert ids(leg)[:2] == (came.trace_id, trace.id_of(run.id, "claim", nth))
        assert [link.context.span_id for link in leg.links] == [trace.id_of(run.id, "claim", nth - 1)]
    step = next(each for each in spans.named("activity traced_step") if ids(each)[2] == ids(first)[1])
    assert ids(step) == (came.trace_id, trace.id_of(run.id, "activity", 1, 1), ids(first)[1])
    [child] = spans.named("run traced_child")
    assert ids(child)[0] == came.trace_id
    assert ids(child)[2] == trace.id_of(run.id)
    emitted = trace.read(stub.requests[0].event.extensions["traceparent"])
    assert emitted == trace.TraceParent(came.trace_id, trace.id_of(run.id))
    assert (legs[-1].attributes or {})["romancy.ended"] == "Succeeded"
    assert len(spans.named("activity traced_step")) == 2  # one a run; a replay makes none


async def test_a_run_is_of_the_trace_of_whoever_started_it(database: DatabaseSettings, spans: Spans) -> None:
    tracer = spans.provider.get_tracer("test")
    async with App(database, [traced_child, traced], worker=QUICK, middleware=[spans.tracing]) as app:
        with tracer.start_as_current_span("outside") as outside:
            await (await app.start(traced_child, "o1")).result(timeout=10)
            await app.send_event(Ordered(order="o3"), id="e3")

            async def is_waiting() -> bool:
                runs = list(await app.list(workflow="traced", labels={"event-id": "e3"}))
                return [run.phase for run in runs] == [Phase.WAITING]

            await until(is_waiting, "the event has started a run, and it waits")
        alone = await app.start(traced_child, "o2")
        await alone.result(timeout=10)

    beneath, own = spans.named("run traced_child")
    assert ids(beneath)[0] == outside.get_span_context().trace_id
    assert ids(beneath)[2] == outside.get_span_context().span_id
    assert {ids(span)[0] for span in spans.named("run traced")} == {outside.get_span_context().trace_id}
    assert alone.id is not None
    assert ids(own)[0] == alone.id.int


async def test_what_fails_is_shown_as_failed(database: DatabaseSettings, spans: Spans) -> None:
    async with App(database, [traced_child], worker=QUICK, middleware=[spans.tracing]) as app:
        with pytest.raises(ValueError, match="bad"):
            await (await app.start(traced_child, "bad")).result(timeout=10)

    [step], [leg] = spans.named("activity traced_step"), spans.named("run traced_child")
    assert step.status.status_code is leg.status.status_code is StatusCode.ERROR
    assert [event.name for event in step.events] == ["exception"]


@pytest.mark.parametrize(
    "text", ["", "00-0-0-00", CAME.upper(), CAME.replace("00-", "01-", 1), "00-" + "0" * 32 + CAME[35:], None, 7]
)
def test_what_is_no_trace_is_none(text: object) -> None:
    assert trace.read(text) is None
    labels = {"traceparent": text} if isinstance(text, str) else {}
    assert trace.handed_on(UUID(int=7), labels) == {}
    assert trace.of_run(UUID(int=7), labels).trace_id == 7


def test_a_trace_is_read_as_it_is_written() -> None:
    assert str(trace.read(CAME)) == CAME
    assert trace.id_of(UUID(int=1), "claim", 1) != trace.id_of(UUID(int=1), "claim", 2)
