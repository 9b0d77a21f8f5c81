"""Romancy: durable workflows in ordinary Python, for teams that run Kubernetes and PostgreSQL."""

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
from romancy.sdk.workflow import Workflow, workflow

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
    "Message",
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
