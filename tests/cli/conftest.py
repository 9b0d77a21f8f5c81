"""An engine with workflows, asked by the command line in both ways."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from click.testing import CliRunner, Result

from romancy import App
from romancy.base.settings import DatabaseSettings, WorkerSettings
from romancy.cli.main import main
from romancy.gateway import server
from tests.cli.flows import BANK, WORKFLOWS
from tests.gateway.conftest import LOCAL

WORKER = WorkerSettings(name="w", park_after_seconds=0)


@dataclass
class Cli:
    """`romancy` against one engine."""

    app: App
    environment: dict[str, str]

    async def __call__(self, *arguments: str, input: str | None = None) -> Result:  # noqa: A002 - click's word
        """What a command prints, and its exit code."""
        return await asyncio.to_thread(
            CliRunner(env=self.environment).invoke, main, [*arguments], input, catch_exceptions=False
        )

    async def said(self, *arguments: str) -> str:
        """The output of one that must succeed."""
        done = await self(*arguments)
        assert done.exit_code == 0, done.stderr
        return done.stdout

    async def told(self, *arguments: str) -> Any:
        """The same, as JSON."""
        return json.loads(await self.said(*arguments, "-o", "json"))


@pytest.fixture(autouse=True)
def _bank() -> Iterator[None]:
    BANK["is_away"] = False
    yield
    BANK["is_away"] = False


@pytest.fixture(params=["database", "api"])
async def cli(request: pytest.FixtureRequest, database: DatabaseSettings) -> AsyncIterator[Cli]:
    """Both ways must give the same."""
    nothing = {"DATABASE_URL": "", "ROMANCY_API__URL": ""}
    async with (
        App(database, WORKFLOWS, worker=WORKER) as app,
        server.serving(app.http(is_open=True), LOCAL) as port,
    ):
        if request.param == "api":
            yield Cli(app, {**nothing, "ROMANCY_API__URL": f"http://127.0.0.1:{port}"})
        else:
            yield Cli(app, {**nothing, "DATABASE_URL": database.url.get_secret_value()})
