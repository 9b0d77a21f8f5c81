"""What commands ask, whoever answers: the HTTP API (cli/api.py) or the database itself (cli/direct.py).

Both give the objects of the HTTP API (model/shown.py). Nothing of the engine is imported here: a command that speaks HTTP
needs none of it.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from romancy.errors import SettingsError

Json = dict[str, Any]
URL_VARIABLE: Final = "ROMANCY_API__URL"
TOKEN_VARIABLE: Final = "ROMANCY_API__TOKEN"
TOKEN_FILE_VARIABLE: Final = "ROMANCY_API__TOKEN_FILE"
CA_FILE_VARIABLE: Final = "ROMANCY_API__CA_FILE"
WATCH_SECONDS: Final = 0.5
"""How often a run that is watched is looked at."""


@dataclass(frozen=True, slots=True)
class Key:
    """Which run: a UUID is its id, anything else the newest run of that name."""

    namespace: str
    name: str

    @classmethod
    def of(cls, text: str, namespace: str) -> "Key":
        """From `name`, `id` or `namespace/name`."""
        before, sign, after = text.partition("/")
        return cls(before, after) if sign else cls(namespace, text)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Query:
    """Which runs of a list; the names are those of `Client.list`. No namespace means all."""

    namespace: str | None
    filters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reach:
    """How to reach the engine."""

    server: str | None = None
    token_file: Path | None = None

    @property
    def url(self) -> str | None:
        """Of the HTTP API, if it is to be asked."""
        return self.server or os.environ.get(URL_VARIABLE) or None

    def token(self) -> str:
        """The bearer token, if there is one."""
        file = self.token_file or os.environ.get(TOKEN_FILE_VARIABLE)
        if not file:
            return os.environ.get(TOKEN_VARIABLE, "")
        try:
            return Path(file).read_text().strip()
        except OSError as error:
            raise SettingsError(f"the token can't be read: {error}", hint="correct --token-file") from error

    def backend(self) -> "Backend":
        """Whoever is to be asked: the HTTP API if its address is given, else the database."""
        if (url := self.url) is not None:
            from romancy.cli.api import Api

            return Api(url, self.token(), ca_file=os.environ.get(CA_FILE_VARIABLE))
        from romancy.cli.direct import Direct

        return Direct()


class Backend(Protocol):
    """Every method may raise StoreUnavailableError: whoever is asked gives no answer."""

    def __enter__(self) -> "Backend": ...
    def __exit__(self, *_: object) -> None: ...

    def start(self, namespace: str, asked: Json) -> tuple[Json, bool]:
        """Start a run (a body of `POST .../runs`): the run, and whether it is new."""
        ...

    def run(self, key: Key) -> Json: ...
    def runs(self, query: Query) -> Json:
        """A page: {"runs", "next"}."""
        ...

    def watch_run(self, key: Key) -> Iterator[Json]:
        """The run, and again whenever it changes, until it has ended."""
        ...

    def watch_runs(self, query: Query) -> Iterator[Json]:
        """The runs of a page, and each again when it changes; for ever."""
        ...

    def history(self, key: Key) -> Json:
        """{"entries", "attempts"}."""
        ...

    def values(self, key: Key) -> Json: ...
    def change(self, key: Key, verb: str, message: str = "") -> tuple[Json, bool]:
        """cancel, suspend, resume or retry: the run, and whether that was new."""
        ...

    def send_event(self, event: Json, to: Key | None) -> Json:
        """Send a CloudEvent in its JSON form: {"status", "id", "source", "runs", "started", "duplicate"}."""
        ...

    def dead_letters(self, namespace: str | None, *, limit: int, page: int | None) -> Json:
        """A page: {"deadLetters", "next"}; of a namespace or (None) of all."""
        ...

    def resend_dead_letter(self, namespace: str | None, number: int) -> None:
        """Raises DeadLetterNotFoundError: it is not there."""
        ...

    def delete_dead_letter(self, namespace: str | None, number: int) -> None: ...
    def workers(self) -> list[Json]: ...
    def workflows(self) -> list[Json]: ...


def event_of(type: str, data: str | None, **attributes: str | None) -> Json:
    """A CloudEvent in its JSON form; `data` is JSON, or a text if it is none."""
    given = {name: value for name, value in attributes.items() if value is not None}
    event: Json = {"specversion": "1.0", "type": type, **given}
    if data is not None:
        try:
            event |= {"data": json.loads(data), "datacontenttype": "application/json"}
        except ValueError:
            event |= {"data": data, "datacontenttype": "text/plain"}
    return event
