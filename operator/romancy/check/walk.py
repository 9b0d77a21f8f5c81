"""From each workflow through the functions that it calls, up to activities and to what is not of the project."""

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from romancy.check.finding import Finding
from romancy.check.rules import BY_NAME, Rule, rule_of
from romancy.check.source import Function, Module, Project
from romancy.errors import SettingsError

_AWAITABLE: Final = frozenset({"asyncio", "romancy", "contextlib", "builtins"})
_SET_TYPE: Final = re.compile(r"(typing\.|collections\.abc\.)?(set|frozenset|Set|FrozenSet|AbstractSet|MutableSet)\b")
_WAITS: Final = frozenset({"asyncio.as_completed", "asyncio.wait"})
_MAKES_TASK: Final = ("create_task", "ensure_future")


def check(paths: Sequence[Path]) -> list[Finding]:
    """What replay can't bear in the workflows of these files and folders, in order of their places.

    Raises:
        SettingsError: one of them is not there, or is no Python.
    """
    project = Project(_roots(paths))
    found: dict[tuple[Path, int, int, str], Finding] = {}
    for path in _files(paths):
        module = project.add(path)
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and module.kind_of(node) == "workflow":
                for finding in _Walk(project, node.name).function(module, node):
                    found.setdefault((finding.path, finding.line, finding.column, finding.rule.name), finding)
    return sorted(found.values(), key=lambda each: (str(each.path), each.line, each.column))


def _roots(paths: Sequence[Path]) -> list[Path]:
    """Where imports begin: here, and for each path the folder above its outermost package."""
    roots = [Path.cwd()]
    for path in paths:
        folder = path.resolve() if path.is_dir() else path.resolve().parent
        while (folder / "__init__.py").exists():
            folder = folder.parent
        roots += [folder, folder.parent]
    return list(dict.fromkeys(roots))


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.exists():
            raise SettingsError(f"{path} is not there", hint="give files of Python, or folders of them")
        resolved = path.resolve()
        yield from sorted(resolved.rglob("*.py")) if resolved.is_dir() else [resolved]


class _Walk:
    """What one workflow reaches."""

    def __init__(self, project: Project, workflow: str) -> None:
        self._project, self._workflow = project, workflow
        self._seen: set[tuple[str, str]] = set()

    def function(self, module: Module, function: Function) -> Iterator[Finding]:
        """Findings in a function and in those that it calls."""
        if (module.name, function.name) in self._seen:
            return
        self._seen.add((module.name, function.name))
        hidden = frozenset(_own_names(function))
        sets = frozenset(_own_sets(module, function, hidden))
        for node in _body(function):
            for rule, what in self._broken(module, node, hidden, sets):
                line, column = node.lineno, node.col_offset + 1  # type: ignore[attr-defined]
                lines = range(line, node.end_lineno + 1)  # type: ignore[attr-defined]
                if not any(module.allowed.get((each, rule.name)) for each in lines):
                    yield Finding(_shown(module.path), line, column, rule, what, function.name, self._workflow)
            if isinstance(node, ast.Call):
                yield from self._called(module, node, hidden)

    def _called(self, module: Module, call: ast.Call, hidden: frozenset[str]) -> Iterator[Finding]:
        if (name := module.resolve(call.func, hidden)) is None:
            return
        if name in module.functions:
            target: tuple[Module, Function] | None = (module, module.functions[name])
        else:
            target = self._project.function(name)
        if target is not None and not target[0].kind_of(target[1]):
            yield from self.function(*target)

    def _broken(
        self, module: Module, node: ast.AST, hidden: frozenset[str], sets: frozenset[str]
    ) -> Iterator[tuple[Rule, str]]:
        if isinstance(node, ast.Name) and node.id in module.functions:
            return  # its own function, called like a built-in one
        match node:
            case ast.Call(func=ast.Name(id=own)) if own in module.functions:
                pass
            case ast.Call(func=called, args=given):
                name = (module.resolve(node, hidden) or "").removesuffix("()")
                if (rule := rule_of(name, is_called=True)) is not None:
                    yield rule, f"{name.replace('()', '(...)')}()"
                elif not name and isinstance(called, ast.Attribute) and called.attr == "run_in_executor":
                    yield BY_NAME["threads"], "run_in_executor()"
                if name in _WAITS and given and _has_bare_calls(given[0]):
                    yield BY_NAME["bare-coroutines"], f"{name}()"
            case ast.Attribute() | ast.Name() if isinstance(node.ctx, ast.Load):
                used = module.resolve(node, hidden)
                if used is not None and (rule := rule_of(used, is_called=False)) is not None:
                    yield rule, used
            case ast.For(iter=over) | ast.AsyncFor(iter=over) | ast.comprehension(iter=over):
                if _is_set(module, over, hidden, sets):
                    yield BY_NAME["set-order"], "an iteration over a set"
            case ast.Await(value=ast.Call() as awaited):
                name = (module.resolve(awaited, hidden) or "").removesuffix("()")
                first = name.partition(".")[0]
                is_foreign = first in module.imported - _AWAITABLE and not self._project.has(first)
                if is_foreign and rule_of(name, is_called=True) is None:
                    yield BY_NAME["foreign-await"], f"await {name.replace('()', '(...)')}()"
            case ast.Global(names=names):
                yield BY_NAME["global-state"], f"global {', '.join(names)}"
            case _:
                pass


def _body(function: Function) -> Iterator[ast.AST]:
    """Every node of a function that is executed: no annotations, no decorators. A called name is looked at as the call."""
    waiting: list[ast.AST] = [*function.body]
    while waiting:
        node = waiting.pop(0)
        yield _placed(node)
        for name, value in ast.iter_fields(node):
            if name in {"annotation", "returns", "decorator_list", "type_params"}:
                continue
            children = [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, ast.AST)]
            if isinstance(node, ast.Call) and name == "func":
                children = _below(children[0])  # the name itself was looked at with the call
            elif isinstance(node, ast.Attribute) and name == "value":
                children = _below(children[0]) if isinstance(children[0], ast.Attribute | ast.Name) else children
            waiting.extend(children)


def _below(node: ast.AST) -> list[ast.AST]:
    """What is executed within a name that is looked at as a whole: the calls in `a().b.c`."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return [] if isinstance(node, ast.Name) else [node]


def _placed(node: ast.AST) -> ast.AST:
    """A comprehension has no place of its own: that of what it iterates over."""
    if isinstance(node, ast.comprehension):
        place = node.iter
        vars(node).update(lineno=place.lineno, col_offset=place.col_offset, end_lineno=place.end_lineno)
    return node


def _own_names(function: Function) -> Iterable[str]:
    """Names that the function binds itself, so that an import of the same name is not meant."""
    imported: set[str] = set()
    bound: set[str] = set()
    for node in ast.walk(function):
        match node:
            case ast.arg(arg=name):
                bound.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                bound.add(name)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                imported.update(alias.asname or alias.name.partition(".")[0] for alias in names)
            case _:
                pass
    return bound - imported


def _own_sets(module: Module, function: Function, hidden: frozenset[str]) -> Iterator[str]:
    """Names of the function's own that hold a set: by their annotation, or by what they are given."""
    for node in ast.walk(function):
        match node:
            case (
                ast.arg(arg=name, annotation=annotation)
                | ast.AnnAssign(target=ast.Name(id=name), annotation=annotation)
            ) if annotation is not None and _SET_TYPE.match(ast.unparse(annotation)):
                yield name
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if _is_set(module, value, hidden, frozenset()):
                yield name
            case _:
                pass


def _is_set(module: Module, node: ast.AST, hidden: frozenset[str], sets: frozenset[str]) -> bool:
    match node:
        case ast.Set() | ast.SetComp():
            return True
        case ast.Name(id=name):
            return name in sets
        case ast.Call(func=called):
            maker = module.resolve(called, hidden)
            if maker in {"set", "frozenset"}:
                return True
            return maker in {"list", "tuple", "enumerate", "iter", "reversed"} and any(
                _is_set(module, each, hidden, sets) for each in node.args
            )
        case ast.BinOp(op=ast.BitOr() | ast.BitAnd() | ast.Sub() | ast.BitXor(), left=left, right=right):
            return _is_set(module, left, hidden, sets) or _is_set(module, right, hidden, sets)
        case _:
            return False


def _has_bare_calls(node: ast.AST) -> bool:
    """Calls that are handed over as they are, not as tasks."""
    match node:
        case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Set(elts=parts):
            return any(_is_bare(each) for each in parts)
        case ast.ListComp(elt=part) | ast.SetComp(elt=part) | ast.GeneratorExp(elt=part):
            return _is_bare(part)
        case _:
            return False


def _is_bare(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and not ast.unparse(node.func).endswith(_MAKES_TASK)


def _shown(path: Path) -> Path:
    """From here, where that is shorter."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
