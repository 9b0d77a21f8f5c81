"""Health: live is the loop alone, ready is everything that work needs."""

from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from romancy import App, workflow
from romancy.base.settings import DatabaseSettings, GatewaySettings, WorkerSettings
from romancy.gateway import server
from tests import postgres

LOCAL = GatewaySettings(host="127.0.0.1", port=0)


@workflow(name="health_check")
async def health_check() -> None:
    pass


async def get(port: int, path: str) -> tuple[int, dict[str, str]]:
    async with ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as response:
        return response.status, await response.json()


async def test_ready_while_it_takes_work_and_not_while_it_drains(database: DatabaseSettings) -> None:
    async with (
        App(database, [health_check], worker=WorkerSettings(name="w")) as app,
        server.serving(app.http(), LOCAL) as port,
    ):
        assert await get(port, "/healthz/live") == (200, {"status": "live"})
        assert await get(port, "/healthz/ready") == (200, {"status": "ready"})
        await app.worker.drain()
        status, body = await get(port, "/healthz/ready")

    assert status == 503
    assert body["reason"].startswith("not ready: worker")


async def test_mounted_under_a_prefix_in_somebody_s_application(database: DatabaseSettings) -> None:
    async with App(database, [health_check], worker=WorkerSettings(name="w")) as app:
        outer = web.Application()
        outer.add_subapp("/romancy/", app.http())
        async with TestServer(outer) as somebodys:
            assert somebodys.port is not None
            assert (await get(somebodys.port, "/romancy/healthz/ready"))[0] == 200


async def test_the_database_is_away_live_is_not_its_business() -> None:
    with postgres.server(postgres.embedded_binaries()) as own:
        settings = (await own.migrated_database()).model_copy(
            update={"connect_timeout_seconds": 0.5, "give_up_seconds": 1}
        )
        app = App(settings, [health_check], worker=WorkerSettings(name="w"))
        await app.__aenter__()
        serving = server.serving(app.http(), LOCAL)
        port = await serving.__aenter__()
    try:
        assert (await get(port, "/healthz/live"))[0] == 200
        status, body = await get(port, "/healthz/ready")
        assert status == 503
        assert "PostgreSQL gave no answer" in body["reason"] or "not ready" in body["reason"]
    finally:
        await serving.__aexit__(None, None, None)
        await app.__aexit__(None, None, None)
