"""Runs over HTTP: started, found, watched, changed."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from aiohttp import ClientResponse, ClientSession

from romancy import App
from romancy.base.settings import DatabaseSettings, OutboxSettings, WorkerSettings
from romancy.client import Handle
from romancy.gateway import server, watching
from romancy.model.run import Phase
from romancy.model.shown import run_as_json
from tests.gateway.conftest import LOCAL, Answer, Api, until
from tests.gateway.flows import BANK, WORKFLOWS, api_emit, api_sleep, api_wait

HERE = "/api/v1/namespaces/default/runs"


async def start(api: Api, workflow: str, **given: Any) -> Answer:
    return await api.ask("POST", HERE, json={"workflow": workflow, **given})


async def test_a_run_is_started_waited_for_and_shown(api: Api) -> None:
    started = await start(api, "api_send", input={"to": "Ada", "grams": 5}, name="p1", labels={"team": "post"})
    ended = await api.ask("GET", f"{HERE}/p1/result?waitSeconds=10")

    assert started.status == 201
    assert started.body["labels"] == {"team": "post", "romancy.dev/started-by": "anybody"}
    assert (ended.status, ended.body["phase"], ended.body["output"]) == (200, "Succeeded", "5 g to Ada")
    by_id = await api.ask("GET", f"/api/v1/runs/{started.body['id']}")
    run = await api.app.handle("p1").info()
    assert by_id.body == ended.body == run_as_json(run)
    history = await api.ask("GET", f"{HERE}/p1/history")
    [entry] = history.body["entries"]
    assert (entry["kind"], entry["name"], entry["value"]) == ("ActivityCompleted", "api_weigh", 5)
    assert history.body["attempts"] == []


async def test_the_same_name_is_the_same_run_and_another_input_a_conflict(api: Api) -> None:
    first = await start(api, "api_send", input={"to": "Ada"}, name="p1")
    again = await start(api, "api_send", input={"to": "Ada"}, name="p1")
    other = await start(api, "api_send", input={"to": "Bob"}, name="p1")

    assert (first.status, again.status, other.status) == (201, 200, 409)
    assert first.body["id"] == again.body["id"]
    assert other.body["reason"] == "RunExists"


async def test_a_run_is_of_the_trace_of_the_request(api: Api) -> None:
    async def traced(text: str, **given: Any) -> Answer:
        body = {"workflow": "api_send", "input": {"to": "Ada"}, **given}
        return await api.ask("POST", HERE, json=body, headers={"traceparent": text})

    parent, other = (f"00-{letter * 32}-{letter * 16}-01" for letter in "ab")
    made = await traced(parent, name="p1")
    again = await traced(other, name="p1")
    asked_for = await traced(parent, labels={"traceparent": other})
    wrong = await traced("00-nothing")

    assert (made.status, again.status, again.body["id"]) == (201, 200, made.body["id"])
    assert made.body["labels"]["traceparent"] == again.body["labels"]["traceparent"] == parent
    assert asked_for.body["labels"]["traceparent"] == other
    assert wrong.status == 201
    assert "traceparent" not in wrong.body["labels"]


async def test_options_of_a_start(api: Api) -> None:
    run_id = str(uuid4())
    made = await start(
        api, "api_send", input={"to": "Ada"}, name=run_id, priority=7, delaySeconds=3600, timeoutSeconds=60
    )

    assert (made.body["id"], made.body["priority"], made.body["timeoutSeconds"]) == (run_id, 7, 60)
    assert made.body["reason"] == "Delayed"
    assert made.body["next"].startswith("nothing: it starts at ")
    unknown = await start(api, "api_sent", input={})
    assert unknown.status == 201  # a worker that has it may come; what the run says names those that are near


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"input": {"too": "Ada"}}, "to: Field required"),
        ({"input": []}, "input: Input should be a valid dictionary"),
        ({"input": {"to": "Ada"}, "priority": 5000}, "priority"),
        ({"input": {"to": "Ada"}, "delaySeconds": -1}, "delaySeconds"),
        ({"input": {"to": "Ada"}, "name": "a\u0000b"}, "name"),
        ({"input": {"to": "Ada"}, "labels": {"": "x"}}, "labels"),
        ({"input": {"to": "Ada"}, "nmae": "p1"}, "nmae: Extra inputs are not permitted"),
    ],
)
async def test_a_start_that_is_wrong_is_told_what_is(api: Api, given: dict[str, Any], said: str) -> None:
    answer = await start(api, "api_send", **given)

    assert answer.status == 400
    assert said in answer.body["detail"]
    assert await api.app.list() == []


@pytest.mark.parametrize("body", ["{", "[]", "7", '{"workflow": NaN}', "[" * 100_000])
async def test_a_body_that_is_no_object_is_refused(api: Api, body: str) -> None:
    answer = await api.ask("POST", HERE, data=body.encode())

    assert (answer.status, answer.body["reason"]) == (400, "RequestInvalid")


async def test_lists_are_filtered_and_paged(api: Api) -> None:
    for nth in range(5):
        await start(api, "api_send", input={"to": "Ada", "grams": nth}, name=f"p{nth}", labels={"odd": str(nth % 2)})
        await api.ask("GET", f"{HERE}/p{nth}/result?waitSeconds=10")

    async def names(query: str) -> list[str]:
        answer = await api.ask("GET", f"/api/v1/runs?{query}")
        assert answer.status == 200, answer.body
        return [run["name"] for run in answer.body["runs"]]

    assert await names("label=odd%3D1&label=romancy.dev/started-by%3Danybody") == ["p3", "p1"]
    assert await names("phase=Succeeded&phase=Failed&limit=2") == ["p4", "p3"]
    assert await names("namePart=p2&workflow=api_send") == ["p2"]
    assert await names("input=%7B%22grams%22%3A%204%7D") == ["p4"]
    assert await names("createdBefore=2020-01-01T00:00:00Z") == []
    first = await api.ask("GET", f"{HERE}?limit=3")
    second = await api.ask("GET", f"{HERE}?limit=3&page={first.body['next']}")
    assert [run["name"] for run in first.body["runs"] + second.body["runs"]] == ["p4", "p3", "p2", "p1", "p0"]
    assert second.body["next"] is None
    assert (await api.ask("GET", "/api/v1/namespaces/other/runs")).body["runs"] == []


@pytest.mark.parametrize(
    "query",
    [
        "phase=Gone",
        "limit=0",
        "limit=1&limit=2",
        "label=x",
        "idPrefix=zz",
        "createdAfter=2026-01-01",
        "page=zz",
        "input=[]",
        "a=1",
    ],
)
async def test_a_filter_that_is_wrong_is_refused(api: Api, query: str) -> None:
    answer = await api.ask("GET", f"/api/v1/runs?{query}")

    assert answer.status == 400
    assert answer.body["reason"] in {"RequestInvalid", "FilterInvalid"}


async def test_a_run_that_is_not_there(api: Api) -> None:
    for path in (f"{HERE}/nobody", f"/api/v1/runs/{uuid4()}", f"{HERE}/nobody/history", f"{HERE}/nobody/cancel"):
        answer = await api.ask("POST" if path.endswith("cancel") else "GET", path)
        assert (answer.status, answer.body["reason"]) == (404, "RunNotFound")
    assert (await api.ask("GET", "/api/v1/runs/name")).status == 400
    started = await start(api, "api_send", input={"to": "Ada"}, name="p1")
    elsewhere = await api.ask("GET", f"/api/v1/namespaces/other/runs/{started.body['id']}")
    assert elsewhere.status == 404


async def test_a_failed_run_is_retried_and_another_one_refuses(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    await start(api, "api_charge", input={"order": "7"}, name="c1")
    failed = await api.ask("GET", f"{HERE}/c1/result?waitSeconds=10")
    monkeypatch.setitem(BANK, "is_away", False)
    retried = await api.ask("POST", f"{HERE}/c1/retry")
    ended = await api.ask("GET", f"{HERE}/c1/result?waitSeconds=10")
    refused = await api.ask("POST", f"{HERE}/c1/retry")

    assert failed.body["next"] == "retry it from its last checkpoint: romancy retry c1 -n default"
    assert (retried.status, retried.body["failure"]) == (202, None)
    assert (ended.body["phase"], ended.body["output"]) == ("Succeeded", "paid 7")
    assert (refused.status, refused.body["reason"]) == (409, "RetryRefused")
    [message] = await api.app.store.read_inbox(UUID(ended.body["id"]), 0)
    assert json.loads(message.payload)["by"] == "anybody"


async def test_suspend_resume_cancel_and_what_they_record(api: Api) -> None:
    await start(api, "api_sleep", input={"seconds": 3600}, name="s1")

    async def phase(wanted: Phase) -> dict[str, Any]:
        answer = await until(lambda: api.ask("GET", f"{HERE}/s1"), lambda found: found.body["phase"] == wanted)
        run: dict[str, Any] = answer.body
        return run

    await phase(Phase.WAITING)
    assert (await api.ask("POST", f"{HERE}/s1/suspend")).status == 202
    assert "romancy resume" in (await phase(Phase.SUSPENDED))["next"]
    assert (await api.ask("POST", f"{HERE}/s1/resume")).status == 202
    await phase(Phase.WAITING)
    open_still = await api.ask("GET", f"{HERE}/s1/result?waitSeconds=0.1")
    cancelled = await api.ask("POST", f"{HERE}/s1/cancel", json={"message": "not wanted"})
    again = await api.ask("POST", f"{HERE}/s1/cancel", json={})
    ended = await api.ask("GET", f"{HERE}/s1/result?waitSeconds=10")

    assert open_still.status == 202
    assert (cancelled.status, again.status) == (202, 200)
    assert ended.body["phase"] == "Cancelled"
    assert "not wanted (by anybody)" in ended.body["message"]


async def test_an_event_for_one_run_and_what_it_shows(api: Api) -> None:
    handle = await api.app.start(api_wait.options(id="w1"), "o1")
    event = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "shop.paid", "data": {"order": "o1"}}
    headers = {"Content-Type": "application/cloudevents+json"}

    taken = await api.ask("POST", f"{HERE}/w1/events", data=json.dumps(event), headers=headers)
    batch = await api.ask(
        "POST", f"{HERE}/w1/events", data="[]", headers={"Content-Type": "application/cloudevents-batch+json"}
    )

    assert (taken.status, taken.body["runs"]) == (202, 1)
    assert batch.status == 400
    assert await handle.result(timeout=10) == "o1"
    assert (await api.ask("GET", f"{HERE}/w1/values")).body == {"values": {"state": "waits for o1"}}


async def test_workflows_with_their_schemas_and_workers(api: Api) -> None:
    found = (await api.ask("GET", "/api/v1/workflows")).body["workflows"]
    one = (await api.ask("GET", "/api/v1/workflows/api_send")).body
    workers = (await api.ask("GET", "/api/v1/workers")).body["workers"]

    assert [each["name"] for each in found] == [
        "api_any",
        "api_begin",
        "api_charge",
        "api_emit",
        "api_send",
        "api_sleep",
        "api_wait",
    ]
    assert (one["description"], one["workers"]) == ("Send a parcel.", 1)
    assert one["inputSchema"]["$ref"] == "#/$defs/Parcel"
    assert one["inputSchema"]["$defs"]["Parcel"]["required"] == ["to"]
    assert one["outputSchema"] == {"type": "string"}
    assert [(each["name"], each["workflows"][0], each["isExpired"]) for each in workers] == [("w", "api_any", False)]
    assert (await api.ask("GET", "/api/v1/workflows/nobodys")).body["reason"] == "WorkflowNotRegistered"


async def news(response: ClientResponse) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """The server-sent events of a stream, until it ends."""
    assert response.headers["Content-Type"] == "text/event-stream"
    kind = ""
    async for line in response.content:
        name, _, value = line.decode().strip().partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield kind, json.loads(value)


async def until_waiting(handle: Handle[Any]) -> None:
    await until(handle.info, lambda run: run.phase is Phase.WAITING)


async def test_a_run_is_watched_until_it_ends(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "RUN_SECONDS", 0.02)
    handle = await api.app.start(api_wait.options(id="w1"), "o1")
    await until_waiting(handle)

    async with asyncio.timeout(10), api.session.get(f"{HERE}/w1/watch") as response:
        stream = news(response)
        kind, first = await anext(stream)
        await api.event(data={"order": "o1"})
        rest = [each async for each in stream]

    assert (kind, first["phase"]) == ("run", "Waiting")
    assert {kind for kind, _ in rest} == {"run"}
    assert (rest[-1][1]["phase"], rest[-1][1]["output"]) == ("Succeeded", "o1")


async def test_a_list_is_watched_with_what_comes_and_what_leaves_it(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "LIST_SECONDS", 0.02)
    first = await api.app.start(api_sleep.options(id="s1"), 3600)
    await until_waiting(first)

    async with asyncio.timeout(10), api.session.get(f"{HERE}?watch=true&phase=Waiting") as response:
        stream = news(response)
        assert (await anext(stream))[1]["name"] == "s1"
        await api.app.start(api_sleep.options(id="s2"), 3600)
        assert (await anext(stream))[1]["name"] == "s2"
        await first.cancel()
        kind, each = await anext(stream)
        while kind != "gone":  # the other one may be shown again, with the time at which it is due
            assert each["name"] == "s2"
            kind, each = await anext(stream)
        assert each == {"id": str(first.id)}


async def test_no_more_watch_than_may(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "WATCHES_MAX", 1)
    await api.app.start(api_sleep.options(id="s1"), 3600)

    async with api.session.get(f"{HERE}/s1/watch") as first:
        assert first.status == 200
        refused = await api.ask("GET", f"{HERE}/s1/watch")

    assert (refused.status, refused.body["reason"]) == (429, "TooManyRequests")
    assert refused.headers["Retry-After"] == "10"


async def test_dead_letters_are_listed_sent_again_and_given_up(database: DatabaseSettings) -> None:
    """Of one namespace or of all; another one's are as if they were not there."""
    outbox = OutboxSettings(sink_url="http://127.0.0.1:9/", attempts_max=1)
    async with (
        App(database, WORKFLOWS, worker=WorkerSettings(name="w"), outbox=outbox) as app,
        server.serving(app.http(is_open=True), LOCAL) as port,
        ClientSession(f"http://127.0.0.1:{port}") as session,
    ):
        api = Api(app, session, port, database)
        for nth in range(3):
            await (await app.start(api_emit.options(id=f"e{nth}"), nth)).result(timeout=10)
        await until(app.dead_letters, lambda found: len(found) == 3)

        first = (await api.ask("GET", "/api/v1/dead-letters?limit=2")).body
        rest = (await api.ask("GET", f"/api/v1/namespaces/default/dead-letters?page={first['next']}")).body
        letters = first["deadLetters"] + rest["deadLetters"]
        assert sorted(each["run"] for each in letters) == ["e0", "e1", "e2"]
        assert {each["event"]["type"] for each in letters} == {"shop.emitted"}
        assert rest["next"] is None
        path = f"/api/v1/namespaces/default/dead-letters/{letters[0]['id']}"
        elsewhere = await api.ask("DELETE", path.replace("default", "elsewhere"))
        gone = await api.ask("DELETE", path)
        again = await api.ask("DELETE", path)
        sent = await api.ask("POST", f"/api/v1/dead-letters/{letters[1]['id']}/resend")
        wrong = await api.ask("DELETE", "/api/v1/dead-letters/x")

    assert [answer.status for answer in (elsewhere, gone, again, sent, wrong)] == [404, 200, 404, 202, 400]
    assert again.body["reason"] == "DeadLetterNotFound"
