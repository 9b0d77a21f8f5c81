"""CloudEvents as HTTP brings them; whatever comes, it is an event or an error that says why."""

import json
import random
from datetime import UTC, datetime
from typing import Any

import pytest

from romancy.errors import EventInvalidError, MediaTypeError
from romancy.gateway.cloudevents import BATCH, STRUCTURED, parse
from romancy.model.event import CloudEvent

EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "A234-1234-1234",
    "source": "/mycontext",
    "type": "com.example.someevent",
    "time": "2018-04-05T17:31:00Z",
    "comexampleextension1": "value",
    "comexampleothervalue": 5,
    "datacontenttype": "application/json",
    "data": {"appinfoA": "abc", "appinfoB": 123},
}
HEADERS = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t"}


def structured(**changes: Any) -> list[CloudEvent]:
    return parse({"Content-Type": STRUCTURED}, json.dumps({**EVENT, **changes}).encode())


def binary(body: bytes = b"", kind: str = "application/json", **headers: str) -> CloudEvent:
    [event] = parse({**HEADERS, "Content-Type": kind, **headers}, body)
    return event


def test_an_event_of_the_specification() -> None:
    [event] = structured()

    assert event == CloudEvent(
        id="A234-1234-1234",
        source="/mycontext",
        type="com.example.someevent",
        time=datetime(2018, 4, 5, 17, 31, tzinfo=UTC),
        datacontenttype="application/json",
        data={"appinfoA": "abc", "appinfoB": 123},
        extensions={"comexampleextension1": "value", "comexampleothervalue": 5},
    )


def test_a_batch_and_an_empty_one() -> None:
    body = json.dumps([EVENT, {**EVENT, "id": "2"}]).encode()

    assert [event.id for event in parse({"content-type": f"{BATCH}; charset=UTF-8"}, body)] == ["A234-1234-1234", "2"]
    assert parse({"content-type": BATCH}, b"[]") == []


@pytest.mark.parametrize(
    ("body", "kind", "data"),
    [
        (b'{"a": 1}', "application/json", {"a": 1}),
        (b"[1]", "application/vnd.shop+json; charset=utf-8", [1]),
        (b"null", "application/json", None),
        (b"1.5", "", 1.5),
        ("grüß".encode(), "text/plain", "grüß"),
        (b"<a/>", "application/soap+xml", "<a/>"),
        (b"\xff\x00", "application/octet-stream", "/wA="),
        (b"", "application/json", None),
    ],
)
def test_data_in_the_body_by_its_type(body: bytes, kind: str, data: Any) -> None:
    event = binary(body, kind)

    assert event.data == data
    assert event.datacontenttype == (kind or None)


def test_headers_are_attributes() -> None:
    event = binary(
        b"{}",
        **{"CE-Subject": "caf%C3%A9%20one", "ce-time": "2026-11-24T12:00:00+01:00", "ce-traceparent": "00-a-b-01"},
    )

    assert event.subject == "café one"
    assert event.time == datetime(2026, 11, 24, 11, tzinfo=UTC)
    assert event.extensions == {"traceparent": "00-a-b-01"}


def test_data_base64_is_what_it_encodes() -> None:
    [text] = structured(data=None, data_base64="eyJhIjoxfQ==")
    [raw] = structured(data=None, data_base64="/wA=", datacontenttype="image/png")

    assert text.data == {"a": 1}
    assert raw.data == "/wA="


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"id": None}, "lacks id"),
        ({"source": None, "type": None}, "lacks source, type"),
        ({"id": ""}, "id"),
        ({"id": 7}, "id"),
        ({"id": "x" * 300}, "1 to 255 characters"),
        ({"type": "a\nb"}, "control character"),
        ({"type": "a\ud800"}, "half a surrogate"),
        ({"specversion": "0.3"}, "1.0 is read"),
        ({"specversion": 1}, "1.0 is read"),
        ({"time": "yesterday"}, "no 'yesterday'"),
        ({"time": 7}, "time of an event"),
        ({"time": "2026-11-24T12:00:00"}, "timezone"),
        ({"Big": "x"}, "Big"),
        ({"ext": {"a": 1}}, "ext"),
        ({"ext": 1.5}, "ext"),
        ({"data_base64": "eyJhIjoxfQ=="}, "not both"),
        ({"data": None, "data_base64": "!"}, "no base64"),
        ({"data": None, "data_base64": 7}, "no base64"),
        ({"datacontenttype": 7}, "datacontenttype"),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(EventInvalidError, match=said):
        structured(**changes)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"7", b"null", b'"a"', b"[" * 100_000, b'{"id": NaN}', b"1" * 5000]
)
def test_what_is_no_json_object_is_said(body: bytes) -> None:
    with pytest.raises(EventInvalidError):
        parse({"content-type": STRUCTURED}, body)


def test_the_one_of_a_batch_that_is_wrong_is_named() -> None:
    with pytest.raises(EventInvalidError, match="event 1 of the batch: the event lacks id; none of them was taken"):
        parse({"content-type": BATCH}, json.dumps([EVENT, {**EVENT, "id": None}]).encode())
    with pytest.raises(EventInvalidError, match="1,001 events"):
        parse({"content-type": BATCH}, json.dumps([EVENT] * 1001).encode())


@pytest.mark.parametrize("missing", sorted(HEADERS))
def test_a_header_that_is_missing_is_named(missing: str) -> None:
    """The SDK would make up an id: each try would then be another event."""
    headers = {name: value for name, value in HEADERS.items() if name != missing}

    with pytest.raises(EventInvalidError, match=missing.removeprefix("ce-")):
        parse(headers, b"")


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "application/json",
        "application/cloudevents+xml",
        "application/cloudevents",
        f"{STRUCTURED}; charset=latin-1",
    ],
)
def test_other_kinds_are_refused_with_what_is_read(kind: str) -> None:
    with pytest.raises(MediaTypeError) as refused:
        parse({"content-type": kind}, b"{}")

    assert refused.value.hint


def test_json_that_is_none_is_no_text() -> None:
    with pytest.raises(EventInvalidError, match="no JSON"):
        binary(b"{", "application/json")
    with pytest.raises(EventInvalidError, match="no UTF-8"):
        binary(b"\xff", "text/plain")


def test_a_hundred_thousand_broken_inputs_are_each_an_event_or_an_error() -> None:
    """Bytes changed, cut out and doubled; attributes of any type; headers of any text."""
    chance = random.Random(20261124)
    whole = [
        json.dumps(EVENT).encode(),
        json.dumps([EVENT, {"data_base64": "eyJhIjoxfQ==", **EVENT}]).encode(),
        b'{"x":[1,null]}',
    ]
    odd = [
        None,
        True,
        0,
        -1,
        2**70,
        1e308,
        "",
        "\0",
        "\ud800",
        "x" * 300,
        [],
        {},
        {"a": [{}]},
        "2026-11-24",
        "+1",
        "%zz",
        "%ff",
        "é",
    ]
    texts = [
        "",
        "1.0",
        "0.3",
        "%00",
        "%zz",
        "%C3",
        "\udcff",
        "2026-13-01",
        "2018-04-05T17:31:00Z",
        "a" * 9000,
        "é",
        "24:00",
    ]
    kinds = [
        "",
        STRUCTURED,
        BATCH,
        "application/json",
        "text/plain;charset=x",
        "a/b;;charset=",
        "application/xml",
        "\0",
    ]
    names = [
        "ce-id",
        "ce-source",
        "ce-type",
        "ce-specversion",
        "ce-time",
        "ce-",
        "ce-x",
        "CE-ID",
        "ce-\udcff",
        "ce-subject",
        "ce-data",
    ]
    taken = refused = 0
    sizes: list[int] = []

    for nth in range(100_000):
        headers = {"content-type": chance.choice(kinds)}
        if nth % 3 == 0:
            headers |= HEADERS
            headers |= {chance.choice(names): chance.choice(texts) for _ in range(chance.randrange(3))}
        if nth % 2:
            value = {**EVENT, chance.choice([*EVENT, "data_base64", "a", "A", ""]): chance.choice(odd)}
            body = json.dumps([value] if nth % 5 == 0 else value).encode()
        else:
            changed = bytearray(chance.choice(whole))
            for _ in range(chance.randrange(4)):
                at = chance.randrange(len(changed))
                match chance.randrange(3):
                    case 0:
                        changed[at] = chance.randrange(256)
                    case 1:
                        del changed[at : at + chance.randrange(20)]
                        changed = changed or bytearray(b"0")
                    case _:
                        changed[at:at] = changed[: chance.randrange(50)]
            body = bytes(changed)
        try:
            events = parse(headers, body)
        except (EventInvalidError, MediaTypeError) as error:
            refused += 1
            sizes.append(len(error.message))
        else:
            taken += 1
            for event in events:
                assert json.loads(event.as_text())["id"] == event.id

    assert taken > 5_000
    assert refused > 20_000
    assert min(sizes) > 0
    assert max(sizes) < 3000
