"""Source files as trees, and what the names in them mean."""

import ast
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Final

from romancy.check.rules import BY_NAME
from romancy.errors import SettingsError

Function = ast.FunctionDef | ast.AsyncFunctionDef

_ALLOW: Final = re.compile(r"#\s*romancy:\s*allow\[([\w-]+)\](.*)$")
_DECORATORS: Final = {"romancy.workflow": "workflow", "romancy.activity": "activity"}


@dataclass
class Module:
    """One file.

    Attributes:
        name: by which others import it.
        names: what its top level calls things: local name to dotted name.
        functions: those of its top level.
        imported: the modules that it imports from, by their first names.
        allowed: rules by line, each with the reason that was given.
    """

    path: Path
    name: str
    tree: ast.Module
    names: dict[str, str] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)
    imported: set[str] = field(default_factory=set)
    allowed: dict[tuple[int, str], str] = field(default_factory=dict)

    def resolve(self, node: ast.AST, hidden: frozenset[str] = frozenset()) -> str | None:
        """The dotted name that an expression means; None if it can't be told. `hidden` are names of a function's own."""
        match node:
            case ast.Name(id=name):
                return None if name in hidden else self.names.get(name, name)
            case ast.Attribute(value=value, attr=attribute):
                of = self.resolve(value, hidden)
                return None if of is None else f"{of}.{attribute}"
            case ast.Call(func=called):
                of = self.resolve(called, hidden)
                if of == "random.Random" and (node.args or node.keywords):
                    return None  # with a seed it is the same at each replay
                return None if of is None else f"{of}()"
            case ast.Await(value=value):
                return self.resolve(value, hidden)
            case _:
                return None

    def kind_of(self, function: Function) -> str:
        """ "workflow", "activity", or "" for a plain function."""
        for decorator in function.decorator_list:
            name = (self.resolve(decorator) or "").removesuffix("()")
            if name in _DECORATORS:
                return _DECORATORS[name]
            if name.endswith(".compensate"):
                return "activity"
        return ""


def read(path: Path, name: str) -> Module:
    """Parse a file.

    Raises:
        SettingsError: it can't be read, or is no Python.
    """
    try:
        text = path.read_text()
        tree = ast.parse(text, filename=str(path))
    except (OSError, SyntaxError, ValueError) as error:
        raise SettingsError(
            f"{path} can't be checked: {error}", hint="give files of Python, or folders of them"
        ) from error
    module = Module(path, name, tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found = dict(_imported(node, name))
            module.names.update(found)
            module.imported.update(each.partition(".")[0] for each in found.values())
    for node in tree.body:
        if isinstance(node, Function):
            module.functions[node.name] = node
        elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            meant = module.resolve(node.value) if isinstance(node.value, ast.Call | ast.Attribute) else None
            if meant is not None:
                module.names[node.targets[0].id] = meant  # log = logging.getLogger(...)
    module.allowed = dict(_allowed(text))
    for line, rule in module.allowed:
        if rule not in BY_NAME:
            raise SettingsError(
                f"{path}:{line}: there is no rule {rule!r} to allow", hint=f"one of {', '.join(sorted(BY_NAME))}"
            )
    return module


def _imported(node: ast.Import | ast.ImportFrom, within: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield (alias.asname, alias.name) if alias.asname else (alias.name.partition(".")[0],) * 2
        return
    parent = within.split(".")[: -node.level] if node.level else []
    module = ".".join([*parent, *([node.module] if node.module else [])])
    for alias in node.names:
        yield alias.asname or alias.name, f"{module}.{alias.name}"


def _allowed(text: str) -> Iterator[tuple[tuple[int, str], str]]:
    for token in tokenize.generate_tokens(StringIO(text).readline):
        if token.type == tokenize.COMMENT and (match := _ALLOW.search(token.string)):
            yield (token.start[0], match[1]), match[2].strip()


class Project:
    """Modules by name, read when somebody asks for them; only those below the roots belong to it."""

    def __init__(self, roots: list[Path]) -> None:
        self._roots = roots
        self._modules: dict[str, Module | None] = {}

    def add(self, path: Path) -> Module:
        """The module of a file. Its name is its path from the root that it lies in."""
        root = next((each for each in self._roots if path.is_relative_to(each)), path.parent)
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        module = self._modules[name] = self._modules.get(name) or read(path, name)
        return module

    def has(self, name: str) -> bool:
        """Whether a module, or one that is in it, is of the project."""
        stem = name.partition(".")[0]
        return any((root / stem).is_dir() or (root / f"{stem}.py").is_file() for root in self._roots)

    def function(self, dotted: str) -> tuple[Module, Function] | None:
        """The function of a module of the project that a dotted name means."""
        name, _, last = dotted.rpartition(".")
        module = self._module(name) if name else None
        function = module.functions.get(last) if module else None
        return (module, function) if module and function else None

    def _module(self, name: str) -> Module | None:
        if name not in self._modules:
            stem = Path(*name.split("."))
            files = [root / each for root in self._roots for each in (stem.with_suffix(".py"), stem / "__init__.py")]
            found = next((each for each in files if each.is_file()), None)
            self._modules[name] = read(found, name) if found else None
        return self._modules[name]
