"""`romancy run`: start a run by the name of its workflow, and wait for it."""

import difflib
import json
import os
from uuid import uuid4

import click

from romancy.base import settings
from romancy.base.settings import DatabaseSettings
from romancy.cli.dev import RUNNING
from romancy.client import Client, refuse_other
from romancy.errors import RomancyError, WorkflowNotRegisteredError
from romancy.model.run import NewRun, run_id_of
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


def _database() -> DatabaseSettings:
    options = settings.load().database
    if not options.url.get_secret_value() and RUNNING.exists():
        found = json.loads(RUNNING.read_text())
        if os.path.exists(f"/proc/{found['pid']}") or os.name != "posix":
            return DatabaseSettings.model_validate({"url": found["database_url"]})
    return options
