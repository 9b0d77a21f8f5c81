"""`romancy db`: the schema, whether all that is in it holds together, and what is deleted from it."""

import asyncio
import sys
from datetime import timedelta

import click

from romancy.cli import options
from romancy.cli.runs import ENDED


@click.group()
def db() -> None:
    """The database of DATABASE_URL: bring its schema up to date, look for what may never be."""


@db.command()
def migrate() -> None:
    """Bring the schema of the database up to date, and end."""
    from romancy.base import settings
    from romancy.store.migrate import migrate as bring_up_to_date

    applied = asyncio.run(bring_up_to_date(settings.load().database))
    click.echo(f"applied {', '.join(map(str, applied))}" if applied else "the schema is up to date")


@db.command()
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="Breaches of a kind to show.")
def verify(limit: int) -> None:
    """Check the invariants of the engine against the database, while it runs.

    Reads every table, writes nothing. Prints a line for each breach with what to do. Exits with 1 if there is one.
    """
    from romancy.base import settings
    from romancy.store.verify import find_breaches, size_up

    database = settings.load().database
    breaches = asyncio.run(find_breaches(database, limit=limit))
    for breach in breaches:
        click.echo(str(breach))
    size = asyncio.run(size_up(database))
    looked_at = f"{size.runs:,} runs ({size.open:,} open), {size.entries:,} entries, {size.workers:,} workers"
    if breaches:
        click.echo(f"{len(breaches)} breaches in {looked_at}", err=True)
        sys.exit(1)
    click.echo(f"all holds: {looked_at}")


@db.command()
@click.option("--older-than", required=True, type=options.duration, help="Since their end, as in 30d; at least 10m.")
@click.option(
    "--phase",
    "phases",
    multiple=True,
    type=click.Choice(ENDED, case_sensitive=False),
    help="Default: all three.",
)
@options.namespace
@options.all_namespaces
@click.option("--workflow", help="Of this workflow.")
@click.option("--dry-run", is_flag=True, help="Only count.")
def purge(
    older_than: timedelta,
    phases: tuple[str, ...],
    namespace: str,
    all_namespaces: bool,
    workflow: str | None,
    dry_run: bool,
) -> None:
    """Delete ended runs with their history, in small transactions beside all that goes on. It can't be taken back.

    A run whose WorkflowRun is there stays. Prints how many by outcome. Afterwards their names are free.
    """
    from romancy.cli.direct import database
    from romancy.client import Client

    async def purged() -> None:
        async with Client(database()) as client:
            for phase in phases or ENDED:
                count = await client.purge(
                    older_than=older_than,
                    phases=[phase],
                    namespace="*" if all_namespaces else namespace,
                    workflow=workflow,
                    dry_run=dry_run,
                )
                click.echo(f"{phase}: {count:,} {'would be purged' if dry_run else 'purged'}")

    asyncio.run(purged())
