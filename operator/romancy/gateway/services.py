"""What the handlers work with; made once for an application."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from romancy.base.clock import Clock, SystemClock
from romancy.base.settings import GatewaySettings
from romancy.client import Client
from romancy.gateway.access import Access, Gate
from romancy.gateway.intake import Intake
from romancy.gateway.watching import Watches
from romancy.sdk.workflow import Workflow
from romancy.store.interface import Store

ENVELOPE_BYTES: Final = 64 * 1024
"""What a body may have around the largest payload."""


def services_of(
    client: Client,
    access: Access,
    settings: GatewaySettings,
    registry: Mapping[str, Workflow[..., Any]],
    *,
    namespace: str,
    payload_bytes_max: int,
) -> "Services":
    """What an application needs: everything else follows from this."""
    clock = SystemClock()
    gate = Gate(
        access,
        clock=clock,
        events_token=settings.events_token.get_secret_value(),
        are_events_open=settings.events_open,
        requests_per_second=settings.requests_per_second,
        events_per_second=settings.events_per_second,
    )
    return Services(
        client=client,
        gate=gate,
        intake=Intake(client.store),
        clock=clock,
        registry=registry,
        namespace=namespace,
        body_bytes_max=payload_bytes_max + ENVELOPE_BYTES,
    )


@dataclass(slots=True)
class Services:
    """Attributes:
    client: asks the database.
    registry: the workflows whose code is in this process.
    namespace: the engine's own: who may see its workers and workflows, may do so there.
    """

    client: Client
    gate: Gate
    intake: Intake
    clock: Clock
    registry: Mapping[str, Workflow[..., Any]]
    namespace: str
    body_bytes_max: int
    watches: Watches = field(default_factory=Watches)

    @property
    def store(self) -> Store:
        """The only truth."""
        return self.client.store
