"""Objects of runs that ended long enough ago are deleted; their rows in PostgreSQL stay."""

from typing import Final

from romancy.base import log
from romancy.base.settings import ControlSettings
from romancy.control.jobs import TokenBucket
from romancy.control.kube import Kube, Target
from romancy.control.resources import RUNS
from romancy.store.interface import Store

logger = log.get(__name__)

EVERY_SECONDS: Final = 10.0
BATCH: Final = 100


class Expiry:
    """Deletes at the rate that status writes share."""

    def __init__(self, kube: Kube, settings: ControlSettings, bucket: TokenBucket) -> None:
        self._kube, self._settings, self._bucket = kube, settings, bucket

    async def run_once(self, store: Store) -> None:
        """Delete what is due, the longest overdue first; a batch at a time until nothing is."""
        while expired := await store.expired_resources(limit=BATCH):
            for row in expired:
                await self._bucket.take()
                await self._kube.delete(Target(RUNS, row.namespace, row.name, row.run_id))
            await store.resources_gone([row.run_id for row in expired])
            logger.info("resources_expired", count=len(expired))
            if len(expired) < BATCH:
                return
