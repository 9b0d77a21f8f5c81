"""Calls of the Kubernetes API: a thin client, since a status write by the generated one costs three times the CPU.

Where the cluster is and who we are comes from `kubernetes.aio.config`, also the rereading of a pod's token.
"""

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import quote
from uuid import UUID

import aiohttp
from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.client import Configuration

from romancy.base import metrics
from romancy.base.settings import ControlSettings
from romancy.base.version import engine_version
from romancy.control.resources import API_VERSION
from romancy.errors import RomancyError, SettingsError

FIELD_MANAGER: Final = "romancy"
CALL_SECONDS: Final = 10.0
CONNECT_SECONDS: Final = 3.0
CONNECTIONS_MAX: Final = 32
PAGE: Final = 500
WATCH_LINE_BYTES_MAX: Final = 4 * 1024 * 1024  # an object is smaller: etcd takes 1.5 MB

Json = dict[str, Any]


HINTS: Final = {
    401: "the engine's credentials are not taken: see its service account's token, or its kubeconfig",
    403: "give the engine's service account this right; the engine tries again and needs no restart",
}


class KubeError(RomancyError):
    """The API server said no."""

    reason = "KubernetesRefused"

    def __init__(
        self, what: str, *, code: int, word: str, text: str, name: str = "", retry_after_seconds: float = 0
    ) -> None:
        super().__init__(f"{what}: {code} {word}: {text}", hint=HINTS.get(code, ""))
        self.code, self.word, self.text = code, word, text
        self.name = name  # of the object that the answer is about
        self.retry_after_seconds: float = retry_after_seconds


class KubeUnavailableError(RomancyError):
    """The API server gave no answer; what was asked may have been done."""

    reason = "KubernetesUnavailable"

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: no answer: {why}", hint="the engine tries again")


KUBE_ERRORS: Final = (KubeError, KubeUnavailableError)


@dataclass(frozen=True, slots=True)
class Target:
    """An object as far as a write must know it: the uid tells it from a later one of the same name."""

    resource: str
    namespace: str
    name: str
    uid: UUID

    @property
    def path(self) -> str:
        """Where it is."""
        return path_of(self.resource, namespace=self.namespace, name=self.name)


def path_of(resource: str, *, namespace: str | None, name: str = "") -> str:
    """The path of a collection or an object of our group; namespace None means the whole cluster."""
    within = f"/namespaces/{quote(namespace)}" if namespace is not None else ""
    return f"/apis/{API_VERSION}{within}/{resource}" + (f"/{quote(name)}" if name else "")


@dataclass(slots=True)
class Kube:
    """The API server, as one identity. Belongs to the event loop that opened it."""

    configuration: Any
    _session: aiohttp.ClientSession
    _agent: str = field(default_factory=lambda: f"romancy/{engine_version()}")
    _trusted_until: Callable[[], float] | None = None

    def while_leading(self, trusted_until: Callable[[], float]) -> "Kube":
        """The same for the leader: it writes only before that time of the loop, which a renewal of the Lease puts off."""
        return replace(self, _trusted_until=trusted_until)

    async def until_trusted(self) -> None:
        """Return at once if we lead for certain; else never: what waits here is cancelled with the lease.

        A process that was stopped, or starved, goes on in the middle of what it did: it finds out here, and not after a
        write, that another may lead by now and may have written something newer.
        """
        if self._trusted_until is not None and asyncio.get_running_loop().time() >= self._trusted_until():
            await asyncio.Event().wait()

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: ControlSettings) -> AsyncIterator["Kube"]:
        """Connect as the settings say: kubeconfig, else the pod's service account, else the usual kubeconfig.

        Raises:
            SettingsError: there is no usable configuration.
        """
        configuration = await read_configuration(settings)
        connector = aiohttp.TCPConnector(
            ssl=ssl_context_of(configuration), limit=CONNECTIONS_MAX, keepalive_timeout=60, ttl_dns_cache=30
        )
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS)
        async with aiohttp.ClientSession(
            base_url=configuration.host.rstrip("/") + "/",
            connector=connector,
            timeout=timeout,
            read_bufsize=WATCH_LINE_BYTES_MAX,
        ) as session:
            try:
                yield cls(configuration, session)
            finally:
                # Else each connection waits for the server's good-bye, which may come after the end of the loop.
                await connector.close(abort_ssl=True)

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
        """One request and its answer.

        Raises:
            KubeError: the answer is not a 2xx.
            KubeUnavailableError: no answer came in time; it may have been done.
        """
        if method != "GET":
            await self.until_trusted()
        what = f"{method} {path}"
        data = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        try:
            async with (
                asyncio.timeout(seconds),
                self._session.request(
                    method, path.lstrip("/"), data=data, params=query, headers=await self._headers(kind)
                ) as answer,
            ):
                content = await answer.read()
        except TimeoutError as error:  # before OSError: it is one
            raise KubeUnavailableError(what, f"nothing within {seconds:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise KubeUnavailableError(what, repr(error)) from error
        if answer.status >= 300:
            raise _error_of(what, answer, content)
        found: Json = json.loads(content)
        return found

    async def pages(self, path: str, *, query: Mapping[str, str] | None = None) -> AsyncIterator[list[Json]]:
        """A list in pages. One list shows one moment, however many pages it has.

        Raises:
            KubeError: also 410, if the pages took so long that the moment is forgotten: begin anew.
        """
        more: dict[str, str] = {}
        while True:
            answer = await self.call("GET", path, query={"limit": str(PAGE), **(query or {}), **more})
            yield answer.get("items", [])
            if not (token := answer.get("metadata", {}).get("continue")):
                return
            more = {"continue": token}

    async def watch(self, path: str, *, query: Mapping[str, str], seconds: int) -> AsyncIterator[Json]:
        """Events of a collection, as they come; ends when the server ends it, at the latest after `seconds`.

        Raises:
            KubeError: refused, or told in the stream that the version to start from is too old.
            KubeUnavailableError: the connection broke.
        """
        what = f"WATCH {path}"
        params = {**query, "watch": "true", "timeoutSeconds": str(seconds)}
        try:
            async with self._session.get(
                path.lstrip("/"), params=params, headers=await self._headers("application/json")
            ) as answer:
                if answer.status >= 300:
                    raise _error_of(what, answer, await answer.read())
                async for line in answer.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise _status_error(what, event["object"], retry_after_seconds=0)
                    yield event
        except (aiohttp.ClientError, OSError, ValueError) as error:  # ValueError: a line cut off, or too long
            raise KubeUnavailableError(what, repr(error)) from error

    async def patch_status(self, target: Target, status: Json) -> bool:
        """Replace the whole status of exactly this object; False if it is gone.

        It is counted by what came of it. A merge patch would also land on a later object of the same name, even one that names
        the old uid.

        Raises:
            KubeError: refused for another reason, as by the schema.
            KubeUnavailableError: no answer; writing again means the same.
        """
        patch = [
            {"op": "test", "path": "/metadata/uid", "value": str(target.uid)},
            {"op": "add", "path": "/status", "value": status},
        ]
        outcome = "failed"
        try:
            await self.call(
                "PATCH",
                f"{target.path}/status",
                patch,
                query={"fieldManager": FIELD_MANAGER},
                kind="application/json-patch+json",
            )
            outcome = "written"
        except KubeError as error:
            if is_refused(error, target):
                outcome = "refused"
                raise
            # A failed test and a refused status are both 422: only the object itself can tell them apart.
            if not (_is_missing(error, target) or (error.code == 422 and not await self.is_there(target))):
                raise
            outcome = "gone"
        finally:
            metrics.STATUS_WRITES.labels(outcome).inc()
        return outcome == "written"

    async def is_there(self, target: Target) -> bool:
        """Whether exactly this object exists."""
        try:
            found = await self.call("GET", target.path)
        except KubeError as error:
            if _is_missing(error, target):
                return False
            raise
        return bool(found["metadata"]["uid"] == str(target.uid))

    async def delete(self, target: Target) -> None:
        """Delete exactly this object; one that is gone, or another of its name, is no error."""
        options = {"preconditions": {"uid": str(target.uid)}, "propagationPolicy": "Background"}
        try:
            await self.call("DELETE", target.path, options)
        except KubeError as error:
            # 409: the uid is not that of the object of this name
            if error.code != 409 and not _is_missing(error, target):
                raise

    async def _headers(self, kind: str) -> dict[str, str]:
        headers = {"Content-Type": kind, "Accept": "application/json", "User-Agent": self._agent}
        if token := await token_of(self.configuration):
            headers["Authorization"] = token
        elif basic := self.configuration.get_basic_auth_token():
            headers["Authorization"] = basic
        return headers


async def read_configuration(settings: ControlSettings) -> Any:
    """The client's configuration: address, authority, certificate, token and the hook that rereads it.

    Raises:
        SettingsError: there is none, or it can't be read.
    """
    configuration = Configuration()
    load: Any = kubernetes_config  # it has no types
    try:
        if not settings.kubeconfig and "KUBERNETES_SERVICE_HOST" in os.environ:
            load.load_incluster_config(client_configuration=configuration)
        else:
            await load.load_kube_config(config_file=settings.kubeconfig or None, client_configuration=configuration)
    except (kubernetes_config.ConfigException, OSError) as error:
        raise SettingsError(
            f"there is no usable Kubernetes configuration: {error}",
            hint="run in a pod with a service account, or set ROMANCY_CONTROL__KUBECONFIG or KUBECONFIG",
        ) from error
    return configuration


async def token_of(configuration: Any) -> str | None:
    """The value of the Authorization header, reread from its file when it is old; None with a client certificate."""
    token: str | None = await configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
    return token


def _is_missing(error: KubeError, target: Target) -> bool:
    """A 404 that does not name the object says that the kind is not served, as while its definition is replaced."""
    return error.code == 404 and error.name == target.name


def is_refused(error: KubeError, target: Target) -> bool:
    """Whether no object of this kind and namespace can be written: a right or the definition is missing."""
    return error.code in {401, 403} or (error.code == 404 and error.name != target.name)


def ssl_context_of(configuration: Any) -> ssl.SSLContext:
    """What proves the server to us, and us to the server."""
    """What proves the server to us, and us to the server."""
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert, cadata=configuration.ca_cert_data)
    # A cluster's own authority often lacks what X.509 asks for to the letter, and browsers do not.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _error_of(what: str, answer: aiohttp.ClientResponse, content: bytes) -> KubeError:
    try:
        read = json.loads(content)
    except ValueError:
        read = None
    text = content[:200].decode(errors="replace")
    status: Json = {"code": answer.status, **(read if isinstance(read, dict) else {"message": text})}
    try:
        retry_after_seconds = float(answer.headers.get("Retry-After", "0"))
    except ValueError:
        retry_after_seconds = 0.0  # a date: our own backoff will do
    return _status_error(what, status, retry_after_seconds=retry_after_seconds)


def _status_error(what: str, status: Json, *, retry_after_seconds: float) -> KubeError:
    return KubeError(
        what,
        code=int(status.get("code") or 0),
        word=str(status.get("reason") or "Unknown"),
        text=str(status.get("message") or ""),
        name=str((status.get("details") or {}).get("name") or ""),
        retry_after_seconds=retry_after_seconds,
    )
