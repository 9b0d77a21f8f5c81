"""I1: code and history decide the commands; where a run was cut off does not."""

import gc
from dataclasses import replace
from random import Random

import pytest

from romancy import WorkflowContext, workflow
from romancy.errors import NonDeterminismError
from romancy.model.history import ACTIVITY_ENDS, Entry, Kind
from tests.replay.programs import (
    KINDS,
    Coverage,
    Node,
    Play,
    Recorder,
    World,
    new_replay,
    outcome_of,
    play,
    program,
    state_of,
    step,
    workflow_of,
)

CHUNK = 250
PROGRAMS = 2_000
COVERAGE = Coverage()


def check_every_prefix(node: Node, played: Play, seed: int) -> None:
    for cut in range(len(played.history) + 1):
        recorder = Recorder()
        resumed = new_replay(workflow_of(node, recorder), seed=seed)
        resumed.advance(played.history[:cut], replaying=True)
        assert state_of(resumed) == played.opened[cut], f"open commands after {cut} entries"
        resumed.advance(played.history[cut:])
        assert recorder.trace == played.trace
        assert outcome_of(resumed) == played.outcome
        resumed.discard()


@pytest.mark.parametrize("first", range(0, PROGRAMS, CHUNK))
def test_every_prefix_of_a_history_replays_to_the_same_commands(first: int) -> None:
    for seed in range(first, first + CHUNK):
        node = program(Random(seed))
        try:
            played = play(node, seed, Recorder(COVERAGE))
            check_every_prefix(node, played, seed)
        except AssertionError as error:
            error.add_note(f"seed {seed}: {node}")
            raise


def test_each_construct_was_cancelled_timed_out_and_raced() -> None:
    """The programs above reach what they are for; a run of this test alone plays enough of them itself."""
    if not COVERAGE.seen:
        for seed in range(PROGRAMS):
            play(program(Random(seed)), seed, Recorder(COVERAGE))

    # What never awaits can't be interrupted.
    interruptible = [kind for kind in KINDS if kind not in {"raise", "chance", "compensate", "background"}]
    missing = [
        (kind, how)
        for kind in interruptible
        for how in ("cancelled", "timed out", "raced")
        if not COVERAGE.seen[kind, how]
    ]

    assert missing == []


# --- seeded faults: a history that was tampered with is found ---------------------------------------------------------


def _plain_play() -> tuple[Node, Play]:
    """A program of three parallel steps and two in a row, so that every position is checked."""
    steps = [Node("step", label=f"s{number}") for number in range(2)]
    node = Node("sequence", (Node("gather", (Node("step", label="a"), Node("other", label="b"), steps[0])), *steps))
    for seed in range(1000):
        played = play(node, seed, Recorder())
        kinds = [entry.kind for entry in played.history]
        if kinds == [Kind.ACTIVITY_COMPLETED] * 5 and played.history[0].name != played.history[1].name:
            return node, played
    raise AssertionError


def _renumbered(history: list[Entry]) -> list[Entry]:
    return [replace(entry, position=position) for position, entry in enumerate(history, start=1)]


def _replays(node: Node, history: list[Entry]) -> None:
    replay = new_replay(workflow_of(node, Recorder()))
    try:
        replay.advance(history, replaying=True)
    finally:
        replay.discard()


def test_an_untouched_history_replays() -> None:
    node, played = _plain_play()

    _replays(node, played.history)


def test_two_swapped_entries_are_found() -> None:
    node, played = _plain_play()
    entries = played.history
    last_of_gather = max(index for index, entry in enumerate(entries) if entry.number <= 3)
    swapped = list(entries)
    swapped[last_of_gather], swapped[last_of_gather + 1] = entries[last_of_gather + 1], entries[last_of_gather]

    with pytest.raises(NonDeterminismError, match="history says ActivityCompleted"):
        _replays(node, _renumbered(swapped))


@pytest.mark.parametrize("dropped", range(4))
def test_a_dropped_entry_is_found(dropped: int) -> None:
    node, played = _plain_play()

    with pytest.raises(NonDeterminismError):
        _replays(node, _renumbered([*played.history[:dropped], *played.history[dropped + 1 :]]))


@pytest.mark.parametrize("position", range(5))
def test_a_wrong_number_is_found(position: int) -> None:
    node, played = _plain_play()
    entries = list(played.history)
    entries[position] = replace(entries[position], number=entries[position].number + 1)

    with pytest.raises(NonDeterminismError):
        _replays(node, entries)


def test_swapped_calls_of_one_activity_are_found() -> None:
    """Another digest is an error if it belongs to a different open command of that name."""
    node = Node("gather", (Node("step", label="a"), Node("step", label="b")))
    played = next(
        found
        for found in (play(node, seed, Recorder()) for seed in range(100))
        if all(entry.kind in ACTIVITY_ENDS for entry in found.history) and len(found.history) == 2
    )
    swapped = Node("gather", (Node("step", label="b"), Node("step", label="a")))

    with pytest.raises(NonDeterminismError, match="with the arguments of"):
        _replays(swapped, played.history)


# --- discard ----------------------------------------------------------------------------------------------------------


@workflow(name="innocent")
async def innocent(ctx: WorkflowContext) -> list[int]:
    found = []
    for number in range(4):
        found.append(await step(f"innocent {number}"))
        gc.collect()
    return found


def _innocent_commands(between: "list[object] | None" = None) -> list[str]:
    """What the innocent run asks for, while dropped runs are let go, some before each of its steps and collections."""
    share = -(-len(between or ()) // 4)  # of four steps
    replay = new_replay(innocent, seed=99)
    world = World(Random(0), cancels=False)
    commands = [repr(replay.advance())]
    while replay.outcome is None:
        if between:
            del between[-share:]  # the last reference to a dropped run may go while another runs
        [command] = replay.open_commands()
        entry = Entry(
            replay.position + 1, Kind.ACTIVITY_COMPLETED, world.now, command.number, "step", command.digest, "1"
        )
        commands.append(repr(replay.advance([entry])))
    commands.append(outcome_of(replay))
    replay.discard()
    return commands


def test_a_run_discarded_at_any_prefix_does_nothing_any_more() -> None:
    """Its code is closed then and there: no call and no command of it appears, here or in another run."""
    expected = _innocent_commands()
    gc.collect()
    gc.freeze()  # only what the programs make is looked at by each collect()
    try:
        for seed in range(120):
            node = program(Random(seed))
            played = play(node, seed, Recorder())
            dropped: list[object] = []
            for cut in range(len(played.history) + 1):
                recorder = Recorder()
                replay = new_replay(workflow_of(node, recorder), seed=seed)
                replay.advance(played.history[:cut], replaying=True)
                numbers, trace = dict(replay._numbers), list(recorder.trace)
                replay.discard()
                assert replay._numbers == numbers, f"seed {seed}: {node} asked for something after {cut} entries"
                assert recorder.trace == trace, f"seed {seed}: {node} went on after {cut} entries"
                assert replay.open_commands() == []
                dropped.append((replay, recorder))
            del replay, recorder
            assert _innocent_commands(dropped) == expected, f"seed {seed}: {node} leaked into another run"
            assert not dropped
    finally:
        gc.unfreeze()
