"""The other process of test_payloads: decodes what it reads from stdin, and names what is not the same."""

import json
import sys

from romancy.model import failure
from romancy.model.codec import Codec, difference
from tests.model.values import FAITHFUL, exceptions, is_same_exception

stored = json.load(sys.stdin)
wrong = [
    name
    for name, text in stored["values"].items()
    if difference(FAITHFUL[name][1], Codec(FAITHFUL[name][0], what="value").decode(text), "") is not None
]
wrong += [
    name for name, text in stored["failures"].items() if not is_same_exception(exceptions()[name], failure.decode(text))
]
json.dump(wrong, sys.stdout)
