"""One event, one HTTP request (CloudEvents HTTP protocol binding 1.0.2), and what its answer means."""

import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
from cloudevents.core.bindings import http
from cloudevents.core.exceptions import BaseCloudEventException
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent as SdkEvent

from romancy.base.settings import OutboxSettings
from romancy.base.version import engine_version
from romancy.errors import SettingsError
from romancy.model.event import SPEC_VERSION, CloudEvent

RETRIED: Final = frozenset({408, 425, 429})
"""Of the answers 400 to 499, those that say that it is not the event that is wrong."""
RETRY_AFTER_SECONDS_MAX: Final = 3600.0
_SAID_BYTES_MAX: Final = 300
_JSON: Final = "application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one request.

    Attributes:
        failure: what went wrong, for people; empty: the sink has taken the event.
        is_final: another try would get the same answer.
        retry_after_seconds: the sink wants to be left alone for so long.
    """

    failure: str = ""
    is_final: bool = False
    retry_after_seconds: float = 0.0


class Sink:
    """An HTTP endpoint that takes CloudEvents; open between `async with` and its end. Follows no redirect.

    Raises:
        SettingsError: the file of authorities can't be read.
    """

    def __init__(self, settings: OutboxSettings) -> None:
        assert settings.sink_url
        self._settings = settings
        self._headers, self._extensions = settings.header_map, settings.extension_map
        self._tls = _tls(settings.ca_file)
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._settings.at_once, ssl=self._tls),
            timeout=aiohttp.ClientTimeout(total=self._settings.timeout_seconds),
            headers={"user-agent": f"romancy/{engine_version()}"},
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def send(self, event: CloudEvent) -> Answer:
        """Send it once; what goes wrong is an answer, too."""
        try:
            message = message_of(event, self._extensions, is_structured=self._settings.structured)
        except BaseCloudEventException as error:
            return Answer(f"it is no CloudEvent that can be sent: {error}", is_final=True)
        try:
            async with self._session.post(
                self._settings.sink_url,
                data=message.body,
                headers={**message.headers, **self._headers},
                allow_redirects=False,
            ) as response:
                return await _answer(response)
        except TimeoutError:
            return Answer(f"no answer within {self._settings.timeout_seconds:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Answer(f"{type(error).__name__}: {error}"[:_SAID_BYTES_MAX])


def message_of(event: CloudEvent, extensions: Mapping[str, str], *, is_structured: bool) -> http.HTTPMessage:
    """The event as it goes over the wire; `extensions` win over its own.

    Raises:
        BaseCloudEventException: an attribute is none that can be sent.
    """
    attributes: dict[str, Any] = {
        "specversion": SPEC_VERSION,
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "datacontenttype": event.datacontenttype or (_JSON if event.data is not None else None),
        "dataschema": event.dataschema,
        "subject": event.subject,
        "time": event.time,
        **event.extensions,
        **extensions,
    }
    attributes = {name: value for name, value in attributes.items() if value is not None}
    if is_structured:
        return http.to_structured(SdkEvent(attributes, event.data), JSONFormat())
    texts = {name: str(value).lower() if isinstance(value, bool) else value for name, value in attributes.items()}
    # As bytes: of a text the SDK would leave out the quotes that make JSON of it.
    body = json.dumps(event.data, separators=(",", ":")).encode() if event.data is not None else None
    return http.to_binary(SdkEvent(texts, body), JSONFormat())


async def _answer(response: aiohttp.ClientResponse) -> Answer:
    if 200 <= response.status < 300:
        return Answer()
    said = (await response.content.read(_SAID_BYTES_MAX)).decode(errors="replace").split()
    failure = " ".join([f"{response.status} {response.reason or ''}".strip(), *said])[:_SAID_BYTES_MAX]
    if 300 <= response.status < 400:
        failure = f"{failure} (to {response.headers.get('location', '?')}; redirects are not followed)"
    is_final = 400 <= response.status < 500 and response.status not in RETRIED
    return Answer(failure.replace("\0", ""), is_final, 0.0 if is_final else retry_after_seconds(response.headers))


def retry_after_seconds(headers: Mapping[str, str], now: datetime | None = None) -> float:
    """The wish of a Retry-After header in either form, up to an hour; 0 where there is none that can be read."""
    text = headers.get("Retry-After", "").strip()
    try:
        seconds = float(text) if text.isdecimal() else _until(text, now or datetime.now(UTC))
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(0.0, seconds), RETRY_AFTER_SECONDS_MAX)


def _until(text: str, now: datetime) -> float:
    moment = parsedate_to_datetime(text)
    return (moment - now).total_seconds()


def _tls(ca_file: str) -> ssl.SSLContext:
    if ca_file and not Path(ca_file).is_file():
        raise SettingsError(
            f"ROMANCY_OUTBOX__CA_FILE: there is no file {ca_file}", hint="a PEM file of authorities, as it is mounted"
        )
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except ssl.SSLError as error:
        raise SettingsError(f"ROMANCY_OUTBOX__CA_FILE: {ca_file} can't be read: {error}", hint="a PEM file") from error
