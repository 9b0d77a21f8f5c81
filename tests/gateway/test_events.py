"""CloudEvents in: a 202 is only given for what is stored, and with the runs that wait for it."""

import asyncio
import json
import signal
from typing import Any

import asyncpg
import pytest
from aiohttp import ClientSession

from romancy import App
from romancy.base.settings import DatabaseSettings, WorkerSettings
from romancy.gateway import bodies, server
from romancy.gateway.cloudevents import BATCH, STRUCTURED
from tests import postgres
from tests.cloudevents import sender
from tests.gateway.conftest import LOCAL, Api, until
from tests.gateway.flows import WORKFLOWS, api_any, api_wait

BINARY = {"ce-specversion": "1.0", "ce-source": "/shop", "Content-Type": "application/json"}


async def waiting(api: Api, order: str) -> Any:
    """A run that waits for the payment of an order."""
    handle = await api.app.start(api_wait.options(id=f"wait-{order}"), order)
    connection = await asyncpg.connect(api.database.url.get_secret_value(), server_settings={"search_path": "romancy"})
    count = "select count(*) from subscription where run_id = $1"
    await until(lambda: connection.fetchval(count, handle.id), bool)
    await connection.close()
    return handle


async def test_each_of_the_three_forms_wakes_who_waits(api: Api) -> None:
    """Cases 25 and 53."""
    handles = [await waiting(api, order) for order in ("s", "b", "1", "2")]

    structured = await api.event(id="s", data={"order": "s"})
    binary = await api.ask(
        "POST", "/events", data=b'{"order": "b"}', headers={**BINARY, "ce-id": "b", "ce-type": "shop.paid"}
    )
    batch = [
        {"specversion": "1.0", "id": order, "source": "/shop", "type": "shop.paid", "data": {"order": order}}
        for order in ("1", "2")
    ]
    both = await api.ask("POST", "/events", data=json.dumps(batch), headers={"Content-Type": BATCH})

    assert structured.status == 202
    assert structured.body == {
        "status": "accepted",
        "id": "s",
        "source": "/shop",
        "runs": 1,
        "started": 0,
        "duplicate": False,
    }
    assert (binary.status, binary.body["runs"]) == (202, 1)
    assert both.status == 202
    assert [each["runs"] for each in both.body["events"]] == [1, 1]
    assert [await handle.result(timeout=10) for handle in handles] == ["s", "b", "1", "2"]


async def test_an_event_starts_a_workflow_once(api: Api) -> None:
    first = await api.event(type="shop.ordered", data={"order": "o1"})
    again = await api.event(type="shop.ordered", data={"order": "o1"})

    assert (first.body["started"], first.body["duplicate"]) == (1, False)
    assert (again.status, again.body["started"], again.body["duplicate"]) == (202, 0, True)
    [run] = await api.app.list(workflow="api_begin")
    assert await api.app.handle(run.id).result(timeout=10) == "o1"


async def test_an_event_may_name_its_run(api: Api) -> None:
    """Case 54: by id, and by name; others that wait for the same are left alone."""
    one, other = [await api.app.start(api_any.options(id=name)) for name in ("one", "other")]

    by_id = await api.event(id="e1", type="shop.any", romancyinstanceid=str(one.id), data=7)
    by_name = await api.event(id="e2", type="shop.any", romancyinstanceid="other", data=8)
    unknown = await api.event(id="e3", type="shop.any", romancyinstanceid="nobody")

    assert (by_id.body["runs"], by_name.body["runs"]) == (1, 1)
    assert (await one.result(timeout=10))["data"] == 7
    assert (await other.result(timeout=10))["data"] == 8
    assert unknown.status == 404
    assert unknown.body["reason"] == "RunNotFound"
    late = await api.event(id="e4", type="shop.any", romancyinstanceid="one")
    assert (late.status, late.body["runs"]) == (202, 0)


async def test_what_an_event_brings_beside_its_data(api: Api) -> None:
    handle = await api.app.start(api_any.options(id="traced"))
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    await api.ask(
        "POST",
        "/events",
        data="grüß",
        headers={
            **BINARY,
            "Content-Type": "text/plain",
            "ce-id": "1",
            "ce-type": "shop.any",
            "ce-subject": "caf%C3%A9",
            "ce-tenant": "a",
            "traceparent": parent,
        },
    )

    assert await handle.result(timeout=10) == {
        "data": "grüß",
        "extensions": {"tenant": "a", "traceparent": parent},
        "subject": "café",
    }


async def test_what_is_wrong_is_a_problem_document_and_nothing_of_it_is_stored(api: Api) -> None:
    """Case 53: which says whether it may be sent again."""
    wrong = [
        (await api.ask("POST", "/events", data="{", headers={"Content-Type": STRUCTURED}), 400, "EventInvalid"),
        (await api.event(id=""), 400, "EventInvalid"),
        (await api.ask("POST", "/events", json={"a": 1}), 415, "MediaTypeUnsupported"),
        (await api.event(data="x" * 2**20), 413, "PayloadTooLarge"),
        (await api.event(data="x" * 2**21), 413, "PayloadTooLarge"),
        (await api.ask("GET", "/events"), 405, "RequestInvalid"),
    ]
    batch = [
        {"specversion": "1.0", "id": "good", "source": "/shop", "type": "shop.ordered", "data": {"order": "o"}},
        {},
    ]
    wrong.append(
        (await api.ask("POST", "/events", data=json.dumps(batch), headers={"Content-Type": BATCH}), 400, "EventInvalid")
    )

    for answer, status, reason in wrong:
        assert (answer.status, answer.body["reason"], answer.body["retryable"]) == (status, reason, False)
        assert answer.headers["Content-Type"].startswith("application/problem+json")
        assert answer.body["type"] == f"https://romancy.dev/errors/{reason}"
    assert await api.app.list() == []


async def test_whoever_wants_to_send_may_ask_first(api: Api) -> None:
    asked = await api.ask("OPTIONS", "/events", headers={"WebHook-Request-Origin": "broker.example"})

    assert asked.status == 200
    assert asked.headers["WebHook-Allowed-Origin"] == "broker.example"
    assert "POST" in asked.headers["Allow"]


async def test_many_at_once_are_each_told_of_their_own(api: Api) -> None:
    """They go to the database together; each is answered with what became of it."""
    handles = [await waiting(api, str(nth)) for nth in range(20)]

    answers = await asyncio.gather(*(api.event(id=f"e{nth % 60}", data={"order": str(nth % 60)}) for nth in range(120)))

    assert {answer.status for answer in answers} == {202}
    assert sum(answer.body["runs"] for answer in answers) == 20
    assert sum(not answer.body["duplicate"] for answer in answers) == 60
    assert [await handle.result(timeout=10) for handle in handles] == [str(nth) for nth in range(20)]


async def test_one_that_the_database_refuses_harms_no_other(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw: the batch is sent again one by one."""
    from romancy.errors import PayloadRefusedError
    from romancy.store.events import Events

    send = Events.send_events

    async def refuses(self: Any, sent: Any, **given: Any) -> Any:
        if any(each.event.id == "bad" for each in sent):
            raise PayloadRefusedError("jsonb refuses it")
        return await send(self, sent, **given)

    monkeypatch.setattr(Events, "send_events", refuses)
    answers = await asyncio.gather(*(api.event(id=name) for name in ("a", "bad", "b", "c")))

    assert [answer.status for answer in answers] == [202, 400, 202, 202]
    assert answers[1].body["reason"] == "PayloadRefused"


async def test_a_body_that_does_not_come_is_not_waited_for(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    head = f"POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: {STRUCTURED}\r\nContent-Length: 100\r\n\r\n{{"
    writer.write(head.encode())

    quick = await api.event()
    answer = await asyncio.wait_for(reader.read(4000), 5)

    assert quick.status == 202
    assert b" 408 " in answer.partition(b"\r\n")[0]
    assert b"RequestTooSlow" in answer
    writer.close()


async def test_a_connection_that_asks_nothing_is_closed(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FIRST_SECONDS", 0.2)
    silent = await asyncio.open_connection("127.0.0.1", api.port)
    slow = await asyncio.open_connection("127.0.0.1", api.port)
    slow[1].write(b"POST /events HTTP/1.1\r\nHost: x\r\nX-")

    assert await asyncio.wait_for(silent[0].read(), 5) == b""
    assert await asyncio.wait_for(slow[0].read(), 5) == b""
    assert (await api.event()).status == 202  # on a connection that has been there for longer
    for _, writer in (silent, slow):
        writer.close()


async def test_with_postgresql_stopped_an_event_is_answered_503_and_taken_when_it_is_back() -> None:
    with postgres.server(postgres.embedded_binaries()) as own:
        settings = (await own.migrated_database()).model_copy(
            update={"connect_timeout_seconds": 0.5, "give_up_seconds": 1}
        )
        async with (
            App(settings, WORKFLOWS, worker=WorkerSettings(name="w")) as app,
            server.serving(app.http(is_open=True), LOCAL) as port,
            ClientSession(f"http://127.0.0.1:{port}") as session,
        ):
            api = Api(app, session, port, settings)
            assert (await api.event(id="before")).status == 202
            own.stop(signal.SIGINT)
            away = [await api.event(id="during"), await api.ask("GET", "/api/v1/runs")]
            own.start()
            back = await api.event(id="during")

            for answer in away:
                assert (answer.status, answer.body["reason"], answer.body["retryable"]) == (
                    503,
                    "StoreUnavailable",
                    True,
                )
                assert answer.headers["Retry-After"] == "1"
            assert (back.status, back.body["duplicate"]) == (202, False)


async def test_another_language_s_sdk_and_curl_send_all_three_forms(database: DatabaseSettings) -> None:
    token = "a-token-of-this-test"
    async with (
        App(database, WORKFLOWS, worker=WorkerSettings(name="w", park_after_seconds=0)) as app,
        server.serving(app.http(events_token=token), LOCAL) as port,
        ClientSession(f"http://127.0.0.1:{port}") as session,
    ):
        api = Api(app, session, port, database)
        handles = [await waiting(api, order) for order in ("binary", "structured", "first", "second", "c1", "c2", "c3")]
        url = f"http://127.0.0.1:{port}/events"

        async def run(*command: str) -> str:
            done = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
            out, _ = await done.communicate()
            assert done.returncode == 0
            return out.decode()

        binary = await asyncio.to_thread(sender)
        sdk = json.loads(await run(str(binary), url, token))
        curl = ("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-H", f"Authorization: Bearer {token}", url)
        one = {"specversion": "1.0", "source": "/curl", "type": "shop.paid"}
        structured = json.dumps({**one, "id": "c1", "data": {"order": "c1"}})
        batch = json.dumps([{**one, "id": "c3", "data": {"order": "c3"}}])
        headers = ("ce-specversion: 1.0", "ce-source: /curl", "ce-type: shop.paid", "ce-id: c2")
        told = [
            await run(*curl, "-H", f"Content-Type: {STRUCTURED}", "-d", structured),
            await run(
                *curl,
                *("-H", "Content-Type: application/json"),
                *(part for each in headers for part in ("-H", each)),
                "-d",
                '{"order":"c2"}',
            ),
            await run(*curl, "-H", f"Content-Type: {BATCH}", "-d", batch),
        ]
        refused = await run(*("not-it" if part.startswith("Authorization") else part for part in curl), "-d", "{}")

        assert sdk == {"binary": 202, "structured": 202, "batch": 202}
        assert told == ["202", "202", "202"]
        assert refused == "401"
        found = [await handle.result(timeout=10) for handle in handles]
    assert found == ["binary", "structured", "first", "second", "c1", "c2", "c3"]
