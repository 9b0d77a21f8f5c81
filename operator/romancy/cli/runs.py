"""`romancy run`: start a run by the name of its workflow, and wait for it. `romancy runs`: find runs, and delete old ones."""

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import uuid4

import click

from romancy.base import settings
from romancy.base.settings import DatabaseSettings
from romancy.cli.dev import RUNNING
from romancy.client import Client, refuse_other
from romancy.errors import RomancyError, WorkflowNotRegisteredError, at
from romancy.model.message import message_of
from romancy.model.run import NewRun, run_id_of
from romancy.model.shown import run_as_json
from romancy.store.postgres import PostgresStore


async def start(workflow: str, text: str, *, name: str | None, namespace: str, wait: bool) -> int:
    """Start a run, print its id and, if waited for, its output; the exit code."""
    async with Client(_database(), namespace=namespace) as client:
        new = await insert(client.store, workflow, text, name=name, namespace=namespace)
        click.echo(f"{new.namespace}/{new.name} {new.id}", err=wait)
        if not wait:
            return 0
        try:
            output = await client.handle(new.id).result()
        except Exception as error:
            reason = error.reason if isinstance(error, RomancyError) else type(error).__name__
            click.echo(f"failed ({reason}): {error}", err=True)
            return 1
        click.echo(json.dumps(output, ensure_ascii=False))
        return 0


async def insert(store: PostgresStore, workflow: str, text: str, *, name: str | None, namespace: str) -> NewRun:
    """Insert a run whose form the first worker decides; says so if no live worker has the workflow."""
    known = {found for worker in await store.list_workers() if not worker.is_expired for found in worker.workflows}
    if workflow not in known:
        error = WorkflowNotRegisteredError(
            workflow, near=difflib.get_close_matches(workflow, known, n=3), known=len(known)
        )
        click.echo(f"warning ({error.reason}): {error.message}; {error.hint}", err=True)
    name = name or f"{workflow.replace('_', '-')}-{uuid4().hex[:8]}"
    new = NewRun(run_id_of(namespace, name), namespace, name, workflow, text)
    [started] = await store.start_runs([new])
    if started.existing is not None:
        refuse_other(new, started.existing)
    return new


async def show(namespace: str, form: str, filters: Mapping[str, Any]) -> None:
    """Print one page of runs, and the token of the next."""
    async with Client(_database()) as client:
        page = await client.list(namespace=namespace, **filters)
    if form == "json":
        shown = {"runs": [run_as_json(run) for run in page], "next": page.next}
        click.echo(json.dumps(shown, ensure_ascii=False, indent=2))
        return
    rows = [_HEAD, *[(run.namespace, run.name, run.workflow, run.phase, at(run.created_at)) for run in page]]
    widths = [max(len(row[nth]) for row in rows) for nth in range(len(_HEAD))]
    for row, text in zip(rows, ["WHY", *[_in_a_line(message_of(run)) for run in page]], strict=True):
        click.echo("  ".join([*[cell.ljust(width) for cell, width in zip(row, widths, strict=True)], text]).rstrip())
    if page.next is not None:
        click.echo(f"more: --page {page.next}", err=True)


async def purge(
    namespace: str, workflow: str | None, phases: Sequence[str], older_than: timedelta, *, dry_run: bool
) -> None:
    """Delete ended runs, or only count them, and say how many by outcome."""
    async with Client(_database()) as client:
        for phase in phases:
            count = await client.purge(
                older_than=older_than, phases=[phase], namespace=namespace, workflow=workflow, dry_run=dry_run
            )
            click.echo(f"{phase}: {count:,} {'would be purged' if dry_run else 'purged'}")


_HEAD = ("NAMESPACE", "NAME", "WORKFLOW", "PHASE", "CREATED")
_WHY_MAX = 100


def _in_a_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WHY_MAX else f"{line[: _WHY_MAX - 1]}…"


def _database() -> DatabaseSettings:
    options = settings.load().database
    if not options.url.get_secret_value() and RUNNING.exists():
        found = json.loads(RUNNING.read_text())
        if os.path.exists(f"/proc/{found['pid']}") or os.name != "posix":
            return DatabaseSettings.model_validate({"url": found["database_url"]})
    return options
