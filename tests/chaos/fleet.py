"""Real operator processes without Kubernetes, that a test starts, kills, stops and lets go on."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from romancy.base.settings import DatabaseSettings
from romancy.client import Client
from romancy.model.run import Run
from romancy.model.worker import WorkerRow
from romancy.store.verify import find_breaches

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 30


@dataclass
class Process:
    """One operator process."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    def kill(self) -> None:
        """SIGKILL, and see it dead."""
        self.popen.kill()
        self.popen.wait(10)

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)


@dataclass
class Fleet:
    """The processes of one test, all on one database, with what they did in `folder/log`."""

    database: DatabaseSettings
    folder: Path
    lease_seconds: float = 1.5
    workflows: str = "tests.chaos.flows"
    options: dict[str, str] = field(default_factory=dict)  # of every process
    processes: dict[str, Process] = field(default_factory=dict)

    async def __aenter__(self) -> Self:
        (self.folder / "log").touch()
        self.client = Client(self.database)
        await self.client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.__aexit__(None, None, None)
        for process in self.processes.values():
            if process.popen.poll() is None:
                process.popen.send_signal(signal.SIGCONT)
                process.kill()

    async def start(self, name: str, *, url: str = "", **options: str) -> Process:
        """Start a process and wait until it is registered.

        Args:
            url: of the database, if it is to go through a proxy.
            options: further environment variables.
        """
        log = self.folder / f"{name.replace(' ', '-')}.log"
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("ROMANCY_")},
            "PYTHONPATH": f"{ROOT / 'operator'}{os.pathsep}{ROOT}",
            "PYTHONHASHSEED": "0",
            "ROMANCY_DATABASE__URL": url or self.database.url.get_secret_value(),
            "ROMANCY_WORKFLOWS": self.workflows,
            "ROMANCY_CONTROL__ENABLED": "false",
            "ROMANCY_GATEWAY__HOST": "127.0.0.1",
            "ROMANCY_GATEWAY__PORT": "0",
            "ROMANCY_WORKER__NAME": name,
            "ROMANCY_WORKER__LEASE_SECONDS": str(self.lease_seconds),
            "ROMANCY_WORKER__POLL_SECONDS": "1",
            "TEST_EFFECTS": str(self.folder),
            **self.options,
            **options,
        }
        with log.open("ab") as out:
            popen = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
                [sys.executable, "-m", "romancy", "operator"], env=environment, stdout=out, stderr=out, cwd=ROOT
            )
        process = self.processes[name] = Process(name, popen, log)
        await self.until(lambda: self._is_registered(process), f"worker {name} registers", process)
        return process

    async def _is_registered(self, process: Process) -> bool:
        assert process.popen.poll() is None, f"{process.name} ended:\n{process.log.read_text()[-3000:]}"
        return f'pid": {process.pid}' in process.log.read_text() and "worker_registered" in process.log.read_text()

    def open(self, *gates: str) -> None:
        """Let activities pass that wait there."""
        for gate in gates:
            (self.folder / f"open-{gate}").touch()

    def log(self) -> list[str]:
        """What activities did, without the pids."""
        return [line.partition(" pid=")[0] for line in (self.folder / "log").read_text().splitlines()]

    async def did(self, line: str) -> None:
        """Wait until an activity has written this line."""
        await self.until(lambda: line in self.log(), f"an activity writes {line!r}")

    async def holder(self, run: Run) -> Process:
        """The process whose worker holds a run."""
        found = await self.client.handle(run.id).info()
        assert found.worker is not None, f"nobody holds {found}"
        return self.processes[found.worker]

    async def workers(self) -> list[WorkerRow]:
        return await self.client.store.list_workers()

    async def until(
        self,
        holds: Callable[[], object],
        what: str,
        process: Process | None = None,
        *,
        seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """Wait for something that another process does.

        Raises:
            AssertionError: it did not happen, with the logs.
        """
        end = asyncio.get_running_loop().time() + seconds
        while True:
            found = holds()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            if asyncio.get_running_loop().time() > end:
                logs = {each.name: each.log.read_text()[-2000:] for each in self.processes.values()}
                raise AssertionError(f"in {seconds} s: never {what}; log {self.log()}; {process or logs}")
            await asyncio.sleep(0.02)


async def all_holds(database: DatabaseSettings) -> None:
    """What `romancy db verify` checks; whatever was killed, it must hold."""
    breaches = await find_breaches(database)
    assert not breaches, "\n".join(map(str, breaches))
