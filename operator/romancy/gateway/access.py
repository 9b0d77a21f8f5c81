"""Who calls, and what they may do: rights on the resources of romancy.dev, so that a cluster's RBAC holds for HTTP too.

`KubernetesAccess` (control) asks the cluster; here is what needs none, and what is common: the token of a request, a short memory
of answers, and how often a caller may ask.
"""

import asyncio
import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any, Final, Protocol

import yaml
from aiohttp import hdrs, web

from romancy.base import log
from romancy.base.clock import Clock
from romancy.errors import ForbiddenError, SettingsError, TooManyRequestsError, UnauthenticatedError
from romancy.model.access import Caller, Right
from romancy.model.record import record

LOG = log.get(__name__)

RUNS: Final = "workflowruns"
ENGINES: Final = "workflowengines"
EVENTS: Final = "workflowengines/events"
REMEMBERED_SECONDS: Final = 10.0
"""So long an answer holds: a right that is taken away ends after that."""
REMEMBERED_MAX: Final = 10_000
ASKED_AT_ONCE: Final = 20
"""Questions on their way to the authority: whoever sends many tokens does not flood it."""
TOKEN_CHARS_MAX: Final = 8192
TOKEN_CHARS_MIN: Final = 16
_TOKEN_FIELDS: Final = frozenset({"name", "token", "role", "namespaces"})
CALLERS_MAX: Final = 10_000
_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
FAILED_PER_SECOND: Final = 5.0
"""Tokens of one address that nobody vouches for and that are told so."""


class Access(Protocol):
    """An authority. It may raise AuthorityUnavailableError; nothing is then allowed."""

    async def identify(self, token: str) -> Caller | None:
        """Whose token it is; None if nobody vouches for it."""
        ...

    async def may(self, caller: Caller, right: Right) -> bool: ...


class Role(StrEnum):
    """What a static token allows, in its namespaces."""

    VIEWER = "Viewer"  # look at runs
    OPERATOR = "Operator"  # and start and change them
    SENDER = "Sender"  # send events, nothing else


_VERBS: Final = {
    Role.VIEWER: frozenset({"get", "list", "watch"}),
    Role.OPERATOR: frozenset({"get", "list", "watch", "create", "patch", "delete"}),
}
ANYBODY: Final = Caller("anybody")
EVENT_SENDER: Final = Caller("event-sender")


@record
class StaticToken:
    """One of a list that is given to the process. `namespaces` none: all."""

    name: str
    role: Role
    namespaces: frozenset[str] = frozenset()


def tokens_of(roles: Mapping[str, str]) -> "dict[str, StaticToken]":
    """Tokens of all namespaces, from their roles.

    Raises:
        SettingsError: there is no such role, or the token is short enough to be guessed.
    """
    return {
        token: static_token(token, name=f"token-{nth}", role=role) for nth, (token, role) in enumerate(roles.items())
    }


def read_tokens(path: str) -> "dict[str, StaticToken]":
    """Tokens of a file: a list of `{name, token, role, namespaces}` in YAML or JSON.

    Raises:
        SettingsError: it can't be read, or an element is wrong; the token itself is not in the text.
    """
    try:
        with open(path, encoding="utf-8") as file:
            found = yaml.safe_load(file)
    except (OSError, yaml.YAMLError) as error:
        kind = error.strerror if isinstance(error, OSError) else "it is no YAML"
        raise SettingsError(f"tokens_file {path}: {kind}", hint="a list of {name, token, role, namespaces}") from None
    tokens: dict[str, StaticToken] = {}
    for nth, each in enumerate(found if isinstance(found, list) else [None]):
        if not isinstance(each, dict) or not {"name", "token", "role"} <= each.keys() <= _TOKEN_FIELDS:
            raise SettingsError(
                f"tokens_file {path}: element {nth} is no token",
                hint="{name, token, role} and, if not for all, namespaces",
            )
        token, name = str(each["token"]), str(each["name"])
        if token in tokens or any(name == other.name for other in tokens.values()):
            raise SettingsError(f"tokens_file {path}: {name!r} or its token stands there twice")
        tokens[token] = static_token(token, name=name, role=str(each["role"]), namespaces=each.get("namespaces") or ())
    return tokens


def static_token(token: str, *, name: str, role: str, namespaces: Iterable[str] = ()) -> "StaticToken":
    """One token, checked.

    Raises:
        SettingsError: there is no such role, or the token is short enough to be guessed.
    """
    if role not in set(Role):
        raise SettingsError(f"{name} has role {role!r:.40}", hint=f"roles are {', '.join(Role)}")
    if len(token) < TOKEN_CHARS_MIN:
        raise SettingsError(
            f"the token of {name} has {len(token)} characters",
            hint=f"at least {TOKEN_CHARS_MIN}: `openssl rand -hex 20`",
        )
    return StaticToken(name, Role(role), frozenset(namespaces))


class Tokens:
    """Tokens that stand in the process' own configuration, for where there is no cluster to ask.

    Args:
        tokens: by the token's text; kept as digests, so that looking one up tells nothing by its time.
    """

    def __init__(self, tokens: Mapping[str, StaticToken]) -> None:
        self._tokens = {_digest(token): each for token, each in tokens.items()}
        self._by_name = {each.name: each for each in tokens.values()}

    async def identify(self, token: str) -> Caller | None:
        found = self._tokens.get(_digest(token))
        return Caller(found.name) if found else None

    async def may(self, caller: Caller, right: Right) -> bool:
        if (token := self._by_name.get(caller.name)) is None:
            return False
        if right.resource == EVENTS:
            return token.role in {Role.SENDER, Role.OPERATOR} and not token.namespaces
        if right.verb not in _VERBS.get(token.role, ()):
            return False
        if right.resource == ENGINES and right.verb in _VERBS[Role.VIEWER]:
            return True  # names of workflows and workers
        return not token.namespaces or right.namespace in token.namespaces


class Open:
    """Everybody may do everything: on loopback, or where somebody else asks who it is.

    Args:
        only_local: requests must name this machine, or a page of the web could have its name lead here (DNS rebinding).
    """

    def __init__(self, *, only_local: bool = False) -> None:
        self.only_local = only_local

    async def identify(self, token: str) -> Caller | None:
        del token
        return ANYBODY

    async def may(self, caller: Caller, right: Right) -> bool:
        del caller, right
        return True


class Remembered:
    """Answers of another authority, kept for a moment; one question at a time for each of them."""

    def __init__(self, access: Access, clock: Clock) -> None:
        self._access = access
        self._at_once = asyncio.Semaphore(ASKED_AT_ONCE)
        self._callers = _Memory[str, Caller | None](clock)
        self._rights = _Memory[tuple[str, str, Right], bool](clock)

    async def identify(self, token: str) -> Caller | None:
        async def ask() -> Caller | None:
            async with self._at_once:
                return await self._access.identify(token)

        return await self._callers.get(_digest(token), ask)

    async def may(self, caller: Caller, right: Right) -> bool:
        async def ask() -> bool:
            async with self._at_once:
                return await self._access.may(caller, right)

        return await self._rights.get((caller.name, caller.uid, right), ask)


class _Memory[K, V]:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._answers: OrderedDict[K, tuple[float, asyncio.Future[V]]] = OrderedDict()

    async def get(self, key: K, ask: Callable[[], Awaitable[V]]) -> V:
        now = self._clock.monotonic()
        known = self._answers.get(key)
        if known is None or known[0] <= now or (known[1].done() and known[1].exception() is not None):
            while len(self._answers) >= REMEMBERED_MAX:
                self._answers.popitem(last=False)
            asked = asyncio.ensure_future(ask())
            asked.add_done_callback(_heard)
            known = self._answers[key] = (now + REMEMBERED_SECONDS, asked)
            self._answers.move_to_end(key)
        return await asyncio.shield(known[1])  # whoever else asks is not to suffer from one who leaves


def _heard(asked: "asyncio.Future[Any]") -> None:
    if not asked.cancelled():
        asked.exception()  # whoever asked has it; if they have left, nobody needs to be told


class Gate:
    """Lets in who may: the one place where a request gets a caller, and a caller a right.

    Args:
        access: the authority.
        events_token: lets events in, and nothing else; empty: there is none.
        are_events_open: events need no token at all.
        requests_per_second: of one caller, with as much at once after a pause.
    """

    def __init__(
        self,
        access: Access,
        *,
        clock: Clock,
        events_token: str = "",
        are_events_open: bool = False,
        requests_per_second: float,
        events_per_second: float,
    ) -> None:
        self._access, self._events_token, self._are_events_open = access, events_token, are_events_open
        self._requests = Rates(clock, requests_per_second)
        self._events = Rates(clock, events_per_second)
        self._failures = Rates(clock, FAILED_PER_SECOND)

    async def caller(self, request: web.Request) -> Caller:
        """Who sends this request.

        Raises:
            UnauthenticatedError: nobody knows.
            TooManyRequestsError: they ask too often.
        """
        token = _bearer(request)
        if isinstance(self._access, Open):
            _refuse_foreign_page(request, only_local=self._access.only_local)
            return ANYBODY
        if not token:
            raise UnauthenticatedError
        found = await self._access.identify(token) if len(token) <= TOKEN_CHARS_MAX else None
        if found is None:
            # Whoever has a good token is let in from the same address: it may be that of a proxy.
            self._failures.take(request.remote or "", "too many tokens that nobody vouches for came from this address")
            raise UnauthenticatedError
        self._requests.take(found.name, f"{found.name} sends too many requests")
        return found

    async def sender(self, request: web.Request, namespace: str) -> Caller:
        """Who sends this event, if they may.

        Raises:
            UnauthenticatedError, ForbiddenError, TooManyRequestsError: as for any request.
        """
        token = _bearer(request)
        if self._are_events_open:
            caller = ANYBODY
        elif isinstance(self._access, Open):
            caller = await self.caller(request)
        elif self._events_token and hmac.compare_digest(token.encode(), self._events_token.encode()):
            caller = EVENT_SENDER
        else:
            caller = await self.caller(request)
            await self.require(caller, Right("create", EVENTS, namespace))
        self._events.take(caller.name, f"{caller.name} sends too many events")
        return caller

    async def require(self, caller: Caller, right: Right) -> None:
        """Go on only if the caller may.

        Raises:
            ForbiddenError: they may not.
        """
        if not await self.may(caller, right):
            LOG.info("request_forbidden", caller=caller.name, verb=right.verb, resource=right.resource)
            raise ForbiddenError(caller.name, right.verb, right.resource, right.namespace)

    async def may(self, caller: Caller, right: Right) -> bool:
        """Whether the caller may do this there, or everywhere."""
        return await self._access.may(caller, right)


class Rates:
    """How often each of many may do something: so many a second in the long run, and a second's worth at once."""

    def __init__(self, clock: Clock, per_second: float) -> None:
        self._clock, self._per_second, self._burst = clock, per_second, max(1.0, per_second)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when

    def check(self, who: str, what: str) -> None:
        """Raises TooManyRequestsError if nothing is left to take."""
        if (left := self._left(who)) < 1:
            raise TooManyRequestsError(what, retry_after_seconds=(1 - left) / self._per_second)

    def take(self, who: str, what: str = "") -> None:
        """Take one; with `what`, raises TooManyRequestsError if there is none."""
        if what:
            self.check(who, what)
        while len(self._buckets) >= CALLERS_MAX:
            self._buckets.popitem(last=False)
        self._buckets[who] = (self._left(who) - 1, self._clock.monotonic())
        self._buckets.move_to_end(who)

    def _left(self, who: str) -> float:
        left, at = self._buckets.get(who, (self._burst, self._clock.monotonic()))
        return min(self._burst, left + (self._clock.monotonic() - at) * self._per_second)


def _refuse_foreign_page(request: web.Request, *, only_local: bool) -> None:
    """A browser sends what a page of anybody tells it to; without tokens this is what tells such a request apart.

    Raises:
        ForbiddenError: it comes from a page of another host.
    """
    origin = request.headers.get(hdrs.ORIGIN)
    host = request.host.rpartition(":")[0] if ":" in request.host.rpartition("]")[2] else request.host
    if (origin is not None and origin.partition("://")[2] != request.host) or (only_local and host not in _LOCAL):
        raise ForbiddenError(f"a page of {origin or host:.200}", request.method.lower(), "anything", None)


def _bearer(request: web.Request) -> str:
    """The token of a request (RFC 6750, section 2.1); empty if it has none."""
    scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()
