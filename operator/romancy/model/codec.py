"""Values to payloads and back. A payload is the exact text of JSON; what would come back as something else is refused.

The code sees only what the decoder made of the stored text, live as on replay. So each value is decoded as soon as it is
encoded, and compared: type and content, where an int may stand for a float, and nan equals nan.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from typing import Any, Final, NotRequired, TypedDict, cast

from pydantic import BaseModel, ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from romancy.errors import PayloadError, PayloadNotFaithfulError, PayloadTooLargeError

PAYLOAD_BYTES_MAX: Final = 1024 * 1024
_CONFIG: Final = ConfigDict(
    ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings", arbitrary_types_allowed=False
)


class Codec[T]:
    """Encodes and decodes values of one annotated type.

    Args:
        annotation: what pydantic validates.
        what: names the value in errors, as in "result of activity 'charge'".
        fields: the types of a dict by its keys, for one that is described by its annotation in the same way.

    Raises:
        PayloadError: pydantic can't handle the annotation.
    """

    def __init__(self, annotation: Any, *, what: str, fields: Mapping[str, Any] | None = None) -> None:
        self.annotation, self.what = annotation, what
        self._fields = fields
        try:
            self._adapter: TypeAdapter[T] = _adapter(annotation)
        except Exception as error:
            raise PayloadError(
                f"the type of the {what}, {annotation!r}, can't be stored: {_first_line(error)}",
                hint="use what pydantic validates: models, dataclasses, TypedDicts, and the types of the standard library",
            ) from error

    def encode(self, value: T, *, bytes_max: int = PAYLOAD_BYTES_MAX) -> str:
        """The exact JSON text of a value.

        Raises:
            PayloadNotFaithfulError: it would come back as something else.
            PayloadTooLargeError: it is larger than `bytes_max`.
            PayloadError: it can't be encoded at all.
        """
        try:
            # Straight to the core: the adapter's own methods cost more than the work for small values.
            data = self._adapter.serializer.to_json(value, round_trip=True, warnings="none")
        except (PydanticSerializationError, ValueError, RecursionError, AttributeError, TypeError) as error:
            raise PayloadError(
                f"the {self.what} can't be encoded as JSON: {_first_line(error)}",
                hint="bytes in a pydantic model need ser_json_bytes='base64' and val_json_bytes='base64' in its config",
            ) from error
        if len(data) > bytes_max:
            raise PayloadTooLargeError(what=f"the {self.what}", size_bytes=len(data), max_bytes=bytes_max)
        text = data.decode()
        if self._comes_back(value):
            return text
        try:
            back = self.decode(text)
        except ValidationError as error:
            first = error.errors()[0]
            raise PayloadNotFaithfulError(
                path=_path(self.what, first["loc"]), sent=_at(value, first["loc"]), came_back=_Refused(first["msg"])
            ) from error
        try:
            found = difference(value, back, self.what)
        except RecursionError as error:
            raise PayloadError(f"the {self.what} is nested too deeply", hint="store it flat") from error
        if found is not None:
            path, sent, came_back = found
            raise PayloadNotFaithfulError(path=path, sent=sent, came_back=came_back)
        return text

    def _comes_back(self, value: object) -> bool:
        """True if it can be seen without a look at what comes back: most of what travels is that plain."""
        if self._fields is None:
            return _is_sure(value, self.annotation)
        if type(value) is not dict:
            return False
        for name, each in value.items():  # noqa: SIM110 - a generator costs more than what it asks
            if name not in self._fields or not _is_sure(each, self._fields[name]):
                return False
        return True

    def decode(self, text: str) -> T:
        """The value of a payload.

        Raises:
            pydantic.ValidationError: the text does not fit the type.
        """
        value: T = self._adapter.validator.validate_json(text, by_alias=True, by_name=True)
        return value

    def json_schema(self) -> dict[str, Any]:
        """The JSON Schema (2020-12) of what may be decoded."""
        return self._adapter.json_schema()


def arguments_codec(parameters: Mapping[str, tuple[Any, bool]], *, what: str) -> Codec[dict[str, Any]]:
    """The codec of arguments by name.

    Args:
        parameters: annotation, and whether there is a default, by name in order.
        what: as for `Codec`.
    """
    fields = {name: NotRequired[kind] if optional else kind for name, (kind, optional) in parameters.items()}
    shape: Any = cast("Callable[[str, dict[str, Any]], Any]", TypedDict)("Arguments", fields)
    shape.__pydantic_config__ = _CONFIG | {"extra": "forbid"}
    return Codec(shape, what=what, fields={name: kind for name, (kind, _) in parameters.items()})


def digest(text: str) -> str:
    """A short digest of a payload, to tell arguments apart: 16 hexadecimal digits."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def problems(error: ValidationError) -> list[str]:
    """What is wrong, each with the path of the field: `order.sku: Field required`."""
    return [f"{_path('', each['loc']) or 'input'}: {each['msg']}" for each in error.errors()[:20]]


class _Refused:
    """Stands for a value that could not be read back at all."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __repr__(self) -> str:
        return self._why


_PLAIN: Final = frozenset({str, int, bool, type(None), bytes})  # most of what travels: equal is the same


def _is_sure(value: object, annotation: Any) -> bool:
    """Whether a value of exactly the annotated type comes back the same: of what pydantic could change, none is among these."""
    kind = type(value)
    return (kind is annotation or (value is None and annotation is None)) and (
        kind is str or kind is bool or value is None or (kind is int and -_LARGE < value < _LARGE)  # type: ignore[operator]
    )


_LARGE: Final = 1 << 63  # beyond it an int may have too many digits to be read again


def difference(sent: object, back: object, path: str) -> tuple[str, object, object] | None:
    """Where two values differ in type or content: the path and both; None if they are alike."""
    if type(sent) in _PLAIN and type(back) is type(sent):
        return None if sent == back else (path, sent, back)
    if type(sent) is dict and type(back) is dict:
        return _difference_of_dicts(sent, back, path)
    here = (path, sent, back)
    if type(sent) is not type(back):
        is_int_for_float = type(sent) is int and type(back) is float and sent == back
        return None if is_int_for_float or _is_same_moment(sent, back) else here
    match sent:
        case float():
            other = cast("float", back)
            is_same = (math.isnan(sent) and math.isnan(other)) or (
                sent == other and math.copysign(1, sent) == math.copysign(1, other)
            )
            return None if is_same else here
        case Decimal():
            return None if sent.as_tuple() == cast("Decimal", back).as_tuple() else here
        case datetime():
            return None if _is_same_moment(sent, back) else here
        case Enum():
            return None if sent is back else here
        case BaseModel():
            return _difference_of_models(sent, cast("BaseModel", back), path)
        case dict():
            return _difference_of_dicts(sent, cast("dict[Any, Any]", back), path)
        case list() | tuple():
            others = cast("list[object]", back)
            if len(sent) != len(others):
                return here
            pairs = enumerate(zip(sent, others, strict=True))
            return _first(difference(a, b, f"{path}[{index}]") for index, (a, b) in pairs)
        case set() | frozenset():
            return None if _typed(sent) == _typed(cast("set[object]", back)) else here
        case _ if dataclasses.is_dataclass(sent):
            names = [field.name for field in dataclasses.fields(sent)]
            return _first(difference(getattr(sent, n), getattr(back, n), f"{path}.{n}") for n in names)
        case _:
            return None if sent == back else here


def _difference_of_models(sent: BaseModel, back: BaseModel, path: str) -> tuple[str, object, object] | None:
    found = _first(
        difference(getattr(sent, name), getattr(back, name), f"{path}.{name}") for name in type(sent).model_fields
    )
    if found is None and (sent.__pydantic_extra__ or back.__pydantic_extra__):
        found = difference(sent.__pydantic_extra__, back.__pydantic_extra__, path)
    if found is None and (sent.__pydantic_private__ or back.__pydantic_private__):
        found = difference(sent.__pydantic_private__, back.__pydantic_private__, path)
    return found


def _difference_of_dicts(sent: dict[Any, Any], back: dict[Any, Any], path: str) -> tuple[str, object, object] | None:
    if len(sent) != len(back):
        return path, sent, back
    # In order: what iterates over it is code, and code must see the same order on replay.
    for (key, value), (other_key, other) in zip(sent.items(), back.items(), strict=True):
        if key == other_key and type(key) is type(other_key) is str and _is_plainly_same(value, other):
            continue
        found = difference(key, other_key, f"{path}.{key} (key)") or difference(value, other, f"{path}.{key}")
        if found is not None:
            return found
    return None


def _is_plainly_same(sent: object, back: object) -> bool:
    return type(sent) in _PLAIN and type(back) is type(sent) and sent == back


def _is_same_moment(sent: object, back: object) -> bool:
    """The same moment at the same offset, whatever class says so: pydantic reads every zone as an offset."""
    if not (isinstance(sent, datetime) and isinstance(back, datetime)):
        return False
    return sent.utcoffset() == back.utcoffset() and sent.replace(tzinfo=None) == back.replace(tzinfo=None)


def _typed(items: "set[object] | frozenset[object]") -> set[tuple[type, object]]:
    return {(type(item), item) for item in items}


def _first(found: Any) -> tuple[str, object, object] | None:
    return next((each for each in found if each is not None), None)


@lru_cache(maxsize=4096)
def _cached_adapter(annotation: Any) -> TypeAdapter[Any]:
    return _new_adapter(annotation)


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return _cached_adapter(annotation)
    except TypeError:  # not hashable
        return _new_adapter(annotation)


def _new_adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation, config=_CONFIG)
    except PydanticUserError as error:
        if error.code != "type-adapter-config-unused":
            raise
        return TypeAdapter(annotation)  # models, dataclasses and TypedDicts have a config of their own


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _path(root: str, location: tuple[int | str, ...]) -> str:
    text = root
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text


def _at(value: object, location: tuple[int | str, ...]) -> object:
    """The part of a value at a location of pydantic's, as far as it can be followed."""
    for part in location:
        try:
            value = value[part] if isinstance(value, dict | list | tuple) else getattr(value, str(part))  # type: ignore[index]
        except (LookupError, AttributeError, TypeError):
            return value
    return value
