"""sql/notify.sql."""

from collections.abc import Sequence

from romancy.testing.memory.tables import Row, Tables


class Notify(Tables):
    """Who is told."""

    def notify(self, *, channels: Sequence[str], payloads: Sequence[str]) -> list[Row]:
        told: dict[str, list[str]] = {}
        for channel, payload in zip(channels, payloads, strict=True):
            told.setdefault(channel, []).append(payload)
        return [{"count": sum(self.tell(channel, texts) for channel, texts in told.items())}]
