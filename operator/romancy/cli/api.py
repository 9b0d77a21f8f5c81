"""The HTTP API, asked by commands. The standard library does: importing an HTTP client takes longer than a request."""

import http.client
import json
import ssl
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import IO, Any, Final
from urllib.error import HTTPError, URLError
from uuid import UUID

from romancy.cli.backend import Json, Key, Query
from romancy.errors import ProblemError, SettingsError, StoreUnavailableError

TIMEOUT_SECONDS: Final = 30.0
"""Of a request; a watch hears something at least every 15 s."""
_CAMEL: Final = {
    "workflow": "workflow",
    "name_part": "namePart",
    "id_prefix": "idPrefix",
    "created_after": "createdAfter",
    "created_before": "createdBefore",
    "finished_after": "finishedAfter",
    "finished_before": "finishedBefore",
    "limit": "limit",
    "after": "page",
}


class Api:
    """Speaks to one engine.

    Args:
        url: of the engine, without `/api/v1`.
        token: a bearer token; empty for none.
        ca_file: of certificates to trust, beside those of the system.

    Raises:
        SettingsError: the URL is none of HTTP.
    """

    def __init__(self, url: str, token: str, *, ca_file: str | None = None) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.netloc:
            raise SettingsError(f"{url!r} is no address of an engine", hint="as in https://romancy.example.com")
        self._url = url.rstrip("/")
        self._headers = {"Accept": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
        # A token must not follow to wherever an answer points.
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if parts.scheme == "https":
            handlers.append(urllib.request.HTTPSHandler(context=_context(ca_file)))
        self._opener = urllib.request.build_opener(*handlers)

    def __enter__(self) -> "Api":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self, namespace: str, asked: Json) -> tuple[Json, bool]:
        """Start a run."""
        status, run = self._ask("POST", f"/api/v1/namespaces/{_quoted(namespace)}/runs", asked)
        return run, status == http.HTTPStatus.CREATED

    def run(self, key: Key) -> Json:
        """The run as it is now."""
        return self._ask("GET", _path(key))[1]

    def runs(self, query: Query) -> Json:
        """A page of a list."""
        return self._ask("GET", _list_path(query))[1]

    def watch_run(self, key: Key) -> Iterator[Json]:
        """The run, and again whenever it changes, until it has ended."""
        last: Json | None = None
        while last is None or last["finishedAt"] is None:  # a watch ends with its process, and begins anew elsewhere
            for run in self._watch(f"{_path(key)}/watch"):
                if run != last:
                    last = run
                    yield run

    def watch_runs(self, query: Query) -> Iterator[Json]:
        """The runs of a page, and each again when it changes."""
        known: dict[str, Json] = {}
        while True:
            for run in self._watch(_list_path(query, watch="true")):
                if known.get(run["id"]) != run:
                    known[run["id"]] = run
                    yield run

    def history(self, key: Key) -> Json:
        """All that happened to a run."""
        return self._ask("GET", f"{_path(key)}/history")[1]

    def values(self, key: Key) -> Json:
        """What a run shows to outsiders."""
        found: Json = self._ask("GET", f"{_path(key)}/values")[1]["values"]
        return found

    def change(self, key: Key, verb: str, message: str = "") -> tuple[Json, bool]:
        """cancel, suspend, resume or retry."""
        status, run = self._ask("POST", f"{_path(key)}/{verb}", {"message": message} if message else {})
        return run, status == http.HTTPStatus.ACCEPTED

    def send_event(self, event: Json, to: Key | None) -> Json:
        """Send a CloudEvent, in structured mode."""
        path = "/events" if to is None else f"{_path(to)}/events"
        return self._ask("POST", path, event, content_type="application/cloudevents+json")[1]

    def dead_letters(self, namespace: str | None, *, limit: int, page: int | None) -> Json:
        """A page of them."""
        query = urllib.parse.urlencode({"limit": limit, **({} if page is None else {"page": page})})
        return self._ask("GET", f"{_letters(namespace)}?{query}")[1]

    def resend_dead_letter(self, namespace: str | None, number: int) -> None:
        """Have one delivered again."""
        self._ask("POST", f"{_letters(namespace)}/{number}/resend")

    def delete_dead_letter(self, namespace: str | None, number: int) -> None:
        """Give one up."""
        self._ask("DELETE", f"{_letters(namespace)}/{number}")

    def workers(self) -> list[Json]:
        """Who executes runs."""
        found: list[Json] = self._ask("GET", "/api/v1/workers")[1]["workers"]
        return found

    def workflows(self) -> list[Json]:
        """What live workers have."""
        found: list[Json] = self._ask("GET", "/api/v1/workflows")[1]["workflows"]
        return found

    def _ask(
        self, method: str, path: str, body: Json | None = None, *, content_type: str = "application/json"
    ) -> tuple[int, Json]:
        with self._open(method, path, body, content_type) as response:
            text = response.read()
            try:
                found: Json = json.loads(text)
            except ValueError as error:
                raise StoreUnavailableError(f"{self._url} answers with something that is no JSON") from error
            return response.status, found

    def _watch(self, path: str) -> Iterator[Json]:
        """The objects of a stream of server-sent events, until it ends."""
        kind = ""
        with self._open("GET", path, None, "") as response:
            try:
                for line in response:
                    name, _, value = line.decode().rstrip("\n").partition(": ")
                    if name == "event":
                        kind = value
                    elif name == "data" and kind == "run":
                        yield json.loads(value)
            except (OSError, http.client.HTTPException):
                return  # cut off: whoever watches begins anew, and is told then if there is nobody

    def _open(self, method: str, path: str, body: Json | None, content_type: str) -> Any:
        request = urllib.request.Request(
            self._url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={**self._headers, **({"Content-Type": content_type} if body is not None else {})},
        )
        try:
            return self._opener.open(request, timeout=TIMEOUT_SECONDS)
        except HTTPError as error:
            raise _problem(error) from None
        except (URLError, OSError, http.client.HTTPException) as error:
            why = error.reason if isinstance(error, URLError) else error
            raise StoreUnavailableError(f"{self._url}: {why}", who="the HTTP API") from error


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        del req, fp, code, msg, headers, newurl


def _problem(error: HTTPError) -> ProblemError:
    """What a problem document says; or what can be said of an answer that is none."""
    try:
        told = json.loads(error.read())
        return ProblemError(told["detail"], reason=told["reason"], status=error.code, hint=told.get("hint", ""))
    except (ValueError, KeyError, TypeError, OSError):
        return ProblemError(
            f"{error.url} answers {error.code} {error.reason}",
            reason="RequestInvalid",
            status=error.code,
            hint="is this the address of an engine? See --server",
        )


def _context(ca_file: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca_file:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:
            raise SettingsError(
                f"{ca_file} can't be used: {error}", hint="ROMANCY_API__CA_FILE names a PEM file"
            ) from error
    return context


def _quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="")


def _path(key: Key) -> str:
    try:
        return f"/api/v1/runs/{UUID(key.name)}"
    except ValueError:
        return f"/api/v1/namespaces/{_quoted(key.namespace)}/runs/{_quoted(key.name)}"


def _list_path(query: Query, **more: str) -> str:
    base = "/api/v1/runs" if query.namespace is None else f"/api/v1/namespaces/{_quoted(query.namespace)}/runs"
    asked = [*_parameters(query.filters), *more.items()]
    return f"{base}?{urllib.parse.urlencode(asked)}" if asked else base


def _parameters(filters: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in filters.items():
        if value is None:
            continue
        if name == "phases":
            yield from (("phase", str(phase)) for phase in value)
        elif name == "labels":
            yield from (("label", f"{label}={text}") for label, text in value.items())
        elif name == "input":
            yield "input", json.dumps(value)
        else:
            yield _CAMEL[name], value.isoformat() if isinstance(value, datetime) else str(value)


def _letters(namespace: str | None) -> str:
    return "/api/v1/dead-letters" if namespace is None else f"/api/v1/namespaces/{_quoted(namespace)}/dead-letters"
