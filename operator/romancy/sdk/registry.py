"""Names to definitions: a name stands for one function, and a second one is refused with both lines."""

import difflib
from collections.abc import Iterator
from typing import Protocol

from romancy.errors import DefinitionError


class Definition(Protocol):
    """A workflow or an activity."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> str:
        """Module and qualified name."""
        ...

    @property
    def where(self) -> str:
        """File and line."""
        ...


class Registry[T: Definition]:
    """Definitions of one kind by name."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._found: dict[str, T] = {}

    def add(self, definition: T) -> None:
        """Register a definition; the same function again (a reload) takes the place of the old.

        Raises:
            DefinitionError: the name stands for another function.
        """
        old = self._found.get(definition.name)
        if old is not None and old.path != definition.path:
            raise DefinitionError(
                f"two {self._kind} are named {definition.name!r}: {old.where} and {definition.where}",
                hint="give one of them another name: @...(name='...')",
            )
        self._found[definition.name] = definition

    def get(self, name: str) -> T | None:
        return self._found.get(name)

    def near(self, name: str) -> list[str]:
        """Names that a person may have meant."""
        return difflib.get_close_matches(name, self._found, n=3)

    def names(self) -> list[str]:
        return sorted(self._found)

    def __iter__(self) -> Iterator[T]:
        return iter(self._found.values())

    def __len__(self) -> int:
        return len(self._found)
