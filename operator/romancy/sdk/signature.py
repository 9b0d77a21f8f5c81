"""What a decorated function takes and returns, checked when it is defined: misuse is found at import, with the line."""

import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from typing import Any, get_type_hints

from pydantic import BaseModel, ValidationError

from romancy.errors import DefinitionError, NonDeterminismError, PayloadError
from romancy.model.codec import Codec, arguments_codec, problems
from romancy.model.history import Entry
from romancy.model.run import Form


@dataclass(frozen=True, slots=True)
class Signature:
    """The stored form of a function's arguments and result."""

    parameters: inspect.Signature  # without the context
    arguments: Codec[dict[str, Any]]
    result: Codec[Any]
    form: Form
    simple: tuple[str, ...] | None  # names, if each may be given by position or by name

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments by name, as given: no defaults, since they belong to the code that will run.

        Raises:
            TypeError: they don't fit, as in any Python call.
        """
        if self.simple is not None and len(args) == len(self.simple) and not kwargs:
            return dict(zip(self.simple, args, strict=True))  # as below, at a tenth of the time
        return dict(self.parameters.bind(*args, **kwargs).arguments)

    def unbind(self, arguments: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """How to call the function with arguments by name."""
        if self.simple is not None:
            return (), arguments
        bound = self.parameters.bind_partial()
        bound.arguments.update(arguments)
        return bound.args, bound.kwargs

    def decode_result(self, entry: Entry) -> Any:
        """What the entry of its end brings.

        Raises:
            NonDeterminismError: the result's type does not fit it any more.
        """
        try:
            return self.result.decode(entry.payload)
        except ValidationError as error:
            raise NonDeterminismError(
                position=entry.position,
                history=f"{entry} with result {entry.payload[:200]}",
                code=f"a result of type {self.result.annotation!r}: {problems(error)[0]}",
            ) from error


def where(fn: Callable[..., Any]) -> str:
    """File and line of a function, for errors."""
    code = getattr(inspect.unwrap(fn), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(fn)


def read(fn: Callable[..., Any], *, kind: str, name: str, context: type | None = None) -> Signature:
    """Read the signature of a function.

    Args:
        kind: "workflow" or "activity", for errors.
        context: a first parameter of this type is not an argument.

    Raises:
        DefinitionError: a parameter or the result can't be stored, or has no annotation.
    """

    def refuse(what: str, hint: str) -> DefinitionError:
        return DefinitionError(f"{kind} {name!r} at {where(fn)}: {what}", hint=hint)

    try:
        hints = get_type_hints(fn, include_extras=True)
    except Exception as error:
        raise refuse(
            f"its annotations can't be read: {error}", "import the names that they use at module level"
        ) from error
    signature = inspect.signature(fn)
    parameters = list(signature.parameters.values())
    if parameters and context is not None:
        first = parameters[0]
        annotation = hints.get(first.name)
        if annotation is None or annotation is Any:
            raise refuse(
                f"its first parameter {first.name!r} has no exact annotation, so it can't be told from the context",
                f"write `{first.name}: {context.__name__}`, or the type of the argument",
            )
        if annotation is context:
            parameters = parameters[1:]
    shapes: dict[str, tuple[Any, bool]] = {}
    for parameter in parameters:
        if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            raise refuse(f"{parameter} can't be stored by name", "name each parameter, or take a list or a dict")
        if parameter.name not in hints:
            raise refuse(
                f"parameter {parameter.name!r} has no annotation", f"write `{parameter.name}: ...` with its type"
            )
        shapes[parameter.name] = (hints[parameter.name], parameter.default is not parameter.empty)
    if "return" not in hints:
        raise refuse("it has no return annotation", "write `-> None` if it returns nothing")
    result = hints["return"]
    if inspect.isasyncgenfunction(fn) or inspect.isgeneratorfunction(fn):
        raise refuse("a generator has no result that could be stored", "return a list")
    try:
        return Signature(
            parameters=signature.replace(parameters=parameters),
            arguments=arguments_codec(shapes, what=f"arguments of {kind} {name!r}"),
            result=Codec(result, what=f"result of {kind} {name!r}"),
            simple=tuple(shapes) if all(each.kind is each.POSITIONAL_OR_KEYWORD for each in parameters) else None,
            form=Form.WHOLE if len(shapes) == 1 and _is_object(next(iter(shapes.values()))[0]) else Form.BY_NAME,
        )
    except PayloadError as error:
        raise refuse(error.message, error.hint) from error


def _is_object(annotation: Any) -> bool:
    """True for types whose every value is an object of JSON: a model, a dataclass, a TypedDict, a dict."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if isinstance(annotation, typing.TypeAliasType):
        annotation = annotation.__value__
    origin = typing.get_origin(annotation) or annotation
    if origin in {typing.Union, types.UnionType}:
        return False
    if not isinstance(origin, type):
        return False
    return typing.is_typeddict(origin) or issubclass(origin, dict | BaseModel) or is_dataclass(origin)
