"""Filters are refused early and in words; tokens of pages belong to their search. (Containment: tests/store/conformance.py.)"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from romancy.errors import FilterError
from romancy.model import search
from romancy.model.run import Phase
from tests.builders import SOME_TIME


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("asked", "said", "hint"),
    [
        (lambda: search.page_size(0), "1 to 1000 runs, not 0", "token"),
        (lambda: search.page_size(1001), "not 1001", "token"),
        (lambda: search.phases_of(["failed"]), "there is no phase 'failed'", "did you mean Failed"),
        (lambda: search.phases_of("Done"), "there is no phase 'Done'", "phases are Pending, Running"),
        (lambda: search.labels_of({"": "x"}), "label ''='x'", "str"),
        (lambda: search.labels_of({"a": 1}), "label 'a'=1 is not a pair of texts", "str"),  # type: ignore[dict-item]
        (lambda: search.labels_of({"a": "\0"}), "label 'a' holds a NUL", "take it away"),
        (lambda: search.labels_of({"\ud800": "x"}), "lone surrogate", "take it away"),
        (lambda: search.text_of("name_part", ""), "name_part is empty", "leave it out"),
        (lambda: search.text_of("name_part", "\0"), "name_part holds a NUL", "take it away"),
        (
            lambda: search.moment_of("created_after", SOME_TIME.replace(tzinfo=None)),
            "created_after has no time zone",
            "now(UTC)",
        ),
        (lambda: search.ids_of("order-1"), "no id begins with 'order-1'", "UUID"),
        (lambda: search.ids_of("-"), "no id begins with '-'", "UUID"),
        (lambda: search.ids_of("0" * 33), "no id begins with", "UUID"),
        (lambda: search.input_of([1], None), "not by list", "object"),  # type: ignore[arg-type]
        (lambda: search.input_of({"a": SOME_TIME}, None), "no JSON", "as it is stored"),
        (lambda: search.input_of({"a": float("nan")}, None), "no JSON", "as it is stored"),
        (lambda: search.input_of({"a": "\0"}, None), "holds a NUL", "another value"),
        (lambda: search.input_of({"a": ["\udc00"]}, None), "lone surrogate", "another value"),
        (lambda: search.input_of({"a": "x" * 16_380}, None), "16,388 bytes; the limit is 16,384", "few values"),
        (lambda: search.input_of(nested(33), None), "more than 32 deep", "further up"),
        (lambda: search.input_of(None, {"a.b'; drop table run": 1}), "is not safe", "order.id"),
        (lambda: search.input_of(None, {"a..b": 1}), "input path 'a..b' is not safe", "order.id"),
        (lambda: search.input_of(None, {"": 1}), "input path '' is not safe", "order.id"),
        (lambda: search.input_of(None, {"$.a[*]": 1}), "is not safe", "write others as `input`"),
        (lambda: search.input_of(None, {"a": 1, "a.b": 2}), "goes through 'a', which is to be 1", "name one"),
        (lambda: search.input_of({"a": {"b": 1}}, {"a.b": 2}), "'a.b' is to be 1 and 2", "no run has both"),
    ],
)
def test_what_can_t_be_searched_for_is_said_at_once(asked: Callable[[], object], said: str, hint: str) -> None:
    with pytest.raises(FilterError) as refused:
        asked()

    assert refused.value.reason == "FilterInvalid"
    assert said in refused.value.message
    assert hint in refused.value.hint


def test_filters_as_they_are_understood() -> None:
    east = timezone(timedelta(hours=2))

    assert search.phases_of(["Failed", Phase.RUNNING]) == {Phase.FAILED, Phase.RUNNING}
    assert search.ids_of("6F1D3C9E-5") == (
        UUID("6f1d3c9e-5000-0000-0000-000000000000"),
        UUID("6f1d3c9e-5fff-ffff-ffff-ffffffffffff"),
    )
    assert str(search.moment_of("t", datetime(2026, 1, 1, 2, tzinfo=east))) == "2026-01-01 00:00:00+00:00"
    assert search.input_of(None, None) is search.input_of(None, {}) is None
    assert search.input_of({}, None) == "{}"
    assert search.input_of({"a": {"c": 1}}, {"a.b": [2], "x": "ü"}) == '{"a":{"b":[2],"c":1},"x":"ü"}'
    assert search.input_of(nested(32), None) is not None


def test_what_was_given_is_left_as_it_is() -> None:
    given_part = {"a": {"c": 1}}

    search.input_of(given_part, {"a.b": 2})

    assert given_part == {"a": {"c": 1}}


@given(
    moment=st.datetimes(timezones=st.just(UTC)),
    run_id=st.uuids(),
    asked=st.text(max_size=20),
)
def test_a_token_says_where_its_page_ended(moment: datetime, run_id: UUID, asked: str) -> None:
    token = search.token_of((moment, run_id), asked)

    assert search.after_of(token, asked) == (moment, run_id)
    assert token == search.token_of((moment, run_id), asked)
    with pytest.raises(FilterError):
        search.after_of(token, asked + "!")


@pytest.mark.parametrize("token", ["", "x", "not a token", "ü", "A" * 44, "\0", '{"after":1}'])
def test_a_token_that_is_not_ours(token: str) -> None:
    with pytest.raises(FilterError, match="no token of a page of this search") as refused:
        search.after_of(token, "search")
    assert "as it was given" in refused.value.hint


@given(at=st.integers(0, 43), letter=st.sampled_from("Aa0-_"))
def test_a_token_that_was_changed(at: int, letter: str) -> None:
    token = search.token_of((SOME_TIME, UUID(int=5)), "search")
    changed = token[:at] + letter + token[at + 1 :]

    if changed != token:
        with pytest.raises(FilterError):
            search.after_of(changed, "search")
