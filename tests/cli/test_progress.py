"""A run as a tree in a terminal."""

import io
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from romancy.cli import progress
from romancy.cli.backend import Json, Key

NOW = datetime(2026, 1, 1, 12, 1, 5, tzinfo=UTC)
RUN: Json = {
    "namespace": "shop",
    "name": "order-1",
    "workflow": "order",
    "phase": "Waiting",
    "message": "waiting for event paid",
    "next": "nothing: it goes on when the event comes",
    "startedAt": "2026-01-01T12:00:00Z",
    "finishedAt": None,
}


def entry(kind: str, command: str | None, number: int, at: str, **more: Any) -> Json:
    return {"kind": kind, "command": command, "number": number, "name": "step", "at": at, "position": number, **more}


def attempt(number: int, nth: int) -> Json:
    failure = {"type": "OSError", "message": "away", "trace": ""}
    return {"number": number, "attempt": nth, "failure": failure, "failedAt": "", "nextAt": "2026-01-01T12:02:00Z"}


def drawn(run: Json, history: Json) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=120, color_system=None).print(progress.tree_of(run, history, now=NOW))
    return text.getvalue().splitlines()


def test_what_is_done_what_is_tried_again_and_what_it_waits_for() -> None:
    failure = {"type": "ValueError", "message": "no", "trace": ""}
    history = {
        "entries": [
            entry("ActivityCompleted", "activity", 1, "2026-01-01T12:00:01.5Z"),
            entry("ActivityFailed", "activity", 2, "2026-01-01T12:00:02Z", failure=failure),
            entry("TimerFired", "timer", 1, "2026-01-01T12:01:02Z"),
            entry("ChildCompleted", "child", 1, "2026-01-01T12:01:03Z"),
            entry("Retried", None, 0, "2026-01-01T12:01:04Z"),
        ],
        "attempts": [attempt(1, 1), attempt(3, 1), attempt(3, 2)],
    }

    assert drawn(RUN, history) == [
        "Waiting shop/order-1 order 1m05s",
        "├── ✓ activity step#1 (attempt 2) completed  1.5s",
        "├── ✗ activity step#2 failed: ValueError: no  0.5s",
        "├── ✓ timer step#1 fired  1m00s",
        "├── ✓ child step#1 completed  1.0s",
        "├── · Retried step  1.0s",
        "├── ↻ attempt 2 of activity #3 failed: away; the next at 2026-01-01T12:02:00Z",
        "└── … waiting for event paid",
    ]


def test_who_has_to_do_something_is_told_what() -> None:
    suspended = {
        **RUN,
        "phase": "Suspended",
        "message": "suspended",
        "next": "resume it: romancy resume order-1 -n shop",
    }

    assert drawn(suspended, {"entries": [], "attempts": []})[-1] == "└── → resume it: romancy resume order-1 -n shop"


def test_a_long_history_is_shown_from_its_end() -> None:
    entries = [entry("TimerFired", "timer", nth, "2026-01-01T12:00:01Z") for nth in range(1, 101)]

    lines = drawn(
        {**RUN, "finishedAt": "2026-01-01T12:00:02Z", "phase": "Succeeded"}, {"entries": entries, "attempts": []}
    )

    assert lines[:2] == ["Succeeded shop/order-1 order 2.0s", "├── … 70 before"]
    assert len(lines) == 32


def test_markup_in_names_and_messages_is_text() -> None:
    failed = {**RUN, "phase": "Failed", "finishedAt": "2026-01-01T12:00:02Z", "message": "[bold]no[/bold]"}

    assert drawn(failed, {"entries": [], "attempts": []})[-1] == "└── ✗ [bold]no[/bold]"


def test_a_run_is_followed_to_its_end(capsys: Any) -> None:
    class Backend:
        states = iter([RUN, {**RUN, "phase": "Succeeded", "finishedAt": "2026-01-01T12:00:02Z"}])

        def run(self, key: Key) -> Json:
            return next(self.states)

        def history(self, key: Key) -> Json:
            return {"entries": [], "attempts": []}

    pauses: list[float] = []
    backend: Any = Backend()

    assert progress.follow(backend, Key("shop", "order-1"), pause=pauses.append)["phase"] == "Succeeded"

    assert pauses == [0.5]
    assert capsys.readouterr().out == ""
