"""docs/http.md: its commands are run as they stand, against a process that has the README's workflow."""

import asyncio
import os
import re
from pathlib import Path

from romancy import App
from romancy.base.settings import DatabaseSettings, GatewaySettings, WorkerSettings
from romancy.gateway import server
from workflows.onboarding import user_onboarding

ROOT = Path(__file__).parents[2]


async def test_each_command_of_the_page_is_answered(database: DatabaseSettings) -> None:
    text = (ROOT / "docs/http.md").read_text()
    blocks = re.findall(r"^```shell\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    commands = [command for block in blocks for command in block.replace("\\\n", " ").splitlines()]
    token = "a-token-of-this-test"
    async with (
        App(database, [user_onboarding], worker=WorkerSettings(name="w")) as app,
        server.serving(app.http(tokens={token: "Operator"}), GatewaySettings(host="127.0.0.1", port=0)) as port,
    ):
        environment = {**os.environ, "TOKEN": token, "ROMANCY": f"http://127.0.0.1:{port}"}
        answers = []
        for command in commands:
            done = await asyncio.create_subprocess_shell(
                command.replace("curl ", "curl --fail-with-body --max-time 20 ", 1),
                env=environment,
                stdout=asyncio.subprocess.PIPE,
            )
            out, _ = await done.communicate()
            assert done.returncode == 0, (command, out.decode())
            answers.append(out.decode())

    assert len(commands) == 9
    workflows, started, ended, history, listed, watched, *events = answers
    assert '"user_onboarding"' in workflows
    assert '"phase": "Pending"' in started or '"phase": "Running"' in started
    assert '"phase": "Succeeded"' in ended
    assert history.count('"ActivityCompleted"') == 2
    assert '"name": "u1"' in listed
    assert watched.startswith("event: run\n")
    assert all('"duplicate": false' in each for each in events)
