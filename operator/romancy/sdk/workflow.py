"""Workflows: ordinary asyncio code, run by deterministic replay."""

import functools
import inspect
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Concatenate, Final, Protocol, overload

from pydantic import ValidationError

from romancy.errors import DefinitionError, InputInvalidError, OutsideWorkflowError
from romancy.model.codec import PAYLOAD_BYTES_MAX, problems
from romancy.model.command import Outcome
from romancy.model.event import Scalar
from romancy.model.run import NAME_MAX, PRIORITY_MAX, PRIORITY_MIN, Form, ParentClose
from romancy.replay.current import current
from romancy.replay.replay import Replay
from romancy.sdk import child, saga, signature
from romancy.sdk.activity import refuse_wrapped
from romancy.sdk.context import RunInfo, WorkflowContext
from romancy.sdk.event import Event, type_of, where_of
from romancy.sdk.registry import Registry

WORKFLOWS: Final[Registry["Workflow[..., Any]"]] = Registry("workflows")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a run is started.

    Args:
        id: its name, or its id if it is a UUID; generated if None. The same twice is one run.
        namespace: of Kubernetes; None for the starter's own.
        priority: -1000 to 1000; higher ones are claimed first, strictly: they can starve lower ones.
        delay: before it may begin.
        timeout: from its begin, after which it is cancelled with reason TimedOut.
        parent_close: of a child: what becomes of it if it is open when its parent ends.
    """

    id: str | None = None
    namespace: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    priority: int = 0
    delay: timedelta | None = None
    timeout: timedelta | None = None
    parent_close: ParentClose = ParentClose.CANCEL

    def __post_init__(self) -> None:
        if self.id is not None and not 0 < len(self.id) <= NAME_MAX:
            raise ValueError(f"id must have 1 to {NAME_MAX} characters, not {len(self.id)}")
        if not PRIORITY_MIN <= self.priority <= PRIORITY_MAX:
            raise ValueError(f"priority must be {PRIORITY_MIN} to {PRIORITY_MAX}, not {self.priority}")
        if self.timeout is not None and self.timeout <= timedelta(0):
            raise ValueError(f"timeout must be more than 0, not {self.timeout}")
        if self.delay is not None and self.delay < timedelta(0):
            raise ValueError(f"delay must not be negative, not {self.delay}")


@dataclass(frozen=True, slots=True)
class Trigger:
    """The event that starts a workflow."""

    workflow: str
    type: str
    where: Mapping[str, Scalar]
    form: Form


class Workflow[**P, R]:
    """A function that orchestrates activities, and survives the process that runs it.

    Attributes:
        fn: the plain function.
        name: what `spec.workflow` of a WorkflowRun names.
        start_options: what `options()` has set.
    """

    is_workflow: Final = True

    def __init__(
        self,
        fn: Callable[..., Coroutine[Any, Any, R]],
        *,
        name: str | None = None,
        starts_on: type[Event] | str | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> None:
        refuse_wrapped(fn, "workflow")
        if not inspect.iscoroutinefunction(inspect.unwrap(fn)):
            raise DefinitionError(
                f"workflow {fn.__name__!r} at {signature.where(fn)} is not `async def`",
                hint="write `async def`; blocking work belongs in an activity",
            )
        self.fn = fn
        self.name: str = name or fn.__name__
        self.path = f"{fn.__module__}.{fn.__qualname__}"
        self.where = signature.where(fn)
        self.signature = signature.read(fn, kind="workflow", name=self.name, context=WorkflowContext)
        self.start_options = Options()
        self.starter = self._starter(starts_on, where)
        self._takes_context = len(self.signature.parameters.parameters) < len(inspect.signature(fn).parameters)
        functools.update_wrapper(self, fn)
        if "<locals>" not in fn.__qualname__:
            WORKFLOWS.add(self)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """In a workflow: a child run, started when awaited; the await that is cancelled cancels the child. Outside it is refused.

        Raises:
            OutsideWorkflowError: no workflow calls it.
        """
        if (replay := current()) is None:
            raise OutsideWorkflowError(
                f"workflow {self.name!r} was called outside of a workflow",
                hint=f"start it: `handle = await app.start({self.fn.__name__}, ...)`",
            )
        replay.check_open()
        self.signature.bind(args, kwargs)  # a wrong call is wrong here, not at the await
        call: list[Any] = []
        coroutine = self._run_as_child(replay, args, kwargs, call)
        call.append(replay.track_call(self.name, coroutine))
        return coroutine

    async def _run_as_child(self, replay: Replay, args: tuple[Any, ...], kwargs: dict[str, Any], call: list[Any]) -> R:
        call[0].started()
        found: R = await child.start(replay, self, args, kwargs)._future
        return found

    def _starter(self, starts_on: type[Event] | str | None, where: Mapping[str, Any] | None) -> Trigger | None:
        if starts_on is None:
            if where is not None:
                raise DefinitionError(
                    f"workflow {self.name!r} at {self.where} has `where` without `starts_on`", hint="name the event"
                )
            return None
        if self.signature.form is not Form.WHOLE:
            raise DefinitionError(
                f"workflow {self.name!r} at {self.where} starts on an event, but does not take its data",
                hint="give it one parameter: the event class, a model, a TypedDict or a dict",
            )
        return Trigger(self.name, type_of(starts_on), where_of(starts_on, where), self.signature.form)

    def options(
        self,
        *,
        id: str | None = None,
        namespace: str | None = None,
        labels: Mapping[str, str] | None = None,
        priority: int = 0,
        delay: timedelta | None = None,
        timeout: timedelta | None = None,
        parent_close: ParentClose = ParentClose.CANCEL,
    ) -> "Workflow[P, R]":
        """The same workflow with options for its start; see `Options`."""
        made: Workflow[P, R] = object.__new__(type(self))
        vars(made).update(vars(self))
        made.start_options = replace(
            Options(
                id=id, namespace=namespace, priority=priority, delay=delay, timeout=timeout, parent_close=parent_close
            ),
            labels=dict(labels or {}),
        )
        return made

    def encode_input(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, bytes_max: int = PAYLOAD_BYTES_MAX) -> str:
        """The input as a run keeps it: the whole object, or parameters by name.

        Raises:
            TypeError: the arguments don't fit, as in any Python call.
            PayloadError: one can't be stored.
        """
        text = self.signature.arguments.encode(self.signature.bind(args, kwargs), bytes_max=bytes_max)
        if self.signature.form is Form.BY_NAME or text == "{}":
            return text
        return text[text.index(":") + 1 : -1]  # {"order":{...}} -> {...}: the exact text of the one value

    def input_schema(self) -> dict[str, Any]:
        """The JSON Schema (2020-12) of the object that `input` must be."""
        schema = self.signature.arguments.json_schema()
        if self.signature.form is Form.BY_NAME:
            return schema
        [inner] = schema["properties"].values()
        return {**inner, "$defs": schema["$defs"]} if "$defs" in schema else dict(inner)

    def decode_input(self, text: str, form: Form) -> dict[str, Any]:
        """Arguments by name.

        Raises:
            InputInvalidError: the input does not fit, with the path of each field.
        """
        parameters = list(self.signature.parameters.parameters)
        if form is Form.WHOLE and len(parameters) == 1 and not (text == "{}" and self._has_default(parameters[0])):
            text = f'{{"{parameters[0]}":{text}}}'
        try:
            return self.signature.arguments.decode(text)
        except ValidationError as error:
            raise InputInvalidError(self.name, problems(error)) from error

    def program(self, arguments: dict[str, Any], info: RunInfo) -> Callable[[Replay], Coroutine[Any, Any, Outcome]]:
        """What a replay runs: this workflow on decoded arguments."""

        def begin(replay: Replay) -> Coroutine[Any, Any, Outcome]:
            child.belongs(replay, info)

            async def body() -> str:
                args, kwargs = self.signature.unbind(arguments)
                first = (WorkflowContext(replay, info, self),) if self._takes_context else ()
                result = await self.fn(*first, *args, **kwargs)
                return self.signature.result.encode(result)

            return saga.run_to_end(replay, body)

        return begin

    def _has_default(self, name: str) -> bool:
        return self.signature.parameters.parameters[name].default is not inspect.Parameter.empty

    def __repr__(self) -> str:
        return f"<workflow {self.name}>"


class _Decorates(Protocol):
    @overload
    def __call__[**P, R](
        self, fn: Callable[Concatenate[WorkflowContext, P], Coroutine[Any, Any, R]], /
    ) -> Workflow[P, R]: ...
    @overload
    def __call__[**P, R](self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...


@overload
def workflow[**P, R](fn: Callable[Concatenate[WorkflowContext, P], Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...
@overload
def workflow[**P, R](fn: Callable[P, Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...
@overload
def workflow(
    *,
    name: str | None = None,
    starts_on: type[Event] | str | None = None,
    where: Mapping[str, Any] | None = None,
) -> _Decorates: ...
def workflow(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    starts_on: type[Event] | str | None = None,
    where: Mapping[str, Any] | None = None,
) -> Any:
    """Make an `async def` a workflow.

    Args:
        name: what starts it; default: the function's name.
        starts_on: an event that starts a run, once for each source and id, with its data as input; its id and source are labels.
            Events count from when a worker has offered the workflow, also while no worker lives.
        where: as for `WorkflowContext.wait_event`: only such events do.

    Raises:
        DefinitionError: the function can't be a workflow; says why, with the line.
    """
    if fn is None:
        return functools.partial(Workflow, name=name, starts_on=starts_on, where=where)
    return Workflow(fn, name=name, starts_on=starts_on, where=where)
