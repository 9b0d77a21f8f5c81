"""Romancy: durable workflows in ordinary Python, for teams that run Kubernetes and PostgreSQL."""

from romancy.app import App
from romancy.client import Client, Handle
from romancy.errors import RomancyError, TerminalError
from romancy.model.retry import NO_RETRY, RetryPolicy
from romancy.sdk.activity import Activity, activity
from romancy.sdk.context import RunInfo, WorkflowContext
from romancy.sdk.workflow import Workflow, workflow

__all__ = [
    "NO_RETRY",
    "Activity",
    "App",
    "Client",
    "Handle",
    "RetryPolicy",
    "RomancyError",
    "RunInfo",
    "TerminalError",
    "Workflow",
    "WorkflowContext",
    "activity",
    "workflow",
]
