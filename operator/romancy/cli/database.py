"""`romancy db`: the schema, and whether all that is in it holds together."""

import asyncio
import sys

import click

from romancy.base import settings


@click.group()
def db() -> None:
    """The database of DATABASE_URL: bring its schema up to date, look for what may never be."""


@db.command()
def migrate() -> None:
    """Bring the schema of the database up to date, and end."""
    from romancy.store.migrate import migrate as bring_up_to_date

    applied = asyncio.run(bring_up_to_date(settings.load().database))
    click.echo(f"applied {', '.join(map(str, applied))}" if applied else "the schema is up to date")


@db.command()
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="Breaches of a kind to show.")
def verify(limit: int) -> None:
    """Check the invariants of the engine against the database, while it runs.

    Reads every table, writes nothing. Prints a line for each breach with what to do. Exits with 1 if there is one.
    """
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
