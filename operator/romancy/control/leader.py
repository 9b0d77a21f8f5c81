"""One leader at a time, by a coordination.k8s.io Lease: `Elector.run(body, stop)` runs `body` while the Lease is ours.

The client's own elector can't create its Lease and leaves zombie leaders. Here all time is monotonic, every call has a
deadline, the body ends with the lease, and followers watch the Lease, so that a release is taken over in milliseconds.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Self
from urllib.parse import quote

from romancy.base import log
from romancy.control.kube import KUBE_ERRORS, Json, Kube, KubeError
from romancy.errors import RomancyError

logger = log.get(__name__)

RELEASE_SECONDS: Final = 2.0
UNFIT: Final = "romancy.dev/unfit"
"""Annotation of the Lease: its holder lacks what leading needs. A candidate that has it takes over; while none has, all stays."""
UNFIT_RENEWALS: Final = 2
"""A leader says that it is unfit at so many renewals in a row: a database that restarts is no reason to change leaders."""
END_SECONDS: Final = 10.0
"""How long the body may take to end. Whatever the leader does twice is done once (I6), so two may overlap so long."""
BACKOFF_SECONDS_MAX: Final = 30.0
SAY_AGAIN_SECONDS: Final = 10.0
"""A Lease that can't be read is tried for each second; the log says it so often, and whenever it is for another reason."""
STEADY_SECONDS: Final = 60.0
"""A body that has lasted so long is tried again at once when it ends."""


class LeaderStuckError(RomancyError):
    """The leader's work did not end with its lease: only the end of the process keeps two from leading."""

    reason = "LeaderStuck"


@dataclass(frozen=True, slots=True)
class Lease:
    """What of a Lease counts. `version` is the resourceVersion: a write names it, so that it can't undo another's."""

    holder: str
    seconds: float
    transitions: int
    acquired: str
    renewed: str
    version: str
    is_unfit: bool = False  # whoever holds it says so: another one should

    @classmethod
    def of(cls, thing: Json) -> Self:
        """Read it as the API gives it; any field may be missing."""
        spec = thing.get("spec") or {}
        annotations = thing["metadata"].get("annotations") or {}
        return cls(
            holder=spec.get("holderIdentity") or "",
            seconds=float(spec.get("leaseDurationSeconds") or 1),
            transitions=int(spec.get("leaseTransitions") or 0),
            acquired=spec.get("acquireTime") or "",
            renewed=spec.get("renewTime") or "",
            version=thing["metadata"]["resourceVersion"],
            is_unfit=UNFIT in annotations,
        )


class Elector:
    """A candidate. A crashed leader is replaced after its lease; one that stops hands over at once."""

    def __init__(
        self,
        kube: Kube,
        *,
        namespace: str,
        name: str,
        identity: str,
        lease_seconds: float,
        renew_deadline_seconds: float,
        retry_seconds: float,
        end_seconds: float = END_SECONDS,
        is_fit: Callable[[], bool] = lambda: True,
    ) -> None:
        """A candidate of that identity, which must differ from that of every other process, also of one before.

        Args:
            lease_seconds: how long others wait for a leader that gives no sign; Kubernetes keeps whole seconds.
            renew_deadline_seconds: a leader that could not renew for so long stops by itself; shorter than the lease.
            retry_seconds: between two tries of anything that failed, give or take 20 %.
            end_seconds: how long the body may take to end when it is cancelled.
            is_fit: whether this process has what leading needs. An unfit one leads as well, as long as nobody is better.
        """
        assert 0 < retry_seconds <= renew_deadline_seconds < lease_seconds
        self.identity = identity
        self.is_leader = False
        self.trusted_until = 0.0  # time of the loop: until then nobody else can lead. The past while we don't
        self.holder = ""  # as last seen
        self._kube, self._namespace, self._name = kube, namespace, name
        self._lease_seconds = max(1, round(lease_seconds))
        self._deadline_seconds, self._retry_seconds = renew_deadline_seconds, retry_seconds
        self._end_seconds, self._is_fit = end_seconds, is_fit
        self._unfit_renewals = 0
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{quote(namespace)}/leases"
        self._path = f"{self._collection}/{quote(name)}"

    async def run(self, body: Callable[[], Awaitable[None]], stop: asyncio.Event) -> None:
        """Compete until `stop` is set; then end the body, release the lease, and return.

        Args:
            body: what the leader does; cancelled when the lease is lost, and begun again when it is won again.

        Raises:
            LeaderStuckError: the body did not end when it was cancelled.
        """
        competing = asyncio.create_task(self._compete(body), name="elector")
        stopping = asyncio.create_task(stop.wait(), name="elector stop")
        try:
            await asyncio.wait({competing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            competing.cancel()
            await asyncio.gather(stopping, competing, return_exceptions=True)
        if not competing.cancelled():
            competing.result()

    async def _compete(self, body: Callable[[], Awaitable[None]]) -> None:
        failures = 0
        while True:
            lease, asked_at = await self._win()
            began_at = self._now()
            logger.info("leadership_won", identity=self.identity, lease=self._name, namespace=self._namespace)
            failed = await self._lead(lease, asked_at, body)
            failures = failures + 1 if failed and self._now() - began_at < STEADY_SECONDS else 0
            if failures:
                await asyncio.sleep(min(self._retry_seconds * 2 ** (failures - 1), BACKOFF_SECONDS_MAX))

    async def _lead(self, lease: Lease, asked_at: float, body: Callable[[], Awaitable[None]]) -> bool:
        """Run the body while the lease is ours. Returns whether the body ended by itself, and so is to be blamed."""
        self.is_leader = True
        self.trusted_until = asked_at + self._deadline_seconds
        holding = Holding(lease)
        leading = asyncio.ensure_future(body())
        renewing = asyncio.create_task(self._renew(holding), name="elector renewal")
        try:
            await asyncio.wait({leading, renewing}, return_when=asyncio.FIRST_COMPLETED)
            failed = leading.done()
        finally:
            self.is_leader = False
            if is_lost := renewing.done():
                self.trusted_until = 0.0
            leading.cancel()
            # The lease is renewed until the body has ended, so that nobody else begins before.
            await asyncio.wait({leading}, timeout=self._end_seconds)
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            if not leading.done():
                raise LeaderStuckError(
                    "the leader's work did not end with its lease", hint="end this process; another one leads"
                )
            if not leading.cancelled():
                logger.error(
                    "leader_failed", error=repr(leading.exception()), hint="the lease is released; somebody tries again"
                )
            if is_lost:
                logger.warning("leadership_lost", identity=self.identity, lease=self._name)
            else:
                await self._release(holding)
        return failed

    async def _win(self) -> tuple[Lease, float]:
        """Wait until the lease is free, and take it. Returns it, and when it was asked for."""
        self._unfit_renewals = 0
        seen: Lease | None = None
        seen_at = said_at = 0.0
        said: str | None = None
        while True:
            try:
                asked_at = self._now()
                found = await self._read()
                if found is None:
                    return await self._create(), asked_at
                if seen is None or _sign_of_life(found) != _sign_of_life(seen):
                    # Its times are of another clock: what counts is how long we ourselves have seen no change.
                    seen_at = asked_at
                seen, self.holder = found, found.holder
                is_free = found.holder in {"", self.identity} or self._now() >= seen_at + found.seconds
                if is_free or self._is_better_than(found):
                    if not is_free:
                        logger.warning(
                            "leadership_taken", identity=self.identity, holder=found.holder, lease=self._name
                        )
                    transitions = found.transitions + (found.holder != self.identity)
                    asked_at = self._now()
                    return await self._write(replace(found, transitions=transitions), is_new=True), asked_at
                seen, seen_at = await self._follow(found, seen_at)
            except KUBE_ERRORS as error:
                if not (isinstance(error, KubeError) and error.code == 409):  # 409: somebody else was faster
                    kind = str(error.code) if isinstance(error, KubeError) else error.reason
                    if kind != said or self._now() >= said_at + SAY_AGAIN_SECONDS:
                        logger.warning("lease_unreadable", lease=self._name, error=str(error), hint=error.hint)
                        said, said_at = kind, self._now()
                await asyncio.sleep(self._retry_seconds * random.uniform(0.8, 1.2))

    async def _follow(self, seen: Lease, seen_at: float) -> tuple[Lease, float]:
        """Watch the Lease until it is free, gone, or its holder gave no sign for as long as it says."""
        query = {"fieldSelector": f"metadata.name={self._name}", "resourceVersion": seen.version}
        try:
            async with asyncio.timeout_at(seen_at + seen.seconds) as waiting:
                async for event in self._kube.watch(self._collection, query=query, seconds=300):
                    if event["type"] == "DELETED":
                        break
                    seen, seen_at = Lease.of(event["object"]), self._now()
                    self.holder = seen.holder
                    if not seen.holder or self._is_better_than(seen):
                        break
                    waiting.reschedule(seen_at + seen.seconds)
        except TimeoutError:
            pass  # it has expired; or the watch is dead, which reading it anew shows
        except KUBE_ERRORS as error:
            # Without the right to watch, or while the server is away, it is read again and again instead.
            logger.debug("lease_not_watched", lease=self._name, error=str(error))
            await asyncio.sleep(self._retry_seconds * random.uniform(0.8, 1.2))
        return seen, seen_at

    def _is_better_than(self, lease: Lease) -> bool:
        """Its holder says that it can't do the work, and we can. Its next renewal then fails, and it stops."""
        return lease.is_unfit and self._is_fit()

    async def _renew(self, holding: "Holding") -> None:
        """Renew until the lease is another's, or could not be renewed for the whole deadline; then return."""
        while True:
            await asyncio.sleep(self._lease_seconds / 3 if holding.is_fresh else self._retry_seconds)
            asked_at = self._now()
            self._unfit_renewals = 0 if self._is_fit() else self._unfit_renewals + 1
            try:
                async with asyncio.timeout_at(self.trusted_until):
                    holding.lease = await self._write(holding.lease, is_new=False)
                if self._now() >= self.trusted_until:
                    # It was answered while this process stood still. Whoever has looked meanwhile, whether we lead, waits until
                    # the body is cancelled: to go on leading would leave that part of it standing for ever.
                    logger.error("lease_lost", lease=self._name, why="its renewal was heard too late")
                    return
                holding.is_fresh = True
                # From before the call: a late answer tells nothing.
                self.trusted_until = asked_at + self._deadline_seconds
            except TimeoutError:
                logger.error("lease_lost", lease=self._name, why="it could not be renewed in time")
                return
            except KUBE_ERRORS as error:
                holding.is_fresh = False
                if isinstance(error, KubeError) and error.code in {404, 409} and not await self._is_still_ours(holding):
                    logger.error("lease_lost", lease=self._name, why=str(error))
                    return
                logger.warning("lease_renewal_failed", lease=self._name, error=str(error))

    async def _is_still_ours(self, holding: "Holding") -> bool:
        """After a conflict: the answer of our own write may have been lost, and then its version is the newest."""
        try:
            found = await self._read()
        except KUBE_ERRORS:
            return True  # unknown: the next try or the deadline decides
        if found is None or found.holder != self.identity:
            return False
        holding.lease = found
        return True

    async def _release(self, holding: "Holding") -> None:
        """Say that nobody leads: followers see it at once."""
        try:
            try:
                await self._give_up(holding.lease)
            except KubeError as error:
                # A renewal was on its way when it was cancelled, and may have been done.
                if error.code != 409 or not await self._is_still_ours(holding):
                    raise
                await self._give_up(holding.lease)
        except KUBE_ERRORS as error:
            logger.warning("lease_not_released", lease=self._name, error=str(error), hint="it expires by itself")
        else:
            logger.info("leadership_released", identity=self.identity, lease=self._name)

    async def _give_up(self, lease: Lease) -> None:
        spec = self._spec(replace(lease, holder="", seconds=1), is_new=False)
        await self._put(lease, spec, seconds=RELEASE_SECONDS)

    async def _read(self) -> Lease | None:
        try:
            return Lease.of(await self._kube.call("GET", self._path, seconds=self._call_seconds))
        except KubeError as error:
            if error.code == 404:
                return None
            raise

    async def _create(self) -> Lease:
        new = Lease(
            holder=self.identity, seconds=self._lease_seconds, transitions=0, acquired="", renewed="", version=""
        )
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name},
            "spec": self._spec(new, is_new=True),
        }
        return Lease.of(await self._kube.call("POST", self._collection, body, seconds=self._call_seconds))

    async def _write(self, lease: Lease, *, is_new: bool) -> Lease:
        spec = self._spec(replace(lease, holder=self.identity, seconds=self._lease_seconds), is_new=is_new)
        return await self._put(lease, spec, seconds=self._call_seconds)

    async def _put(self, lease: Lease, spec: Json, *, seconds: float) -> Lease:
        metadata: Json = {"name": self._name, "namespace": self._namespace, "resourceVersion": lease.version}
        if self._unfit_renewals >= UNFIT_RENEWALS:
            metadata["annotations"] = {UNFIT: self.identity}
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
        return Lease.of(await self._kube.call("PUT", self._path, body, seconds=seconds))

    def _spec(self, lease: Lease, *, is_new: bool) -> Json:
        moment = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"  # MicroTime wants all six digits
        return {
            "holderIdentity": lease.holder,
            "leaseDurationSeconds": round(lease.seconds),
            "leaseTransitions": lease.transitions,
            "acquireTime": moment if is_new or not lease.acquired else lease.acquired,
            "renewTime": moment,
        }

    @property
    def _call_seconds(self) -> float:
        """One hung connection must leave time for another try within the deadline."""
        return self._deadline_seconds / 2

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


@dataclass(slots=True)
class Holding:
    """The lease in our hands, with the version that the next write must name."""

    lease: Lease
    is_fresh: bool = True


def _sign_of_life(lease: Lease) -> tuple[Any, ...]:
    return (lease.holder, lease.acquired, lease.renewed, lease.transitions)
