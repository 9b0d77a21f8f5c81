"""Plays programs and prints a digest of each: what happened, what was open, what came out. For another Python to compare."""

import hashlib
import json
import sys
from random import Random

from tests.replay.programs import Recorder, play, program


def digests(count: int) -> dict[str, str]:
    """By seed."""
    found = {}
    for seed in range(count):
        played = play(program(Random(seed)), seed, Recorder())
        text = json.dumps([played.trace, played.opened, played.outcome, [repr(entry) for entry in played.history]])
        found[str(seed)] = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return found


if __name__ == "__main__":
    json.dump(digests(int(sys.argv[1])), sys.stdout)
