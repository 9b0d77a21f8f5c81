"""Contexts of traces (W3C Trace Context) as runs hand them on. Pure: the same on each replay, in each process."""

import hashlib
import re
from collections.abc import Mapping
from typing import Final, NamedTuple
from uuid import UUID

LABEL: Final = "traceparent"
"""The label of a run, and the extension of an event, that carries where it came from."""
_FORM: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


class TraceParent(NamedTuple):
    """Whose child something is. `flags` 1: the trace is recorded."""

    trace_id: int
    span_id: int
    flags: int = 1

    def __str__(self) -> str:
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.flags:02x}"


def read(text: object) -> TraceParent | None:
    """What a header or label says; None if it says nothing that holds."""
    found = _FORM.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return None
    parent = TraceParent(int(found[1], 16), int(found[2], 16), int(found[3], 16) & 1)
    return parent if parent.trace_id and parent.span_id else None


def id_of(run_id: UUID, *parts: object) -> int:
    """The id of a span: 64 bits, not 0, of what it is about."""
    text = "/".join(map(str, (run_id, *parts)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) or 1


def of_run(run_id: UUID, labels: Mapping[str, str]) -> TraceParent:
    """The context of what a run does: of the trace that it came from, or of one of its own."""
    parent = read(labels.get(LABEL))
    trace_id, flags = (parent.trace_id, parent.flags) if parent else (run_id.int or 1, 1)
    return TraceParent(trace_id, id_of(run_id), flags)


def handed_on(run_id: UUID, labels: Mapping[str, str]) -> dict[str, str]:
    """What its children and events carry: nothing, unless the run carries something itself."""
    return {LABEL: str(of_run(run_id, labels))} if read(labels.get(LABEL)) else {}
