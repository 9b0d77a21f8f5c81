"""The wheel works alone: SQL, migrations and CRDs are inside."""

import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from romancy.base.settings import DatabaseSettings
from tests import postgres
from tests.packaging.installed import ROOT, Installed

pytestmark = pytest.mark.slow


def test_what_is_inside(installed: Installed) -> None:
    names = set(zipfile.ZipFile(installed.wheel).namelist())

    for folder, pattern in (("operator", "romancy/**/*.py"), ("operator", "romancy/**/*.sql"), (".", "crds/*.yaml")):
        for path in (ROOT / folder).glob(pattern):
            inside = path.relative_to(ROOT / folder)
            assert str(inside if folder == "operator" else Path("romancy") / inside) in names
    assert "romancy/py.typed" in names
    assert not any(name.startswith(("tests", "operator", "tools")) for name in names)


async def test_it_migrates_and_runs_the_onboarding_workflow(
    installed: Installed, postgres_server: postgres.Server, tmp_path: Path
) -> None:
    database: DatabaseSettings = postgres_server.settings(await postgres_server.create_database())
    (tmp_path / "onboarding.py").write_text((ROOT / "workflows/onboarding.py").read_text())
    (tmp_path / "main.py").write_text(
        "import asyncio, json, os, romancy\n"
        "from onboarding import user_onboarding\n"
        "async def main():\n"
        "    async with romancy.App(os.environ['URL'], [user_onboarding]) as app:\n"
        "        handle = await app.start(user_onboarding, 'u1', 'u1@example.com')\n"
        "        print(json.dumps([romancy.__file__, await handle.result()]))\n"
        "asyncio.run(main())\n"
    )

    done = subprocess.run(  # noqa: ASYNC221 - the test does nothing else meanwhile
        [installed.python, "main.py"],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=installed.environment(URL=database.url.get_secret_value()),
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    where, result = json.loads(done.stdout.splitlines()[-1])
    assert where.startswith(str(installed.folder))
    assert result == {"status": "onboarded", "user_id": "u1", "email_sent": True}


def test_every_command_has_help(installed: Installed) -> None:
    for command in ([], ["operator"], ["dev"], ["run"], ["db", "migrate"], ["db", "verify"]):
        done = subprocess.run(
            [installed.romancy, *command, "--help"],
            check=True,
            capture_output=True,
            text=True,
            env=installed.environment(),
        )
        assert "Usage:" in done.stdout
