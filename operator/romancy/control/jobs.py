"""Jobs of the leader that are done again and again, and the rate that they share."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final

from romancy.base import log
from romancy.control.kube import KUBE_ERRORS, KubeError
from romancy.errors import StoreError, StoreUnavailableError

logger = log.get(__name__)

BACKOFF_SECONDS: Final = 0.2
BACKOFF_SECONDS_MAX: Final = 5.0
UNANSWERED_MAX: Final = 3
"""A job that the database has not answered so often in a row says that it is away: for this process at least."""
EXPECTED: Final = (StoreError, *KUBE_ERRORS)
"""What the world may do to a job; anything else is an error of ours and ends the leader's life."""


def backoff_seconds(failures: int, *, longest: float = BACKOFF_SECONDS_MAX) -> float:
    """The pause after so many failures in a row, give or take 20 %."""
    return min(BACKOFF_SECONDS * 2.0 ** min(failures - 1, 20), longest) * random.uniform(0.8, 1.2)


class Tries:
    """How often each job of one leader has failed in a row, and so whether the database answers this process at all."""

    def __init__(self) -> None:
        self._failures: dict[str, int] = {}
        self._unanswered: dict[str, int] = {}

    def failed(self, name: str, error: Exception) -> int:
        """Note that a job has failed; how often it has since it was done last."""
        self._failures[name] = self._failures.get(name, 0) + 1
        if isinstance(error, StoreUnavailableError):
            self._unanswered[name] = self._unanswered.get(name, 0) + 1
        else:
            self._unanswered.pop(name, None)
        return self._failures[name]

    def done(self, name: str) -> None:
        """Note that a job has been done."""
        self._failures.pop(name, None)
        self._unanswered.pop(name, None)

    @property
    def has_store(self) -> bool:
        """False while the database leaves any job without an answer: some may go on by connections that others lack."""
        return not any(count >= UNANSWERED_MAX for count in self._unanswered.values())

    async def repeat(
        self, name: str, run_once: Callable[[], Awaitable[object]], pause: Callable[[], Awaitable[None]]
    ) -> None:
        """Do a job for ever, with a pause after each time; failures are tried again, ever later."""
        while True:
            await self.until_done(name, run_once)
            await pause()

    async def until_done[T](self, name: str, run_once: Callable[[], Awaitable[T]]) -> T:
        """Do a job once and return what it gives, trying it again while the database or the API server refuses."""
        while True:
            try:
                result = await run_once()
            except EXPECTED as error:
                failures = self.failed(name, error)
                pause = max(backoff_seconds(failures), retry_after_seconds(error))
                logger.warning(
                    "job_failed",
                    job=name,
                    failures=failures,
                    error=str(error),
                    hint=error.hint,
                    again_in_seconds=round(pause, 2),
                )
                await asyncio.sleep(pause)
            else:
                self.done(name)
                return result


def retry_after_seconds(error: Exception) -> float:
    """How long the API server asked us to wait."""
    return error.retry_after_seconds if isinstance(error, KubeError) else 0.0


class TokenBucket:
    """So many a second in the long run, and a second's worth at once after a pause."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._burst = max(1.0, per_second)
        self._tokens = self._burst
        self._filled_at: float | None = None

    async def take(self) -> None:
        """Wait for one's turn. Who came first goes first."""
        now = asyncio.get_running_loop().time()
        if self._filled_at is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._per_second)
        self._filled_at = now
        self._tokens -= 1  # a debt is waited for: so each knows at once how long its own turn takes
        if self._tokens < 0:
            await asyncio.sleep(-self._tokens / self._per_second)
