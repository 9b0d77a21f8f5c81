"""An API server in memory, and control upon it: the real elector and the real leader, without kopf and without sockets.

Objects have uids, versions and generations; a write of a status that names another uid is refused; who watches with a selector
is told that an object is deleted when it leaves the selection, with the state before that. Calls pass the same network.
"""

import asyncio
import copy
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final
from uuid import UUID

from romancy.base.clock import Clock
from romancy.base.settings import Settings
from romancy.control import jobs
from romancy.control.control import LEASE_NAME, Leader
from romancy.control.kube import CALL_SECONDS, KUBE_ERRORS, Json, Kube, KubeError, KubeUnavailableError, path_of
from romancy.control.leader import Elector
from romancy.control.resources import RUNS
from romancy.control.runs import DONE, UNFINISHED, Seen
from romancy.store.postgres import PostgresStore
from tests.simulation.network import Body, Network

_PLURALS: Final = frozenset({"workflowruns", "workflowengines", "leases"})
WATCH_SECONDS: Final = 300


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one object. `before` and `after` are None where there was or is none."""

    version: int
    path: str
    before: Json | None
    after: Json | None


@dataclass
class ApiServer:
    """All objects by their paths."""

    random: Random
    objects: dict[str, Json] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    version: int = 0
    _watchers: list[Callable[[Change], None]] = field(default_factory=list)

    def handle(self, method: str, path: str, body: Any, query: Mapping[str, str]) -> Json:
        """One request.

        Raises:
            KubeError: it is refused.
        """
        what = f"{method} {path}"
        name = path.rpartition("/")[2]
        if method == "GET" and name in _PLURALS:
            items = [copy.deepcopy(each) for each in self.listed(path, query.get("fieldSelector", ""))]
            return {"items": items, "metadata": {"resourceVersion": str(self.version)}}
        if method == "POST":
            return self.create(path, body)
        target = path.removesuffix("/status")
        thing = self.objects.get(target)
        if thing is None:
            raise KubeError(what, code=404, word="NotFound", text="there is none", name=target.rpartition("/")[2])
        match method:
            case "GET":
                return copy.deepcopy(thing)
            case "PUT":
                if body["metadata"]["resourceVersion"] != thing["metadata"]["resourceVersion"]:
                    raise KubeError(what, code=409, word="Conflict", text="another version")
                return self._put(target, {**thing, "spec": body["spec"]})
            case "PATCH" if isinstance(body, dict):  # a merge patch, of an Event
                return self._put(target, {**thing, **body})
            case "PATCH":
                [test, add] = body
                if test["value"] != thing["metadata"]["uid"]:
                    raise KubeError(what, code=422, word="Invalid", text="the test failed")
                return self._put(target, {**thing, "status": add["value"]})
            case "DELETE":
                if body["preconditions"]["uid"] != thing["metadata"]["uid"]:
                    raise KubeError(what, code=409, word="Conflict", text="another uid")
                self.delete(target)
                return {}
            case _:
                raise AssertionError(method)

    def create(self, collection: str, body: Json) -> Json:
        """A new object."""
        path = f"{collection}/{body['metadata']['name']}"
        if path in self.objects:
            raise KubeError(f"POST {collection}", code=409, word="AlreadyExists", text="there is one")
        namespace = collection.partition("/namespaces/")[2].partition("/")[0]
        uid = UUID(int=self.random.getrandbits(128), version=4)
        metadata = {"namespace": namespace, **body["metadata"], "uid": str(uid), "generation": 1}
        return self._put(path, {**body, "metadata": metadata})

    def change(self, path: str, **spec: Any) -> None:
        """As a user changes the spec."""
        thing = self.objects[path]
        metadata = {**thing["metadata"], "generation": thing["metadata"]["generation"] + 1}
        self._put(path, {**thing, "metadata": metadata, "spec": {**thing["spec"], **spec}})

    def delete(self, path: str) -> None:
        """As a user deletes it."""
        before = self.objects.pop(path)
        self._changed(path, before, None)

    def listed(self, collection: str, selector: str) -> list[Json]:
        """The objects of a collection, of one namespace or of all."""
        return [
            thing for path, thing in self.objects.items() if _is_in(path, collection) and _is_selected(thing, selector)
        ]

    def watch(self, watcher: Callable[[Change], None]) -> None:
        self._watchers.append(watcher)

    def unwatch(self, watcher: Callable[[Change], None]) -> None:
        self._watchers.remove(watcher)

    def _put(self, path: str, thing: Json) -> Json:
        before = self.objects.get(path)
        metadata = {**thing["metadata"], "resourceVersion": str(self.version + 1)}
        after = self.objects[path] = {**thing, "metadata": metadata}
        self._changed(path, before, after)
        return copy.deepcopy(after)

    def _changed(self, path: str, before: Json | None, after: Json | None) -> None:
        self.version += 1
        change = Change(self.version, path, before, after)
        self.changes.append(change)
        for watcher in list(self._watchers):
            watcher(change)


def event_of(change: Change, collection: str, selector: str) -> Json | None:
    """What somebody who watches this collection with this selector is told of a change."""
    if not _is_in(change.path, collection):
        return None
    was = change.before is not None and _is_selected(change.before, selector)
    now = change.after is not None and _is_selected(change.after, selector)
    if now:
        return {"type": "MODIFIED" if was else "ADDED", "object": copy.deepcopy(change.after)}
    return {"type": "DELETED", "object": copy.deepcopy(change.before)} if was else None


def _is_in(path: str, collection: str) -> bool:
    group, _, rest = path.partition("/namespaces/")
    if "/namespaces/" in collection:
        return path.rpartition("/")[0] == collection
    return f"{group}/{rest.split('/')[1]}" == collection


def _is_selected(thing: Json, selector: str) -> bool:
    if selector.startswith("metadata.name="):
        return bool(thing["metadata"]["name"] == selector.partition("=")[2])
    return selector != UNFINISHED or (thing.get("status") or {}).get("phase") not in DONE


@dataclass(slots=True)
class SimulatedKube(Kube):
    """The API server, through the network, as one process reaches it."""

    api: ApiServer = field(kw_only=True)
    network: Network = field(kw_only=True)
    body: Body = field(kw_only=True)

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, str] | None = None,
        kind: str = "application/json",
        seconds: float = CALL_SECONDS,
    ) -> Json:
        del kind
        if method != "GET":
            await self.until_trusted()
        what = f"{method} {path.rpartition('/namespaces/')[2] or path}"
        asked = copy.deepcopy(body)
        try:
            async with asyncio.timeout(seconds):
                return await self.network.ask(
                    self.body, what, {}, lambda: self.api.handle(method, path, asked, query or {}), is_database=False
                )
        except OSError as error:
            raise KubeUnavailableError(what, repr(error)) from error

    async def watch(self, path: str, *, query: Mapping[str, str], seconds: int) -> AsyncIterator[Json]:
        queue: asyncio.Queue[Json | None] = asyncio.Queue()
        selector, version = query.get("fieldSelector", ""), int(query["resourceVersion"])

        def tell(change: Change) -> None:
            if (event := event_of(change, path, selector)) is not None:
                self.network.tell(self.body, lambda: queue.put_nowait(event), may_be_lost=False)
                if self.network.weather.breaks_a_watch():
                    self.network.tell(self.body, lambda: queue.put_nowait(None), may_be_lost=False)

        for change in self.api.changes:
            if change.version > version:
                tell(change)
        self.api.watch(tell)
        try:
            async with asyncio.timeout(seconds):
                while (event := await queue.get()) is not None:
                    yield event
            raise KubeUnavailableError(f"WATCH {path}", "the connection broke")
        except TimeoutError:
            return
        finally:
            self.api.unwatch(tell)


class SimulatedLeader(Leader):
    """The leader; what kopf does for it is done here: it lists, watches, and ticks."""

    async def _watch_runs(self) -> None:
        path = path_of(RUNS, namespace=None)
        while True:
            try:
                found = await self._kube.call("GET", path, query={"fieldSelector": UNFINISHED})
                for thing in found["items"]:
                    self._intake.file(Seen.of(thing))
                self._heard(RUNS, path, "")
                version = found["metadata"]["resourceVersion"]
                async for event in self._kube.watch(
                    path, query={"fieldSelector": UNFINISHED, "resourceVersion": version}, seconds=WATCH_SECONDS
                ):
                    self._intake.file(Seen.of(event["object"], is_gone=event["type"] == "DELETED"))
            except KUBE_ERRORS:
                await asyncio.sleep(jobs.backoff_seconds(1))

    async def _watch_engine(self) -> None:
        while True:
            await asyncio.sleep(self._control.bury_seconds)
            await self._bury_expired()


async def control(
    settings: Settings,
    kube: SimulatedKube,
    make_store: Callable[[], PostgresStore],
    name: str,
    stop: asyncio.Event,
    clock: Clock,
) -> None:
    """What `run_control` does in its thread: compete, and lead."""
    part = settings.control
    elector = Elector(
        kube,
        namespace=part.namespace,
        name=LEASE_NAME,
        identity=name,
        lease_seconds=part.lease_seconds,
        renew_deadline_seconds=part.renew_deadline_seconds,
        retry_seconds=part.retry_seconds,
    )
    leading = kube.while_leading(lambda: elector.trusted_until)
    await elector.run(lambda: SimulatedLeader(settings, make_store, leading, name, clock=clock).run(), stop)
