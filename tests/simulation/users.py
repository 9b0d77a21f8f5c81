"""What users do: start runs by a client or in a process, play with them, write objects, and ask until there is an answer."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import UUID

from romancy.control.kube import Json, path_of
from romancy.control.resources import RUNS
from romancy.errors import RetryRefusedError, RunCancelledError, StoreUnavailableError
from tests.simulation.kube import ApiServer
from tests.simulation.workload import JOBS, KEYS, WORKFLOWS, Told

if TYPE_CHECKING:
    from tests.simulation.simulation import Simulation


class Users:
    """All of them, in a program of their own that never dies."""

    def __init__(self, sim: "Simulation") -> None:
        self._sim = sim
        self.retries = 0

    async def own(self, number: int, after_seconds: float) -> None:
        """What one user does with one run: starts it, plays with it, and wants it to end."""
        random = Random(f"user {self._sim.seed}/{number}")
        name = f"run-{number}"
        run_id = self._sim.run_ids[number]
        flow, arguments = self._flow(random)
        options = {
            "id": name,
            "priority": random.choice((0, 0, 5)),
            "timeout": timedelta(seconds=random.choice((1, 20, 60))) if random.random() < 0.2 else None,
        }
        await asyncio.sleep(after_seconds)
        if random.random() < 0.5:
            await self._start_in_process(random, flow.options(**options), arguments)
        await self.ask(f"start {name}", lambda: self._sim.client.start(flow.options(**options), **arguments))
        if run_id not in self._sim.db.run:
            self._sim.breach(f"I4: {name} was started, and is not durable")
        await self._play(random, name, run_id)
        await self._retry(Random(f"retries {self._sim.seed}/{number}"), name, run_id)
        self._sim.settled.add(run_id)

    def _is_retried(self, run_id: UUID) -> bool:
        return any(row.kind == "Retry" for row in self._sim.db.inbox.get(run_id, {}).values())

    async def _retry(self, random: Random, name: str, run_id: UUID) -> None:
        """Retry it now and then, if it has failed; perhaps two at once."""
        handle = self._sim.client.handle(run_id)

        async def retry() -> None:
            try:
                if await handle.retry():
                    self.retries += 1
            except RetryRefusedError as refused:
                self._sim.trace.add("users", "retry refused", f"{name} {refused.message}")

        for _ in range(random.choice((0, 0, 1, 2, 3))):
            await asyncio.sleep(random.expovariate(0.05))
            if (run := self._sim.db.run.get(run_id)) is not None and run.phase == "Failed":
                await asyncio.gather(*[self.ask(f"retry {name}", retry) for _ in range(random.choice((1, 1, 2)))])
                if self._sim.db.run[run_id].phase is None and not self._is_retried(run_id):
                    self._sim.breach(f"I4: {name} was retried, and the message is not durable")

    def _flow(self, random: Random) -> tuple[Any, dict[str, Any]]:
        seed = random.randrange(1_000_000)
        flow = random.choice(list(WORKFLOWS.values()))
        return flow, {"seed": seed, "depth": random.randint(1, 4)} if flow.name == "sim.program" else {"seed": seed}

    async def _start_in_process(self, random: Random, flow: Any, arguments: dict[str, Any]) -> None:
        """As a program does that executes runs itself: it may die with it, and somebody starts the same run again."""
        ready = [each for each in self._sim.processes if each.app is not None and each.is_started and not each.is_dead]
        if not ready:
            return
        process = random.choice(ready)
        assert process.app is not None
        app, is_waiting = process.app, random.random() < 0.3

        async def start() -> None:
            try:
                handle = await app.start(flow, **arguments)
                self._sim.trace.add(process.name, "started", flow.start_options.id)
                if handle.id not in self._sim.db.run:
                    self._sim.breach(f"I4: {flow.start_options.id} was started in {process.name}, and is not durable")
                if is_waiting:
                    await self._result(handle, process.name)
            except StoreUnavailableError:
                self._sim.trace.add(process.name, "start failed", flow.start_options.id)

        task = process.spawn(start())
        await asyncio.wait([task], timeout=random.choice((0.5, 5)))

    async def _result(self, handle: Any, where: str) -> None:
        try:
            await handle.result()
        except StoreUnavailableError:
            return
        except Exception as error:
            found = repr(error) if not isinstance(error, RunCancelledError) else "cancelled"
        else:
            found = "a result"
        self._sim.trace.add(where, "result", f"{handle.id and self._sim.trace.name(handle.id)} {found[:60]}")
        if self._sim.db.run[handle.id].phase is None and not self._is_retried(handle.id):
            self._sim.breach(f"I4: {where} was told that run {handle.id} has ended, and it is not durable")

    async def _play(self, random: Random, name: str, run_id: UUID) -> None:
        handle = self._sim.client.handle(run_id)
        is_suspended = False
        for _ in range(random.choice((0, 0, 1, 3))):
            await asyncio.sleep(random.expovariate(0.2))
            match random.choice(("cancel", "suspend", "resume", "suspend")):
                case "cancel":
                    await self.ask(f"cancel {name}", handle.cancel)
                    messages = self._sim.db.inbox.get(run_id, {}).values()
                    if self._sim.db.run[run_id].phase is None and all(row.kind != "Cancel" for row in messages):
                        self._sim.breach(f"I4: {name} was cancelled, and the message is not durable")
                case "suspend":
                    await self.ask(f"suspend {name}", handle.suspend)
                    is_suspended = True
                case "resume":
                    await self.ask(f"resume {name}", handle.resume)
                    is_suspended = False
        if is_suspended:
            await asyncio.sleep(random.expovariate(0.1))
            await self.ask(f"resume {name}", handle.resume)

    async def tell(self, seconds: float) -> None:
        """Tell whoever waits for it, now and then, until it is calm; and leave some jobs."""
        random = Random(f"tells {self._sim.seed}")
        number = 0
        while self._sim.loop.time() < seconds:
            await asyncio.sleep(random.expovariate(0.3))
            number += 1
            key, id = random.randrange(KEYS), f"told {number}"
            if random.random() < 0.7:
                await self.ask(id, lambda key=key, id=id: self._sim.client.send_event(Told(key=key), id=id))  # type: ignore[misc]
            else:
                await self.ask(f"job {number}", lambda id=id: self._sim.client.publish(JOBS, id, id=id))  # type: ignore[misc]
        self._sim.has_told = True

    async def own_object(self, api: ApiServer, number: int, after_seconds: float) -> None:
        """What one user does with one WorkflowRun: kubectl, and nothing else."""
        random = Random(f"kubectl {self._sim.seed}/{number}")
        collection = path_of(RUNS, namespace="default")
        path = f"{collection}/object-{number}"
        await asyncio.sleep(after_seconds)
        self._create_object(api, random, collection, f"object-{number}")
        for _ in range(random.choice((0, 1, 2, 4))):
            await asyncio.sleep(random.expovariate(0.15))
            kind = random.choice(("cancel", "suspend", "suspend", "resume", "delete", "recreate", "ttl"))
            if path not in api.objects:
                break
            self._sim.trace.add("kubectl", kind, path.rpartition("/")[2])
            match kind:
                case "cancel":
                    api.change(path, cancel=True)
                case "suspend" | "resume":
                    api.change(path, suspend=kind == "suspend")
                case "ttl":
                    api.change(path, ttlSecondsAfterFinished=random.choice((0, 5, 3600)))
                case "delete":
                    api.delete(path)
                case "recreate":
                    api.delete(path)
                    await asyncio.sleep(random.choice((0, 0, 0.5, 5)))
                    self._create_object(api, random, collection, f"object-{number}")
        if path in api.objects and api.objects[path]["spec"].get("suspend"):
            await asyncio.sleep(random.expovariate(0.1))
            if path in api.objects:
                api.change(path, suspend=False)
        if path in api.objects:
            run_id = UUID(api.objects[path]["metadata"]["uid"])
            await self._retry(Random(f"retries of objects {self._sim.seed}/{number}"), f"object-{number}", run_id)
        self._sim.objects_settled += 1

    def _create_object(self, api: ApiServer, random: Random, collection: str, name: str) -> None:
        flow, arguments = self._flow(random)
        spec: Json = {"workflow": flow.name, "input": arguments}
        if random.random() < 0.2:
            spec["suspend"] = True
        if random.random() < 0.2:
            spec["timeout"] = random.choice(("1s", "20s"))
        if random.random() < 0.3:
            spec["ttlSecondsAfterFinished"] = random.choice((0, 10))
        if random.random() < 0.3:
            spec["deletionPolicy"] = "Orphan"
        made = api.create(collection, {"metadata": {"name": name}, "spec": spec})
        self._sim.trace.add("kubectl", "create", f"{name} {self._sim.trace.name(UUID(made['metadata']['uid']))} {spec}")
        self._sim.created[UUID(made["metadata"]["uid"])] = made

    async def ask(self, what: str, ask: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """As a user does: again, until there is an answer."""
        while True:
            try:
                await ask()
            except StoreUnavailableError:
                await asyncio.sleep(0.7)
            except AttributeError:  # the client is not open yet
                await asyncio.sleep(0.1)
            else:
                self._sim.trace.add("users", what)
                return
