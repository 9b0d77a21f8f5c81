"""The database, asked by commands: DATABASE_URL, or that of `romancy dev` in this folder."""

import asyncio
import json
import os
import time
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from romancy.base import settings
from romancy.base.settings import DatabaseSettings
from romancy.cli.backend import WATCH_SECONDS, Json, Key, Query
from romancy.client import Client
from romancy.errors import DeadLetterNotFoundError
from romancy.model.event import of_json
from romancy.model.run import Run
from romancy.model.shown import attempt_as_json, dead_letters_as_json, entry_as_json, run_as_json, worker_as_json

RUNNING: Final = Path(".romancy/dev.json")  # where `romancy dev` of this folder says what its database is
LIST_SECONDS: Final = 2.0


def database() -> DatabaseSettings:
    """What the environment names, else the database of `romancy dev` in this folder."""
    options = settings.load().database
    if not options.url.get_secret_value() and RUNNING.exists():
        found = json.loads(RUNNING.read_text())
        if os.path.exists(f"/proc/{found['pid']}") or os.name != "posix":
            return DatabaseSettings.model_validate({"url": found["database_url"]})
    return options


class Direct:
    """Asks PostgreSQL, as `Client` does, one question after the other."""

    def __init__(self) -> None:
        self._client = Client(database())
        self._runner = asyncio.Runner()

    def __enter__(self) -> "Direct":
        self._wait(self._client.store.open(is_migrating=False))
        return self

    def __exit__(self, *_: object) -> None:
        self._wait(self._client.store.close())
        self._runner.close()

    def start(self, namespace: str, asked: Json) -> tuple[Json, bool]:
        """Start a run."""
        delay, timeout = asked.get("delaySeconds"), asked.get("timeoutSeconds")
        run, is_new = self._wait(
            self._client.start_by_name(
                asked["workflow"],
                asked.get("input", {}),
                id=asked.get("name"),
                namespace=namespace,
                labels=asked.get("labels"),
                priority=asked.get("priority", 0),
                delay=None if delay is None else timedelta(seconds=delay),
                timeout=None if timeout is None else timedelta(seconds=timeout),
            )
        )
        return self._shown(run), is_new

    def run(self, key: Key) -> Json:
        """The run as it is now."""
        return self._shown(self._read(key))

    def runs(self, query: Query) -> Json:
        """A page of a list."""

        async def page() -> Json:
            found = await self._client.list(namespace=query.namespace or "*", **query.filters)
            return {"runs": [run_as_json(run) for run in found], "next": found.next}

        return self._wait(page())

    def watch_run(self, key: Key) -> Iterator[Json]:
        """The run, and again whenever it changes, until it has ended."""
        found = self._read(key)
        last: Json | None = None
        while True:
            if (now := self._shown(found)) != last:
                last = now
                yield now
            if found.is_done:
                return
            time.sleep(WATCH_SECONDS)
            found = self._wait(self._client.read(found.id, ""))

    def watch_runs(self, query: Query) -> Iterator[Json]:
        """The runs of a page, and each again when it changes."""
        known: dict[str, Json] = {}
        while True:
            for run in reversed(self.runs(query)["runs"]):
                if known.get(run["id"]) != run:
                    known[run["id"]] = run
                    yield run
            time.sleep(LIST_SECONDS)

    def history(self, key: Key) -> Json:
        """All that happened to a run."""
        run_id, store = self._read(key).id, self._client.store
        attempts = self._wait(store.read_attempts([run_id]))[run_id]
        return {
            "entries": [entry_as_json(entry) for entry in self._wait(store.read_history(run_id))],
            "attempts": [attempt_as_json(attempt) for attempt in attempts],
        }

    def values(self, key: Key) -> Json:
        """What a run shows to outsiders."""
        return self._wait(self._client.handle(self._read(key).id).values())

    def change(self, key: Key, verb: str, message: str = "") -> tuple[Json, bool]:
        """cancel, suspend, resume or retry."""
        run_id = self._read(key).id
        handle, by = self._client.handle(run_id), f"cli:{os.environ.get('USER', '')}"
        match verb:
            case "cancel":
                is_new = self._wait(handle.cancel(message, by=by))
            case "suspend":
                is_new = self._wait(handle.suspend(by=by))
            case "resume":
                is_new = self._wait(handle.resume(by=by))
            case _:
                assert verb == "retry"
                is_new = self._wait(handle.retry(by=by))
        return self._shown(self._wait(self._client.read(run_id, ""))), is_new

    def send_event(self, event: Json, to: Key | None) -> Json:
        """Send a CloudEvent."""
        cloudevent = of_json(event)
        if cloudevent.time is None:
            cloudevent = replace(cloudevent, time=self._wait(self._client.store.now()))
        run_id = None if to is None else self._read(to).id
        receipt = self._wait(self._client.store.send_event(cloudevent, to=run_id))
        return {
            "status": "accepted",
            "id": cloudevent.id,
            "source": cloudevent.source,
            "runs": receipt.runs,
            "started": receipt.started,
            "duplicate": not receipt.is_new,
        }

    def dead_letters(self, namespace: str | None, *, limit: int, page: int | None) -> Json:
        """A page of them."""
        store = self._client.store
        return dead_letters_as_json(self._wait(store.list_dead_letters(namespace, limit=limit + 1, before=page)), limit)

    def resend_dead_letter(self, namespace: str | None, number: int) -> None:
        """Have one delivered again."""
        if not self._wait(self._client.store.resend_dead_letter(number, namespace=namespace)):
            raise DeadLetterNotFoundError(number)

    def delete_dead_letter(self, namespace: str | None, number: int) -> None:
        """Give one up."""
        if not self._wait(self._client.store.delete_dead_letter(number, namespace=namespace)):
            raise DeadLetterNotFoundError(number)

    def workers(self) -> list[Json]:
        """Who executes runs."""
        return [worker_as_json(worker) for worker in self._wait(self._client.store.list_workers())]

    def workflows(self) -> list[Json]:
        """What live workers have. Their code is not here, so nothing is known of its input and output."""
        live = [worker for worker in self.workers() if not worker["isExpired"]]
        names = sorted({name for worker in live for name in worker["workflows"]})
        unknown = {"description": None, "inputSchema": None, "outputSchema": None}
        return [
            {"name": name, **unknown, "workers": sum(name in worker["workflows"] for worker in live)} for name in names
        ]

    def _read(self, key: Key) -> Run:
        self._client.namespace = key.namespace
        try:
            return self._wait(self._client.read(UUID(key.name), ""))
        except ValueError:
            return self._wait(self._client.read(None, key.name))

    def _shown(self, run: Run) -> Json:
        return run_as_json(self._wait(self._client.explained(run)))

    def _wait[T](self, question: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(question)
