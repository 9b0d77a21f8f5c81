"""One event over HTTP, against a server that reads it as our own gateway does; and what each answer means."""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from romancy.base.settings import OutboxSettings, load
from romancy.errors import SettingsError
from romancy.model.event import CloudEvent
from romancy.outbox.delivery import Answer, Sink, retry_after_seconds
from tests.outbox.sink import StubSink

EVENT = CloudEvent(
    id="e 1",
    source="/shop/ü",
    type="com.shop.paid",
    data={"order": "o1", "text": "grün\n"},
    time=datetime(2026, 11, 27, 12, tzinfo=UTC),
    subject='a "b" 100%',
    extensions={"team": "a", "sequence": 7, "urgent": True},
)
NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


async def sent(stub: StubSink, event: CloudEvent = EVENT, **changes: object) -> Answer:
    async with Sink(stub.settings(**changes)) as sink:
        return await sink.send(event)


async def test_binary_is_the_data_with_the_attributes_in_headers() -> None:
    async with StubSink() as stub:
        assert await sent(stub) == Answer()

    [request] = stub.requests
    assert json.loads(request.body) == EVENT.data
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["ce-source"] == "/shop/%C3%BC"
    assert request.headers["ce-urgent"] == "true"
    assert (request.event.id, request.event.source, request.event.subject) == (EVENT.id, EVENT.source, EVENT.subject)
    assert (request.event.time, request.event.type, request.event.data) == (EVENT.time, EVENT.type, EVENT.data)


async def test_structured_is_the_whole_event() -> None:
    async with StubSink() as stub:
        assert await sent(stub, structured=True) == Answer()

    [request] = stub.requests
    assert request.headers["Content-Type"].startswith("application/cloudevents+json")
    assert (request.event.data, request.event.extensions) == (EVENT.data, EVENT.extensions)


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("data", [None, "text", 'quo"te', 1.5, [1, {"a": None}], True, ""])
async def test_any_data_of_json_arrives_as_it_is(data: Any, structured: bool) -> None:
    async with StubSink() as stub:
        assert await sent(stub, CloudEvent("1", "/s", "t", data), structured=structured) == Answer()

    assert stub.requests[0].event.data == data


async def test_headers_of_a_secret_and_extensions_of_a_binding_go_with_each_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with StubSink() as stub:
        monkeypatch.setenv("K_SINK", stub.url)
        monkeypatch.setenv("K_CE_OVERRIDES", '{"extensions": {"team": "b", "zone": "z1"}}')
        monkeypatch.setenv("ROMANCY_OUTBOX__HEADERS", '{"Authorization": "Bearer s3cret"}')
        settings = load().outbox
        async with Sink(settings) as sink:
            assert await sink.send(EVENT) == Answer()

    [request] = stub.requests
    assert request.headers["Authorization"] == "Bearer s3cret"
    assert request.event.extensions["team"] == "b"
    assert request.event.extensions["zone"] == "z1"
    assert "s3cret" not in repr(settings)


@pytest.mark.parametrize(
    ("status", "is_final"),
    [(200, None), (202, None), (204, None), (301, False), (400, True), (401, True), (404, True), (408, False), (410, True),
     (413, True), (425, False), (429, False), (500, False), (503, False)],
)  # fmt: skip
async def test_each_answer_has_its_meaning(status: int, is_final: bool | None) -> None:
    def answer(_: CloudEvent) -> web.Response:
        return web.Response(status=status, text="no\nroom" if status != 204 else None, headers={"Location": "/x"})

    async with StubSink(answer) as stub:
        found = await sent(stub)

    assert len(stub.requests) == 1  # no redirect is followed
    assert found == Answer() if is_final is None else found.is_final is is_final
    assert is_final is None or found.failure.startswith(f"{status} ")


async def test_a_sink_that_is_away_or_silent_is_tried_again() -> None:
    async with StubSink() as stub:
        url = stub.url
    gone = await sent_to(OutboxSettings(sink_url=url))
    assert gone.failure.startswith("ClientConnectorError")
    assert not gone.is_final

    async def never(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()
        writer.close()

    server = await asyncio.start_server(never, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    silent = await sent_to(OutboxSettings(sink_url=f"http://127.0.0.1:{port}/", timeout_seconds=0.05))
    server.close()
    assert silent == Answer("no answer within 0.05 s")


async def sent_to(settings: OutboxSettings) -> Answer:
    async with Sink(settings) as sink:
        return await sink.send(EVENT)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7),
        (" 0 ", 0),
        ("Fri, 27 Nov 2026 12:01:30 GMT", 90),
        ("Fri, 27 Nov 2026 11:00:00 GMT", 0),
        ("999999999", 3600),
        ("soon", 0),
        ("-5", 0),
        ("²", 0),
        ("", 0),
    ],
)
def test_retry_after_is_read_in_both_forms(text: str, seconds: float) -> None:
    assert retry_after_seconds({"Retry-After": text}, NOON) == seconds


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ROMANCY_OUTBOX__SINK_URL": "shop"}, "ROMANCY_OUTBOX__SINK_URL"),
        ({"ROMANCY_OUTBOX__HEADERS": "[]"}, "headers must be a JSON object of texts"),
        ({"ROMANCY_OUTBOX__EXTENSIONS": '{"A-b": "x"}'}, "lower-case letters and digits, not 'A-b'"),
        ({"K_SINK": "ftp://x"}, "ROMANCY_OUTBOX__SINK_URL"),
        ({"K_CE_OVERRIDES": "{"}, "K_CE_OVERRIDES"),
    ],
)
def test_what_is_wrong_with_a_sink_is_said_at_start(
    changes: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError, match=said):
        load()


def test_authorities_that_can_t_be_read_are_said_at_start(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(SettingsError, match="there is no file"):
        Sink(OutboxSettings(sink_url="https://x", ca_file=str(tmp_path / "none.pem")))
    with pytest.raises(SettingsError, match="can't be read"):
        Sink(OutboxSettings(sink_url="https://x", ca_file=str(tmp_path / "ca.pem")))
