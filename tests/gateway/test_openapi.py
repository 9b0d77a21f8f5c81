"""The OpenAPI document, and that the handlers do what it says: whatever it allows or forbids is sent to them."""

import asyncio
import os
import sys
from pathlib import Path

import pytest
from aiohttp import web
from openapi_spec_validator import validate

from romancy import App
from romancy.base.settings import DatabaseSettings, GatewaySettings, WorkerSettings
from romancy.client import Handle
from romancy.gateway import access, openapi, server, watching
from romancy.gateway import api as operations
from romancy.model.run import Run
from tests.gateway.flows import WORKFLOWS, Parcel, api_send, api_wait

CASES = int(
    os.environ.get("SCHEMATHESIS_EXAMPLES", "12")
)  # of each operation and phase; 200 make more than 5,000 in all
TOKEN = "a-token-of-this-test"


def test_the_document_is_one_and_names_every_route() -> None:
    document = openapi.document()
    validate(document)

    described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    app = web.Application()
    app.add_routes(operations.routes())
    served = {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    assert described == served


async def test_what_it_allows_and_forbids_is_answered_as_it_says(
    database: DatabaseSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Schemathesis sends what fits the document and what does not: no 5xx, and no answer that the document does not know."""
    monkeypatch.setattr(watching, "WATCH_SECONDS_MAX", 0.1)
    monkeypatch.setattr(access, "FAILED_PER_SECOND", 1e9)
    wait = Handle.wait

    async def wait_a_moment(handle: Handle[object], *, timeout: float | None = None) -> Run:
        return await wait(handle, timeout=min(timeout or 0, 0.01))

    monkeypatch.setattr(Handle, "wait", wait_a_moment)
    unlimited = GatewaySettings(host="127.0.0.1", port=0, requests_per_second=1e9, events_per_second=1e9)
    monkeypatch.setattr("romancy.app.GatewaySettings", lambda **_: unlimited)
    async with (
        App(database, WORKFLOWS, worker=WorkerSettings(name="w")) as app,
        server.serving(app.http(tokens={TOKEN: "Operator"}), unlimited) as port,
    ):
        await (await app.start(api_send.options(id="p1"), Parcel(to="Ada"))).result(timeout=10)
        await app.start(api_wait.options(id="w1"), "o1")

        done = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-c",
                "from schemathesis.cli import schemathesis; schemathesis()",
                "run",
                f"http://127.0.0.1:{port}/openapi.json",
            ),
            # What else must hold of a valid request (a page is of this search, an input fits its workflow) no schema can say.
            *(
                "--checks",
                "all",
                "--exclude-checks",
                "positive_data_acceptance,use_after_free,ensure_resource_availability",
            ),
            *("--header", f"Authorization: Bearer {TOKEN}"),
            *(
                "--max-examples",
                str(CASES),
                "--seed",
                "20261124",
                "--workers",
                "1",
                "--phases",
                "examples,coverage,fuzzing",
            ),
            *("--no-color", "--continue-on-failure", "--request-timeout", "20"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await done.communicate()
        print(out.decode())

    assert done.returncode == 0, out.decode()[-20_000:]
