"""The HTTP API as the command line asks it, where the other side is not as it should be."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from romancy.cli.api import Api
from romancy.cli.backend import Key, Query
from romancy.errors import ProblemError, StoreUnavailableError
from tests.cli.test_main import romancy

Answer = tuple[int, dict[str, str], str]


class Stub(ThreadingHTTPServer):
    """Answers as a test says, and keeps what was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, str, dict[str, str], str]] = []
        self.answers: Callable[[str], Answer] = lambda path: (200, {}, "{}")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self.server.asked.append((self.command, self.path, dict(self.headers), body))
        status, headers, text = self.server.answers(self.path)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def problem(status: int, **told: object) -> Answer:
    return (
        status,
        {"Content-Type": "application/problem+json"},
        json.dumps({"detail": "no", "reason": "Forbidden", **told}),
    )


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (problem(403, hint="ask for it"), 5, "error (Forbidden): no\nhint: ask for it\n"),
        (problem(401, reason="Unauthenticated"), 5, "error (Unauthenticated): no\n"),
        (problem(404, reason="RunNotFound"), 3, "error (RunNotFound): no\n"),
        (problem(503, reason="StoreUnavailable"), 4, "error (StoreUnavailable): no\n"),
        (problem(409, reason="RetryRefused"), 1, "error (RetryRefused): no\n"),
        (problem(400, reason="FilterInvalid"), 2, "error (FilterInvalid): no\n"),
        ((502, {}, "<html>"), 1, "answers 502"),
        ((302, {"Location": "http://127.0.0.1:1/"}, ""), 1, "answers 302"),
        ((200, {}, "<html>"), 4, "answers with something that is no JSON"),
    ],
)
def test_a_refusal_is_told_as_it_is(stub: Stub, answer: Answer, code: int, said: str) -> None:
    stub.answers = lambda path: answer

    done = romancy("get", "x", ROMANCY_API__URL=stub.url)

    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_token_goes_along_and_nowhere_else(stub: Stub, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    stub.answers = lambda path: problem(403)

    done = romancy("get", "x", "--server", stub.url, "--token-file", str(file), ROMANCY_API__TOKEN="other")

    [(_, path, headers, _)] = stub.asked
    assert (path, headers["Authorization"]) == ("/api/v1/namespaces/default/runs/x", "Bearer s3cret")
    assert "s3cret" not in done.stderr


def test_names_and_filters_are_quoted(stub: Stub) -> None:
    stub.answers = lambda path: (200, {}, '{"runs":[],"next":null}')
    with Api(stub.url + "/", "") as api:
        api.run(Key("a/b", "x?y#z"))
        api.runs(
            Query(None, {"labels": {"team": "a&b"}, "phases": ("Failed", "Blocked"), "input": {"a": 1}, "after": "t"})
        )

    assert [path for _, path, _, _ in stub.asked] == [
        "/api/v1/namespaces/a%2Fb/runs/x%3Fy%23z",
        "/api/v1/runs?label=team%3Da%26b&phase=Failed&phase=Blocked&input=%7B%22a%22%3A+1%7D&page=t",
    ]


def test_a_watch_that_is_cut_off_begins_anew(stub: Stub) -> None:
    """The process that is asked may be replaced meanwhile; what was seen before is not told again."""
    states = [{"id": "1", "phase": "Running", "finishedAt": None}, {"id": "1", "phase": "Succeeded", "finishedAt": "T"}]
    streams = iter([[states[0]], [states[0], states[1]]])

    def answers(path: str) -> Answer:
        lines = "".join(f"event: run\ndata: {json.dumps(state)}\n\n: still here\n\n" for state in next(streams))
        return 200, {"Content-Type": "text/event-stream"}, lines

    stub.answers = answers

    assert list(Api(stub.url, "").watch_run(Key("n", "x"))) == states


def test_what_changes_a_run_is_posted(stub: Stub) -> None:
    stub.answers = lambda path: (202, {}, '{"phase":"Running"}')

    assert Api(stub.url, "").change(Key("n", "x"), "cancel", "why") == ({"phase": "Running"}, True)
    [(method, path, headers, body)] = stub.asked
    assert (method, path, body) == ("POST", "/api/v1/namespaces/n/runs/x/cancel", '{"message": "why"}')
    assert headers["Content-Type"] == "application/json"


def test_nobody_there() -> None:
    with pytest.raises(StoreUnavailableError, match="the HTTP API gave no answer"):
        Api("http://127.0.0.1:1", "").workers()
    with pytest.raises(ProblemError):
        raise ProblemError("no", reason="Forbidden", status=403)
