"""Migrations: once each, whoever asks; and never backwards."""

import asyncio
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from romancy.errors import SchemaVersionError, SettingsError, StoreUnavailableError
from romancy.store import migrate as module
from romancy.store.migrate import migrate, migrations
from romancy.store.postgres import PostgresStore
from tests import postgres
from tests.builders import a_new_run

ON_EVERY_POSTGRES = True

SNAPSHOT = Path(__file__).parent / "schema.snapshot.sql"
ALL = [migration.number for migration in migrations()]


@pytest.fixture
async def empty(postgres_server: postgres.Server) -> Any:
    """Settings of a database with nothing in it."""
    return postgres_server.settings(await postgres_server.create_database())


async def test_who_starts_at_the_same_time_migrates_once(empty: Any) -> None:
    applied = await asyncio.gather(*[migrate(empty) for _ in range(4)])

    assert sorted(applied) == [[], [], [], ALL]
    assert await migrate(empty) == []


async def test_schemas_live_side_by_side(postgres_server: postgres.Server, empty: Any) -> None:
    one, other = empty, empty.model_copy(update={"schema_name": "other"})
    run = a_new_run()

    async with PostgresStore(one) as store, PostgresStore(other) as other_store:
        await store.start_runs([run])

        assert await other_store.read_run(run.id) is None
        assert await store.read_run(run.id) is not None


async def test_an_older_process_refuses_a_newer_schema(empty: Any) -> None:
    await migrate(empty)
    connection = await asyncpg.connect(empty.url.get_secret_value())
    await connection.execute("insert into romancy.migration (number, name) values (9999, 'of_tomorrow')")
    await connection.close()

    with pytest.raises(SchemaVersionError, match="9999") as refusal:
        await PostgresStore(empty).open()

    assert "upgrade" in refusal.value.hint


async def test_who_only_checks_refuses_an_older_schema(empty: Any) -> None:
    with pytest.raises(SchemaVersionError, match="has version 0"):
        await PostgresStore(empty).open(is_migrating=False)

    await migrate(empty)
    store = PostgresStore(empty)
    await store.open(is_migrating=False)
    await store.close()


async def test_a_migration_that_fails_leaves_nothing(empty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [*migrations(), module.Migration(len(ALL) + 1, "broken", "create table half (id int); select 1 / 0")]
    monkeypatch.setattr(module, "migrations", lambda: broken)
    with pytest.raises(Exception, match="division by zero"):
        await migrate(empty)
    monkeypatch.undo()

    assert await migrate(empty) == ALL


async def test_a_role_without_the_right_to_create_uses_the_schema_that_is_there(
    postgres_server: postgres.Server, empty: Any
) -> None:
    database = postgres.name_of(empty)
    admin = await asyncpg.connect(empty.url.get_secret_value())
    await admin.execute("drop role if exists small; create role small login; create schema romancy authorization small")
    await admin.execute(f'revoke create on database "{database}" from public')
    await admin.close()
    url = empty.url.get_secret_value().replace("postgres@", "small@")

    small = postgres_server.settings(database).model_copy(update={"url": type(empty.url)(url)})

    assert await migrate(small) == ALL


async def test_the_scaler_s_role_sees_the_counts_and_nothing_else(postgres_server: postgres.Server, empty: Any) -> None:
    await migrate(empty)
    admin = await asyncpg.connect(empty.url.get_secret_value())
    await admin.execute("""
        drop role if exists scaler; create role scaler login;
        grant usage on schema romancy to scaler; grant select on romancy.scale to scaler;
    """)
    scaler = await asyncpg.connect(empty.url.get_secret_value().replace("postgres@", "scaler@"))

    assert await scaler.fetchval("select runs from romancy.scale") == 0
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await scaler.fetchval("select count(*) from romancy.due")
    await scaler.close()
    await admin.execute("drop owned by scaler; drop role scaler")
    await admin.close()


async def test_a_database_that_is_not_there_is_said_so(empty: Any) -> None:
    away = empty.model_copy(update={"url": type(empty.url)("postgresql://postgres@127.0.0.1:1/x")})

    with pytest.raises(StoreUnavailableError):
        await PostgresStore(away).open()
    with pytest.raises(SettingsError, match="no database"):
        await PostgresStore(empty.model_copy(update={"url": type(empty.url)("")})).open()


async def test_a_database_in_another_encoding_is_refused(postgres_server: postgres.Server) -> None:
    connection = await asyncpg.connect(postgres_server.url())
    await connection.execute("create database latin template template0 encoding 'LATIN1' lc_collate 'C' lc_ctype 'C'")
    await connection.close()

    with pytest.raises(SchemaVersionError, match="UTF8"):
        await migrate(postgres_server.settings("latin"))


async def test_payloads_are_compressed_with_lz4_where_there_is_lz4(empty: Any) -> None:
    await migrate(empty)
    connection = await asyncpg.connect(empty.url.get_secret_value())
    has_lz4 = await connection.fetchval(
        "select 'lz4' = any(enumvals) from pg_settings where name = 'default_toast_compression'"
    )
    rows = await connection.fetch(
        "select attrelid::regclass::text || '.' || attname as name from pg_attribute where attcompression = 'l'"
    )
    await connection.close()

    payloads = [
        *(
            "attempt.failure",
            "dead_letter.payload",
            "emitted.payload",
            "event.payload",
            "history.payload",
            "inbox.payload",
            "outbox.payload",
        ),
        *("run.failure", "run.input", "run.output", "value.payload"),
    ]
    assert sorted(row["name"] for row in rows) == [f"romancy.{name}" for name in payloads if has_lz4]


def test_the_schema_is_the_one_on_file(postgres_server: postgres.Server, request: pytest.FixtureRequest) -> None:
    """A change of the schema is seen in review. `UPDATE_SNAPSHOT=1` writes it anew."""
    if "[18]" not in request.node.name:
        pytest.skip("the snapshot is what the dump of version 18 says")
    settings = asyncio.run(_migrated(postgres_server))
    dumped = subprocess.run(
        [
            postgres.embedded_binaries() / "pg_dump",
            "--schema-only",
            "--no-owner",
            "-n",
            "romancy",
            settings.url.get_secret_value(),
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    lines = [
        line
        for line in dumped.splitlines()
        if not re.match(r"--|SET |SELECT pg_catalog|\\", line) and "COMPRESSION" not in line
    ]
    schema = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"
    if os.environ.get("UPDATE_SNAPSHOT"):
        SNAPSHOT.write_text(schema)

    assert schema == SNAPSHOT.read_text()


async def _migrated(server: postgres.Server) -> Any:
    settings = server.settings(await server.create_database())
    await migrate(settings)
    return settings
