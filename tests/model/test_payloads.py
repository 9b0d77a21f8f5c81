"""Values and exceptions come back equal in type and content, in another process as well, or are refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from romancy.errors import ActivityError, PayloadError, PayloadNotFaithfulError, PayloadTooLargeError
from romancy.model import failure
from romancy.model.codec import Codec, difference
from tests.model.values import FAITHFUL, UNFAITHFUL, Item, Point, exceptions, is_same_exception

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", FAITHFUL)
def test_a_value_comes_back_equal_in_type_and_content(name: str) -> None:
    annotation, value = FAITHFUL[name]
    codec: Codec[object] = Codec(annotation, what="value")

    assert difference(value, codec.decode(codec.encode(value)), "value") is None


@pytest.mark.parametrize("name", UNFAITHFUL)
def test_a_value_that_would_change_is_refused(name: str) -> None:
    annotation, value = UNFAITHFUL[name]

    with pytest.raises(PayloadError):
        Codec(annotation, what="value").encode(value)


def test_a_refusal_names_the_path_and_both_types() -> None:
    annotation, value = UNFAITHFUL["subclass in a field of its base"]

    with pytest.raises(
        PayloadNotFaithfulError, match=r"value\[0\] is .*Special.*, but comes back from storage as .*Item"
    ):
        Codec(annotation, what="value").encode(value)


def test_a_value_over_the_limit_is_refused_with_the_number_found() -> None:
    with pytest.raises(PayloadTooLargeError, match=r"has 2,002 bytes; the limit is 1,024"):
        Codec(str, what="result of activity 'a'").encode("x" * 2000, bytes_max=1024)


def test_a_type_that_can_t_be_stored_is_refused_when_it_is_defined() -> None:
    class Opaque:
        pass

    with pytest.raises(PayloadError, match=r"result of activity 'a'.*can't be stored"):
        Codec(list[Opaque], what="result of activity 'a'")


@pytest.mark.parametrize("name", exceptions())
def test_an_exception_comes_back_by_type_and_content(name: str) -> None:
    error = exceptions()[name]

    assert is_same_exception(error, failure.decode(failure.encode(error)))


def test_everything_comes_back_in_another_process() -> None:
    stored = {
        "values": {name: Codec(kind, what="value").encode(value) for name, (kind, value) in FAITHFUL.items()},
        "failures": {name: failure.encode(error) for name, error in exceptions().items()},
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.model.read_back"],
        input=json.dumps(stored),
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'operator'}{os.pathsep}{ROOT}", "PYTHONHASHSEED": "12345"},
    )

    assert json.loads(done.stdout) == []


def test_what_can_t_be_rebuilt_is_an_activity_error_from_the_beginning() -> None:
    class LocalError(Exception):
        pass

    back = failure.decode(failure.encode(LocalError("why")))

    assert type(back) is ActivityError
    assert back.type_name.endswith("LocalError")
    assert str(back) == "why"
    assert "LocalError: why" in back.trace


def test_an_exception_with_a_value_that_can_t_travel_is_an_activity_error() -> None:
    back = failure.decode(failure.encode(ValueError(object())))

    assert type(back) is ActivityError
    assert back.type_name == "builtins.ValueError"


def test_no_class_is_imported_by_its_name() -> None:
    """Stored data names classes, and only those that are loaded are used."""
    data = json.loads(failure.encode(ValueError("x")))
    for name in (
        "mailbox.NoSuchMailboxError",
        "os.system",
        "builtins.print",
        "builtins.object",
        "builtins.SystemExit",
    ):
        assert type(failure.decode(json.dumps({**data, "type": name}))) is ActivityError
    assert "mailbox" not in sys.modules


def test_what_was_loaded_after_the_workflows_travels_as_activity_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is loaded in this process, and perhaps not in the one that replays."""
    monkeypatch.setattr(failure, "_known_modules", frozenset(sys.modules) - {"tests.model.values"})

    assert type(failure.decode(failure.encode(exceptions()["plain"]))) is ActivityError


def test_equality_is_by_type_and_content() -> None:
    assert difference(1, True, "x") is not None
    assert difference(1.0, 1, "x") is not None
    assert difference({"a": 1, "b": 2}, {"b": 2, "a": 1}, "x") is not None
    assert difference(Point(1.0), Point(2.0), "x") == ("x.x", 1.0, 2.0)
    assert difference([Item], [Item], "x") is None


class MuteError(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class WrongTextError(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]  # noqa: PLE0307 - on purpose


def _circular() -> Exception:
    error = ValueError()
    error.args = (error,)
    return error


def _with_wrong_notes() -> Exception:
    error = ValueError("x")
    error.__notes__ = "no list"  # type: ignore[assignment]
    return error


@pytest.mark.parametrize(
    "error", [MuteError("a"), WrongTextError(), _circular(), _with_wrong_notes()], ids=lambda each: type(each).__name__
)
def test_an_exception_that_can_t_be_read_is_recorded_by_its_type(error: Exception) -> None:
    """Else its attempt would be counted nowhere, and tried again at once, for ever."""
    text = failure.encode(error, note="activity 'charge' failed in attempt 1")

    back = failure.decode(text)
    assert isinstance(back, ActivityError)
    assert back.type_name.endswith(type(error).__name__)
    assert "can't be read" in back.message
    assert back.__notes__ == ["activity 'charge' failed in attempt 1"]
