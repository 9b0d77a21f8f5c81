"""What PostgreSQL can't store as text, found before it is sent: one bad value would fail the rows of everybody in its flush."""

import json
from collections.abc import Iterable, Mapping

from romancy.errors import PayloadRefusedError


def size_bytes(texts: Iterable[str | None]) -> int:
    """The size of these texts together, in UTF-8.

    Raises:
        PayloadRefusedError: one holds a NUL or a lone surrogate, which PostgreSQL can't store.
    """
    found = [text for text in texts if text]
    together = "".join(found)
    if "\0" in together:
        culprit = next(text for text in found if "\0" in text)
        raise PayloadRefusedError(f"{_shown(culprit)} holds a NUL character; JSON writes it as \\u0000")
    if together.isascii():
        return len(together)
    try:
        return len(together.encode())
    except UnicodeEncodeError as error:
        culprit = next(text for text in found if any("\ud800" <= letter <= "\udfff" for letter in text))
        raise PayloadRefusedError(f"{_shown(culprit)} holds a lone surrogate, which UTF-8 has no bytes for") from error


def labels_text(labels: Mapping[str, str]) -> str:
    """Labels as JSON. They are searched, so they are jsonb, which refuses even an escaped NUL."""
    if not labels:
        return "{}"
    size_bytes([*labels, *labels.values()])
    return json.dumps(dict(labels))


def _shown(text: str) -> str:
    shown = ascii(text)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
