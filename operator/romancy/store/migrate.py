"""Brings the schema to the version of this code: numbered additive files, each applied once, in one transaction.

What drops something comes a release later, so that two versions can run side by side. A process that is older than the
schema refuses to start instead of writing what the newer one does not expect.
"""

import functools
import re
from dataclasses import dataclass
from importlib import resources
from typing import Final

import asyncpg

from romancy.base import log
from romancy.base.settings import DatabaseSettings
from romancy.errors import SchemaVersionError
from romancy.store.pool import close_quietly, connect, unavailable_as_ours

logger = log.get(__name__)

SERVER_MIN: Final = 140000
_FILE: Final = re.compile(r"(\d{4})_(\w+)\.sql")


@dataclass(frozen=True, slots=True)
class Migration:
    """One file."""

    number: int
    name: str
    text: str


def migrations() -> list[Migration]:
    """The files beside this module, in order, numbered without gaps from 1."""
    files = (resources.files(__package__) / "migrations").iterdir()
    named = [(match, file) for file in files if (match := _FILE.fullmatch(file.name))]
    found = [Migration(int(match[1]), match[2], file.read_text()) for match, file in named]
    found.sort(key=lambda migration: migration.number)
    assert [migration.number for migration in found] == list(range(1, len(found) + 1)), "migrations have gaps"
    return found


@functools.cache
def schema_version() -> int:
    """The version of the schema that this code brings."""
    return migrations()[-1].number


async def migrate(settings: DatabaseSettings, *, only_check: bool = False) -> list[int]:
    """Apply what is missing; the numbers that were applied. As many processes as like may ask at once.

    Args:
        settings: the role must own the schema, or be allowed to create it.
        only_check: change nothing, and refuse a schema that is older than this code, too.

    Raises:
        SchemaVersionError: the schema is newer than this code (or older, see `only_check`), or PostgreSQL is too old.
        StoreUnavailableError: there was no answer; what was applied is whole.
    """
    with unavailable_as_ours():
        # A migration may take longer than a flush, and waits for whoever migrates at the same time.
        connection = await connect(settings, is_listing=True, lock_timeout="0", statement_timeout="0")
        try:
            await _refuse_unfit_server(connection)
            version = await _version(connection, settings)
            newest = migrations()[-1].number
            if version > newest:
                raise SchemaVersionError(
                    f"schema {settings.schema_name!r} has version {version}, and this romancy knows {newest}",
                    hint="a newer romancy has migrated it: upgrade this process",
                )
            if version == newest:
                return []
            if only_check:
                raise SchemaVersionError(
                    f"schema {settings.schema_name!r} has version {version}, and this romancy needs {newest}",
                    hint="run `romancy db migrate`",
                )
            async with connection.transaction():
                return await _apply(connection, settings)
        finally:
            await close_quietly(connection)


async def _apply(connection: asyncpg.Connection, settings: DatabaseSettings) -> list[int]:
    # One migrates, the others wait, and then find it done. The lock is that of this schema's name.
    await connection.execute("select pg_advisory_xact_lock(hashtextextended($1, 0))", f"romancy {settings.schema_name}")
    if not await connection.fetchval("select to_regnamespace($1) is not null", settings.schema_name):
        # Asked first: `if not exists` needs the right to create even where there is nothing to do.
        await connection.execute(f'create schema "{settings.schema_name}"')
    await connection.execute(
        "create table if not exists migration (number integer primary key, name text not null, "
        "applied_at timestamptz not null default now())"
    )
    version = await _version(connection, settings)
    applied = []
    for migration in migrations():
        if migration.number > version:
            await connection.execute(migration.text)
            await connection.execute(
                "insert into migration (number, name) values ($1, $2)", migration.number, migration.name
            )
            applied.append(migration.number)
    if applied:
        logger.info("schema_migrated", schema=settings.schema_name, applied=applied)
    return applied


async def _version(connection: asyncpg.Connection, settings: DatabaseSettings) -> int:
    """The newest migration that was applied, 0 if none was."""
    table = f'"{settings.schema_name}".migration'
    if not await connection.fetchval("select to_regclass($1) is not null", table):
        return 0
    version: int = await connection.fetchval(f"select coalesce(max(number), 0) from {table}")
    return version


async def _refuse_unfit_server(connection: asyncpg.Connection) -> None:
    row = await connection.fetchrow(
        "select current_setting('server_version_num')::integer as number, current_setting('server_version') as version, "
        "current_setting('server_encoding') as encoding"
    )
    if row["number"] < SERVER_MIN:
        raise SchemaVersionError(
            f"this is PostgreSQL {row['version']}; 14 or newer is needed", hint="upgrade PostgreSQL"
        )
    if row["encoding"] != "UTF8":
        raise SchemaVersionError(
            f"the database's encoding is {row['encoding']}; UTF8 is needed", hint="create it with encoding 'UTF8'"
        )
