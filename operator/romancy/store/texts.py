"""What PostgreSQL can't store as text, found before it is sent: one bad value would fail the rows of everybody in its flush."""

import json
from collections.abc import Iterable, Mapping

from romancy.errors import PayloadRefusedError


def size_bytes(texts: Iterable[str | None]) -> int:
    """The size of these texts together, in UTF-8.

    Raises:
        PayloadRefusedError: one holds a NUL or a lone surrogate, which PostgreSQL can't store.
    """
    size = 0
    for text in texts:
        if not text:
            continue
        if "\0" in text:
            raise PayloadRefusedError(f"{_shown(text)} holds a NUL character; JSON writes it as \\u0000")
        if text.isascii():
            size += len(text)
            continue
        try:
            size += len(text.encode())
        except UnicodeEncodeError as error:
            raise PayloadRefusedError(f"{_shown(text)} holds a lone surrogate, which UTF-8 has no bytes for") from error
    return size


def labels_text(labels: Mapping[str, str]) -> str:
    """Labels as JSON. They are searched, so they are jsonb, which refuses even an escaped NUL."""
    size_bytes([*labels, *labels.values()])
    return json.dumps(dict(labels)) if labels else "{}"


def _shown(text: str) -> str:
    shown = ascii(text)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
