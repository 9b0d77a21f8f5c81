"""A run as a tree in a terminal: what it has done, what it waits for, and how it goes on; drawn anew while it does."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from romancy.cli.backend import WATCH_SECONDS, Backend, Json, Key

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

ENTRIES_MAX: Final = 30
"""Of a long history its last entries are shown."""
_SIGNS: Final = {
    "Completed": ("✓", "green"),
    "Failed": ("✗", "red"),
    "Cancelled": ("⊘", "yellow"),
    "Fired": ("✓", "green"),
}
_PHASES: Final = {"Succeeded": "green", "Failed": "red", "Cancelled": "yellow", "Blocked": "red", "Suspended": "yellow"}


def follow(backend: Backend, key: Key, *, pause: Callable[[float], None] = time.sleep) -> Json:
    """Draw a run on stderr until it has ended; the run as it is then."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        for run, history in _states(backend, key, pause):
            live.update(tree_of(run, history), refresh=True)
    return run


def _states(backend: Backend, key: Key, pause: Callable[[float], None]) -> Iterator[tuple[Json, Json]]:
    while True:
        run = backend.run(key)
        yield run, backend.history(key)
        if run["finishedAt"] is not None:
            return
        pause(WATCH_SECONDS)


def tree_of(run: Json, history: Json, *, now: datetime | None = None) -> "Tree":
    """The tree of one moment."""
    from rich.text import Text
    from rich.tree import Tree

    ended = run["finishedAt"] and datetime.fromisoformat(run["finishedAt"])
    colour = _PHASES.get(run["phase"], "cyan")
    head = Text.assemble(
        (run["phase"], f"bold {colour}"),
        f" {run['namespace']}/{run['name']} ",
        (f"{run['workflow']} {_seconds(run['startedAt'], ended or now or datetime.now(UTC))}", "dim"),
    )
    tree = Tree(head)
    entries = history["entries"]
    if len(entries) > ENTRIES_MAX:
        tree.add(Text(f"… {len(entries) - ENTRIES_MAX} before", "dim"))
    before = entries[-ENTRIES_MAX - 1]["at"] if len(entries) > ENTRIES_MAX else run["startedAt"]
    for entry in entries[-ENTRIES_MAX:]:
        tree.add(_entry(entry, before, history["attempts"]))
        before = entry["at"]
    is_open = {entry["number"] for entry in entries if entry["command"] == "activity"}
    for number in sorted({each["number"] for each in history["attempts"]} - is_open):
        tried = [each for each in history["attempts"] if each["number"] == number]
        last = max(tried, key=lambda each: each["attempt"])
        text = f"attempt {last['attempt']} of activity #{number} failed: {last['failure']['message']}"
        tree.add(Text.assemble(("↻ ", "yellow"), f"{text}; the next at {last['nextAt']}"))
    if not ended:
        tree.add(Text.assemble(("… ", "cyan"), run["message"]))
        if run["next"] and not run["next"].startswith("nothing: "):
            tree.add(Text.assemble(("→ ", "bold"), run["next"]))
    elif run["phase"] != "Succeeded":
        tree.add(Text.assemble(("✗ ", colour), run["message"]))
    return tree


def _entry(entry: Json, before: str | None, attempts: list[Json]) -> "Text":
    from rich.text import Text

    ending = next((each for each in _SIGNS if entry["kind"].endswith(each)), None)
    sign, colour = _SIGNS[ending] if ending else ("·", "dim")
    tries = sum(each["number"] == entry["number"] for each in attempts) if entry["command"] == "activity" else 0
    what = " ".join(
        part
        for part in (
            entry["command"] or entry["kind"],
            f"{entry['name']}#{entry['number']}" if entry["number"] else entry["name"],
            f"(attempt {tries + 1})" if tries else "",
            ending.lower() if ending and entry["command"] else "",
        )
        if part
    )
    failure = entry.get("failure")
    why = f": {failure['type']}: {failure['message']}" if failure else ""
    return Text.assemble(
        (f"{sign} ", colour), what, why, (f"  {_seconds(before, datetime.fromisoformat(entry['at']))}", "dim")
    )


def _seconds(since: str | None, until: datetime) -> str:
    """How long it took."""
    if since is None:
        return ""
    seconds = max(0.0, (until - datetime.fromisoformat(since)).total_seconds())
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"
