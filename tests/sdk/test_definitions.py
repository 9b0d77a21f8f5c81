"""Misuse is found when it is defined, with the line and what to do."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypedDict

import pytest
from pydantic import BaseModel

from romancy import WorkflowContext, activity, workflow
from romancy.errors import DefinitionError, InputInvalidError
from romancy.model.run import Form
from romancy.sdk.registry import Registry
from romancy.sdk.workflow import Options, Workflow


class Opaque:
    pass


class Model(BaseModel):
    a: int


@dataclass
class Data:
    a: int


class Typed(TypedDict):
    a: int


def refused(match: str) -> Any:
    return pytest.raises(DefinitionError, match=match)


def test_a_missing_annotation() -> None:
    with refused(r"activity 'f' at .*test_definitions\.py:\d+: parameter 'x' has no annotation"):

        @activity
        async def f(x) -> None: ...  # type: ignore[no-untyped-def]


def test_a_missing_return_annotation() -> None:
    with refused("no return annotation"):

        @activity
        async def f(x: int):  # type: ignore[no-untyped-def]
            ...


def test_what_can_t_be_stored() -> None:
    with refused(r"arguments of activity 'f'.*can't be stored"):

        @activity
        async def f(x: Opaque) -> None: ...

    with refused(r"result of workflow 'g'.*can't be stored"):

        @workflow
        async def g() -> Opaque: ...


def test_arguments_without_a_name() -> None:
    with refused(r"\*args: int can't be stored by name"):

        @activity
        async def f(*args: int) -> None: ...


@pytest.mark.parametrize("annotation", [None, Any])
def test_a_first_parameter_of_a_workflow_that_can_t_be_told_from_the_context(annotation: object) -> None:
    async def f(ctx) -> None: ...  # type: ignore[no-untyped-def]

    if annotation is not None:
        f.__annotations__["ctx"] = annotation

    with refused("first parameter 'ctx' has no exact annotation"):
        workflow(f)


def test_a_workflow_that_is_no_coroutine_function() -> None:
    with refused("is not `async def`"):

        @workflow  # type: ignore[call-overload]
        def f() -> None: ...


def test_a_generator() -> None:
    with refused("generator"):

        @activity
        async def f() -> AsyncIterator[int]:
            yield 1


def test_a_function_that_is_decorated_twice() -> None:
    with refused("decorated twice"):

        @workflow
        @activity
        async def f() -> None: ...


def test_a_timeout_of_nothing() -> None:
    with refused("timeout must be more than 0"):

        @activity(timeout=0)
        async def f() -> None: ...


def test_a_second_compensation_and_one_that_takes_more_than_the_result() -> None:
    @activity
    async def book() -> int: ...  # type: ignore[empty-body]

    @book.compensate
    async def unbook(booking: int) -> None: ...

    with refused("two compensations"):

        @book.compensate
        async def unbook_again(booking: int) -> None: ...

    @activity
    async def other() -> int: ...  # type: ignore[empty-body]

    with refused("exactly one argument"):

        @other.compensate  # type: ignore[arg-type]
        async def too_much(booking: int, why: str) -> None: ...


class Definition:
    def __init__(self, name: str, path: str, where: str) -> None:
        self.name, self.path, self.where = name, path, where


def test_two_functions_of_one_name_and_a_reload() -> None:
    registry: Registry[Definition] = Registry("workflows")
    registry.add(Definition("ship", "shop.ship", "shop.py:1"))
    registry.add(Definition("ship", "shop.ship", "shop.py:3"))

    with refused(r"two workflows are named 'ship': shop\.py:3 and depot\.py:7"):
        registry.add(Definition("ship", "depot.ship", "depot.py:7"))
    assert registry.near("shipp") == ["ship"]


# --- the form of an input -------------------------------------------------------------------------------------------------


@workflow(name="whole")
async def whole(ctx: WorkflowContext, order: Model) -> int:
    return order.a


@workflow(name="by_name")
async def by_name(order: Model, note: str = "none") -> int:
    return order.a


@workflow(name="plain")
async def plain(a: int) -> int:
    return a


@workflow(name="nothing")
async def nothing() -> None: ...


@pytest.mark.parametrize("kind", [Model, Data, Typed, dict[str, int]])
def test_one_parameter_of_an_object_type_takes_the_whole_input(kind: Any) -> None:
    async def f(order) -> None: ...  # type: ignore[no-untyped-def]

    f.__annotations__["order"] = kind

    assert Workflow(f, name="f").signature.form is Form.WHOLE


@pytest.mark.parametrize(("flow", "form"), [(whole, Form.WHOLE), (by_name, Form.BY_NAME), (plain, Form.BY_NAME)])
def test_forms(flow: Workflow[..., Any], form: Form) -> None:
    assert flow.signature.form is form


def test_start_stores_the_form_of_a_resource() -> None:
    assert whole.encode_input((Model(a=1),), {}) == '{"a":1}'
    assert by_name.encode_input((Model(a=1),), {"note": "x"}) == '{"order":{"a":1},"note":"x"}'
    assert plain.encode_input((1,), {}) == '{"a":1}'
    assert nothing.encode_input((), {}) == "{}"
    assert whole.decode_input('{"a":1}', Form.WHOLE) == {"order": Model(a=1)}
    assert by_name.decode_input('{"order":{"a":1}}', Form.BY_NAME) == {"order": Model(a=1)}
    assert nothing.decode_input("{}", Form.BY_NAME) == {}


@pytest.mark.parametrize(
    ("flow", "text", "problem"),
    [
        (whole, '{"a":"x"}', r"order\.a: Input should be a valid integer"),
        (whole, "{}", r"order\.a: Field required"),
        (by_name, '{"note":1}', r"order: Field required; note: Input should be a valid string"),
        (by_name, '{"order":{"a":1},"nots":"x"}', r"nots: Extra inputs are not permitted"),
        (nothing, '{"a":1}', r"a: Extra inputs are not permitted"),
        (plain, '{"a":null}', r"a: Input should be a valid integer"),
    ],
)
def test_input_that_does_not_fit_names_each_field(flow: Workflow[..., Any], text: str, problem: str) -> None:
    with pytest.raises(InputInvalidError, match=problem):
        flow.decode_input(text, flow.signature.form)


@pytest.mark.parametrize(
    "wrong", [{"id": ""}, {"priority": 1001}, {"timeout": timedelta(0)}, {"delay": timedelta(seconds=-1)}]
)
def test_options_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Options(**wrong)


def test_a_wrong_call_is_wrong_at_the_call() -> None:
    @activity
    async def f(x: int) -> int:
        return x

    async def outside() -> None:
        await f()  # type: ignore[call-arg]

    with pytest.raises(TypeError, match="missing"):
        asyncio.run(outside())
