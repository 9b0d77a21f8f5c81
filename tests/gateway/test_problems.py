"""An error that nobody foresaw: told without its text, and logged without the values of variables."""

import json
import subprocess
import sys
from typing import Any

import pytest

from romancy.store.postgres import PostgresStore
from tests.gateway.conftest import Api

SECRET = "not-for-everybody"
PROGRAM = """
from romancy.base import log
log.configure(as_json={as_json})
def breaks():
    url = "postgresql://romancy:" + "-".join(["not", "for", "everybody"]) + "@db"
    raise KeyError(len(url))
try:
    breaks()
except KeyError:
    log.get("test").exception("request_failed")
"""


async def test_an_unforeseen_error_tells_nothing(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def breaks(self: PostgresStore, run_id: object) -> Any:
        raise KeyError(SECRET)

    monkeypatch.setattr(PostgresStore, "read_run", breaks)
    answer = await api.ask("GET", "/api/v1/runs/f9799ca7-952a-5966-8054-d82614bc5160")

    assert answer.status == 500
    assert (answer.body["reason"], answer.body["retryable"]) == ("Internal", True)
    assert SECRET not in json.dumps(answer.body)


@pytest.mark.parametrize("as_json", [True, False])
def test_a_trace_in_the_log_shows_no_values(as_json: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(as_json=as_json)], capture_output=True, text=True, check=True
    )

    assert "request_failed" in done.stdout
    assert "KeyError" in done.stdout
    assert "breaks" in done.stdout
    assert SECRET not in done.stdout + done.stderr
