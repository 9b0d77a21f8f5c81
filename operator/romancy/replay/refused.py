"""What the deterministic loop refuses, and where it belongs instead."""

from collections.abc import Callable
from typing import Any, Final, NoReturn

from romancy.errors import NotDeterministicError

_ACTIVITY: Final = "do this in an activity and await that"
_ENGINE: Final = "the engine runs this loop; in a workflow, just await"

# Each method of asyncio.AbstractEventLoop that reaches the outside, with the call that a user sees in the code.
REFUSED: Final[dict[str, tuple[str, str]]] = {
    **dict.fromkeys(("run_forever", "run_until_complete", "stop", "close"), ("running a loop", _ENGINE)),
    "call_soon_threadsafe": ("loop.call_soon_threadsafe()", "a workflow has no threads; send the run an event instead"),
    "run_in_executor": (
        "asyncio.to_thread() or loop.run_in_executor()",
        "make it a plain `def` activity: it runs in a thread",
    ),
    "set_default_executor": ("loop.set_default_executor()", _ACTIVITY),
    "getaddrinfo": ("loop.getaddrinfo()", _ACTIVITY),
    "getnameinfo": ("loop.getnameinfo()", _ACTIVITY),
    "create_connection": ("opening a connection", _ACTIVITY),
    "create_server": ("opening a server", _ACTIVITY),
    "create_unix_connection": ("opening a connection", _ACTIVITY),
    "create_unix_server": ("opening a server", _ACTIVITY),
    "create_datagram_endpoint": ("opening a socket", _ACTIVITY),
    "connect_accepted_socket": ("opening a connection", _ACTIVITY),
    "start_tls": ("loop.start_tls()", _ACTIVITY),
    "sendfile": ("loop.sendfile()", _ACTIVITY),
    "connect_read_pipe": ("reading a pipe", _ACTIVITY),
    "connect_write_pipe": ("writing a pipe", _ACTIVITY),
    "subprocess_shell": ("starting a subprocess", _ACTIVITY),
    "subprocess_exec": ("starting a subprocess", _ACTIVITY),
    "add_reader": ("watching a file descriptor", _ACTIVITY),
    "remove_reader": ("watching a file descriptor", _ACTIVITY),
    "add_writer": ("watching a file descriptor", _ACTIVITY),
    "remove_writer": ("watching a file descriptor", _ACTIVITY),
    "sock_recv": ("reading a socket", _ACTIVITY),
    "sock_recv_into": ("reading a socket", _ACTIVITY),
    "sock_recvfrom": ("reading a socket", _ACTIVITY),
    "sock_recvfrom_into": ("reading a socket", _ACTIVITY),
    "sock_sendall": ("writing a socket", _ACTIVITY),
    "sock_sendto": ("writing a socket", _ACTIVITY),
    "sock_sendfile": ("writing a socket", _ACTIVITY),
    "sock_connect": ("connecting a socket", _ACTIVITY),
    "sock_accept": ("accepting a connection", _ACTIVITY),
    "add_signal_handler": ("loop.add_signal_handler()", "signals belong to the process; a run is cancelled instead"),
    "remove_signal_handler": (
        "loop.remove_signal_handler()",
        "signals belong to the process; a run is cancelled instead",
    ),
    "set_task_factory": ("loop.set_task_factory()", "the order of tasks is part of the replay"),
    "shutdown_asyncgens": ("loop.shutdown_asyncgens()", _ENGINE),
    "shutdown_default_executor": ("loop.shutdown_default_executor()", _ENGINE),
}


def refusal(name: str) -> Callable[..., NoReturn]:
    """The method that stands for a refused one."""
    call, hint = REFUSED[name]

    def refuse(self: object, *args: Any, **options: Any) -> NoReturn:
        raise NotDeterministicError(call, hint=hint)

    refuse.__name__ = name
    return refuse
