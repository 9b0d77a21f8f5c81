"""When an activity that failed is tried again. Pure: randomness comes in as an argument."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from romancy.errors import DefinitionError


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and when an activity is tried again after a failure.

    The delay before attempt n + 1 is `min(initial_interval * backoff_coefficient ** (n - 1), max_interval)`, made
    shorter or longer by up to the share `jitter` at random, and never longer than `max_interval`.

    Args:
        max_attempts: attempts in all, the first one included; 0 means without limit.
        initial_interval: before the second attempt.
        backoff_coefficient: factor from one delay to the next, at least 1.
        max_interval: the longest delay.
        jitter: share of the delay, 0 to 1.
        non_retryable: exception types that fail the activity at once; `TerminalError` always does.

    Raises:
        DefinitionError: a value is out of its range.
    """

    max_attempts: int = 5
    initial_interval: timedelta = timedelta(seconds=1)
    backoff_coefficient: float = 2.0
    max_interval: timedelta = timedelta(seconds=60)
    jitter: float = 0.1
    non_retryable: tuple[type[Exception], ...] = ()

    def __post_init__(self) -> None:
        checks = {
            "max_attempts must be 0 (without limit) or more": self.max_attempts >= 0,
            "initial_interval must not be negative": self.initial_interval >= timedelta(0),
            "backoff_coefficient must be at least 1": self.backoff_coefficient >= 1,
            "max_interval must not be shorter than initial_interval": self.max_interval >= self.initial_interval,
            "jitter must be between 0 and 1": 0 <= self.jitter <= 1,
            "non_retryable must hold exception types": all(
                isinstance(kind, type) and issubclass(kind, Exception) for kind in self.non_retryable
            ),
        }
        for message, holds in checks.items():
            if not holds:
                raise DefinitionError(f"RetryPolicy: {message}", hint=f"it is {self!r}")

    def delay_seconds(self, failed_attempts: int, random: Callable[[], float]) -> float | None:
        """The delay after that many failed attempts, or None if there is no further attempt.

        Args:
            failed_attempts: at least 1.
            random: gives a number in [0, 1).
        """
        assert failed_attempts >= 1
        if self.max_attempts and failed_attempts >= self.max_attempts:
            return None
        longest = self.max_interval.total_seconds()
        try:
            grown = self.initial_interval.total_seconds() * self.backoff_coefficient ** (failed_attempts - 1)
        except OverflowError:  # a policy without limit may be asked for its thousandth delay
            grown = longest
        return min(min(grown, longest) * (1 + self.jitter * (2 * random() - 1)), longest)


NO_RETRY = RetryPolicy(max_attempts=1)
