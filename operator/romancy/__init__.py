"""Romancy: durable workflows in ordinary Python, for teams that run Kubernetes and PostgreSQL."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from romancy.app import App
    from romancy.client import Client, Handle
    from romancy.errors import RomancyError, TerminalError
    from romancy.model.channel import ChannelMode
    from romancy.model.event import CloudEvent
    from romancy.model.retry import NO_RETRY, RetryPolicy
    from romancy.model.run import ParentClose
    from romancy.sdk.activity import Activity, activity
    from romancy.sdk.channel import Channel, Message
    from romancy.sdk.child import ChildHandle
    from romancy.sdk.context import RunInfo, WorkflowContext
    from romancy.sdk.event import Event, Subscription
    from romancy.sdk.middleware import Leg, Middleware
    from romancy.sdk.workflow import Workflow, workflow
else:
    # Each is imported when it is asked for: `romancy --help` would else take the half second that the engine takes.
    _HOMES = {
        "romancy.app": ("App",),
        "romancy.client": ("Client", "Handle"),
        "romancy.errors": ("RomancyError", "TerminalError"),
        "romancy.model.channel": ("ChannelMode",),
        "romancy.model.event": ("CloudEvent",),
        "romancy.model.retry": ("NO_RETRY", "RetryPolicy"),
        "romancy.model.run": ("ParentClose",),
        "romancy.sdk.activity": ("Activity", "activity"),
        "romancy.sdk.channel": ("Channel", "Message"),
        "romancy.sdk.child": ("ChildHandle",),
        "romancy.sdk.context": ("RunInfo", "WorkflowContext"),
        "romancy.sdk.event": ("Event", "Subscription"),
        "romancy.sdk.middleware": ("Leg", "Middleware"),
        "romancy.sdk.workflow": ("Workflow", "workflow"),
    }

    def __getattr__(name: str) -> object:
        home = next((home for home, names in _HOMES.items() if name in names), None)
        if home is None:
            raise AttributeError(f"module 'romancy' has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(home), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "NO_RETRY",
    "Activity",
    "App",
    "Channel",
    "ChannelMode",
    "ChildHandle",
    "Client",
    "CloudEvent",
    "Event",
    "Handle",
    "Leg",
    "Message",
    "Middleware",
    "ParentClose",
    "RetryPolicy",
    "RomancyError",
    "RunInfo",
    "Subscription",
    "TerminalError",
    "Workflow",
    "WorkflowContext",
    "activity",
    "workflow",
]
