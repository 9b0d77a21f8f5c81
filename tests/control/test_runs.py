"""What the store is told of an object: state in, intent out."""

import json
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from romancy.control.resources import duration_of, seconds_of
from romancy.control.runs import (
    Change,
    Foreign,
    Gone,
    Lose,
    Nothing,
    Refuse,
    Rules,
    Seen,
    Start,
    decide,
)
from romancy.model.history import Message, MessageKind
from romancy.model.run import DeletionPolicy, Phase, Wishes
from romancy.store.interface import ResourceRow

UID = uuid4()
RULES = Rules(engine="romancy", ttl_seconds=86_400, input_bytes_max=1000)
WISHES = Wishes(ttl_seconds=86_400)
ORPHAN = replace(WISHES, deletion_policy=DeletionPolicy.ORPHAN)


def seen(spec: dict[str, Any] | None = None, **changes: Any) -> Seen:
    """A new object of workflow w."""
    return replace(Seen(uid=UID, namespace="shop", name="order", spec={"workflow": "w", **(spec or {})}), **changes)


def row(phase: Phase = Phase.RUNNING, wishes: Wishes = WISHES) -> ResourceRow:
    return ResourceRow(run_id=UID, namespace="shop", name="order", phase=phase, wishes=wishes)


def cancel(source: str, reason: str, message: str) -> Message:
    payload = json.dumps({"reason": reason, "message": message})
    return Message(UID, MessageKind.CANCEL, f"resource:{source}", payload)


DELETED = cancel("deleted", "Deleted", "WorkflowRun shop/order was deleted")
CANCELLED = cancel("cancel", "Cancelled", "spec.cancel of WorkflowRun shop/order was set")


def test_a_new_object_is_a_new_run_of_its_uid() -> None:
    spec = {"input": {"ü": [1, 2.5]}, "timeout": "1h30m", "priority": -5, "ttlSecondsAfterFinished": 7}

    intent = decide(seen(spec, labels=(("team", "a"),)), None, RULES)

    assert isinstance(intent, Start)
    assert intent.messages == ()
    assert intent.wishes is None
    new = intent.run
    assert (new.id, new.namespace, new.name, new.workflow) == (UID, "shop", "order", "w")
    assert (new.input, new.form, new.timeout_seconds, new.priority) == ('{"ü":[1,2.5]}', None, 5400.0, -5)
    assert (new.labels, new.is_resource, new.wishes) == ({"team": "a"}, True, replace(WISHES, ttl_seconds=7))


def test_a_new_object_without_input_has_an_empty_one() -> None:
    intent = decide(seen(), None, RULES)

    assert isinstance(intent, Start)
    assert intent.run.input == "{}"


def test_an_object_made_suspended_starts_so_and_is_told() -> None:
    intent = decide(seen({"suspend": True}), None, RULES)

    assert isinstance(intent, Start)
    assert intent.run.wishes.suspend
    assert intent.messages == (Message(UID, MessageKind.SUSPEND, "resource:suspend:1"),)


def test_an_object_made_cancelled_says_so_in_its_row_only_when_it_was_told() -> None:
    """Else a leader's crash between the two would lose the cancel."""
    intent = decide(seen({"cancel": True}), None, RULES)

    assert isinstance(intent, Start)
    assert not intent.run.wishes.cancel
    assert intent.messages == (CANCELLED,)
    assert intent.wishes == replace(WISHES, cancel=True)


@pytest.mark.parametrize(
    ("what", "known", "intent"),
    [
        (seen(), row(), Nothing()),
        (seen({"cancel": True}), row(), Change(UID, replace(WISHES, cancel=True), (CANCELLED,))),
        (seen({"cancel": True}), row(wishes=replace(WISHES, cancel=True)), Nothing()),
        (
            seen({"suspend": True}, generation=3),
            row(),
            Change(UID, replace(WISHES, suspend=True), (Message(UID, MessageKind.SUSPEND, "resource:suspend:3"),)),
        ),
        (
            seen(generation=4),
            row(Phase.SUSPENDED, replace(WISHES, suspend=True)),
            Change(UID, WISHES, (Message(UID, MessageKind.RESUME, "resource:resume:4"),)),
        ),
        (seen({"deletionPolicy": "Orphan"}), row(), Change(UID, ORPHAN)),
        (seen({"ttlSecondsAfterFinished": 1}), row(), Change(UID, replace(WISHES, ttl_seconds=1))),
        (
            seen({"ttlSecondsAfterFinished": 1, "cancel": True}, phase="Failed"),
            row(Phase.FAILED),
            Change(UID, replace(WISHES, ttl_seconds=1, cancel=True)),
        ),
        (seen(phase="Failed"), row(Phase.FAILED), Nothing()),
    ],
)
def test_what_its_owner_changes_reaches_the_run(what: Seen, known: ResourceRow, intent: object) -> None:
    assert decide(what, known, RULES) == intent


@pytest.mark.parametrize(
    ("what", "known", "intent"),
    [
        (seen(is_gone=True), None, Nothing()),
        (seen(is_gone=True), row(), Gone(UID, (DELETED,))),
        (seen(is_gone=True), row(wishes=ORPHAN), Gone(UID, (DELETED,))),  # its last state says Cancel
        (seen({"deletionPolicy": "Orphan"}, is_gone=True), row(), Gone(UID)),
        (Seen.missing(UID, "shop", "order"), row(), Gone(UID, (DELETED,))),
        (Seen.missing(UID, "shop", "order"), row(wishes=ORPHAN), Gone(UID)),
        (seen(is_gone=True), row(Phase.SUCCEEDED), Nothing()),  # it may only have left the watch's selector
        (
            seen({"ttlSecondsAfterFinished": 7}, is_gone=True),  # and its last change was not filed before
            row(Phase.SUCCEEDED),
            Change(UID, replace(WISHES, ttl_seconds=7)),
        ),
        (Seen.missing(UID, "shop", "order"), row(Phase.SUCCEEDED), Gone(UID)),
    ],
)
def test_deletion_follows_the_policy_and_the_row_decides(what: Seen, known: ResourceRow | None, intent: object) -> None:
    assert decide(what, known, RULES) == intent


def test_a_generation_that_may_have_been_sent_by_half_is_sent_again() -> None:
    """It was suspended and resumed, and a leader crashed in between, or its store was away: the row knows of neither."""
    again = seen(generation=3, observed_generation=1, was_accepted=True)

    intent = decide(again, row(Phase.SUSPENDED), RULES)

    assert intent == Change(UID, WISHES, (Message(UID, MessageKind.RESUME, "resource:resume:3"),))
    assert decide(replace(again, observed_generation=3), row(Phase.SUSPENDED), RULES) == Nothing()


@pytest.mark.parametrize("known", [None, row()])
@pytest.mark.parametrize("is_gone", [False, True])
def test_another_engines_object_is_left_alone(known: ResourceRow | None, is_gone: bool) -> None:
    assert decide(seen(engine="other", is_gone=is_gone), known, RULES) == Foreign("other")
    assert decide(seen(engine="romancy", is_gone=is_gone), None, RULES) != Foreign("romancy")


def test_a_run_whose_row_was_purged_is_not_started_again() -> None:
    assert decide(seen(phase="Succeeded", was_accepted=True), None, RULES) == Nothing()
    assert decide(seen(phase="Failed"), None, RULES) == Nothing()


def test_a_run_that_the_database_forgot_is_not_run_a_second_time() -> None:
    assert decide(seen(phase="Running", was_accepted=True), None, RULES) == Lose()
    assert decide(seen(phase="Pending", reason="RunLost"), None, RULES) == Lose()
    assert isinstance(decide(seen(phase="Pending", reason="StoreUnavailable"), None, RULES), Start)


def test_too_large_an_input_is_refused_with_both_numbers() -> None:
    intent = decide(seen({"input": {"text": "x" * 1000}}), None, RULES)

    assert isinstance(intent, Refuse)
    assert intent.reason == "TooLarge"
    assert "1,011 bytes; the limit is 1,000" in intent.message


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"workflow": 7}, "spec.workflow: Input should be a valid string"),
        ({"timeout": "1d"}, "'1d' is no duration"),
        ({"timeout": "0s"}, "'0s' is not positive"),
        ({"priority": 5000, "deletionPolicy": "Keep"}, "spec.deletionPolicy"),
    ],
)
def test_a_spec_that_an_older_definition_let_through_is_refused(spec: dict[str, Any], message: str) -> None:
    intent = decide(seen(spec), None, RULES)

    assert isinstance(intent, Refuse)
    assert intent.reason == "SpecInvalid"
    assert message in intent.message


def test_an_object_is_read_whatever_it_lacks() -> None:
    bare = {"metadata": {"uid": str(UID), "namespace": "shop", "name": "order"}}

    assert Seen.of(bare) == Seen(uid=UID, namespace="shop", name="order", spec={})
    assert decide(Seen.of(bare), None, RULES) == Refuse("SpecInvalid", "spec.workflow: Field required")


def test_an_object_is_read_whole() -> None:
    thing = {
        "metadata": {
            "uid": str(UID),
            "namespace": "shop",
            "name": "order",
            "generation": 2,
            "labels": {"a": "b"},
        },
        "spec": {"workflow": "w"},
        "status": {
            "engine": "romancy",
            "phase": "Blocked",
            "reason": "WorkerLost",
            "observedGeneration": 1,
            "conditions": [
                {"type": "Accepted", "status": "True"},
                {"type": "Stalled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            ],
        },
    }

    read = Seen.of(thing)

    assert read.uid == UUID(thing["metadata"]["uid"])  # type: ignore[index]
    assert (read.generation, read.observed_generation, read.labels) == (2, 1, (("a", "b"),))
    assert (read.engine, read.phase, read.reason, read.was_accepted) == ("romancy", "Blocked", "WorkerLost", True)
    since = read.stalled_since()
    assert since is not None
    assert since[0] is True
    assert since[1].year == 2026


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("1h30m", 5400), ("0.5s", 0.5), ("1.5h", 5400), ("250ms", 0.25), ("1h0m1s", 3601), ("48h", 172_800)],
)
def test_durations_are_go_s(text: str, seconds: float) -> None:
    assert seconds_of(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "1", "s", "1d", "-1s", "0s", "1 s", "1s ", "1h-30m", "²s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0s"), (1.25, "1.2s"), (59.94, "59.9s"), (59.96, "1m0s"), (185, "3m5s"), (93_600, "26h0m")],
)
def test_durations_are_shown_short(seconds: float, text: str) -> None:
    assert duration_of(seconds) == text


WISHED = st.builds(
    lambda suspend, cancel, policy, ttl: {
        "suspend": suspend,
        "cancel": cancel,
        "deletionPolicy": policy,
        "ttlSecondsAfterFinished": ttl,
    },
    st.booleans(),
    st.booleans(),
    st.sampled_from(["Cancel", "Orphan"]),
    st.integers(0, 10),
)


@given(before=WISHED, after=WISHED, phase=st.sampled_from([phase for phase in Phase if not phase.is_done]))
def test_what_was_done_needs_nothing_more(before: dict[str, Any], after: dict[str, Any], phase: Phase) -> None:
    """I6: control done twice is control done once."""
    old = decide(seen(before), None, RULES)
    assert isinstance(old, Start)
    known = row(phase, old.wishes or old.run.wishes)

    intent = decide(seen(after, generation=2), known, RULES)

    done = replace(known, wishes=intent.wishes) if isinstance(intent, Change) else known
    assert decide(seen(after, generation=2), done, RULES, is_sure=True) == Nothing()
