"""The collector of cycles, set for a process that executes runs. What a run consists of refers to each other, so it goes through
the collector's hands; with Python's own thresholds that was a tenth of the time of a worker with 500 runs at once.
"""

import gc
from typing import Final

YOUNG: Final = 10_000  # objects made and not freed, before the youngest are looked at
MIDDLE, OLD = 20, 50  # times, before the next older ones are


def tune() -> None:
    """To be called once all is imported: what is there by now stays for ever, and is never looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, OLD)
