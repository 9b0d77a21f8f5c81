"""Who calls, and what they may do: rights on the resources of romancy.dev, whoever the authority is."""

from collections.abc import Mapping
from dataclasses import field

from romancy.model.record import record


@record
class Caller:
    """Whoever a token belongs to. `name` is what is recorded of what they change."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@record
class Right:
    """What is to be done to which resources of romancy.dev; `namespace` None: in all of them."""

    verb: str
    resource: str
    namespace: str | None = None
    name: str = ""
