"""Imports the modules of users, and names their build."""

import hashlib
import importlib
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from romancy.errors import DefinitionError, RomancyError
from romancy.model import failure
from romancy.sdk.middleware import Middleware
from romancy.sdk.workflow import WORKFLOWS, Workflow


def load(modules: Sequence[str]) -> list[Workflow[..., Any]]:
    """Import modules and return every workflow that is registered then.

    Raises:
        DefinitionError: a module can't be imported, or there is no workflow in any of them.
    """
    for name in modules:
        try:
            importlib.import_module(name)
        except RomancyError:
            raise
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
                raise DefinitionError(
                    f"there is no module {error.name!r} (sys.path is {sys.path})",
                    hint="correct ROMANCY_WORKFLOWS, or set PYTHONPATH to the folder that holds it",
                ) from error
            raise _failed(name, error) from error
        except Exception as error:
            raise _failed(name, error) from error
    found = list(WORKFLOWS)
    if not found:
        raise DefinitionError(
            f"no workflow is defined in {', '.join(modules) or 'no module'}",
            hint="set ROMANCY_WORKFLOWS to modules with functions under @workflow",
        )
    failure.freeze_modules()
    return found


def load_middleware(names: Sequence[str]) -> list[Middleware]:
    """What these names mean: objects, or classes that are made without arguments.

    Raises:
        DefinitionError: there is no such object, or it is no middleware.
    """
    found: list[Middleware] = []
    for name in names:
        module, _, attribute = name.partition(":")
        try:
            each = getattr(importlib.import_module(module), attribute)
            each = each() if isinstance(each, type) else each
        except Exception as error:
            raise DefinitionError(
                f"middleware {name!r} can't be loaded: {type(error).__name__}: {error}",
                hint="correct ROMANCY_MIDDLEWARE: my.module:Name, of what can be imported (see PYTHONPATH)",
            ) from error
        if not isinstance(each, Middleware):
            raise DefinitionError(f"middleware {name!r} is {each!r:.100}", hint="derive it from romancy.Middleware")
        found.append(each)
    return found


def build_id(workflows: Iterable[Workflow[..., Any]]) -> str:
    """A digest of the source files of the workflows and of all modules beside them: another one is another build."""
    files: set[Path] = set()
    for each in workflows:
        source = Path(each.where.rpartition(":")[0])
        if source.is_file():
            files.update(source.parent.glob("*.py"))
    text = hashlib.blake2b(digest_size=6)
    for path in sorted(files):
        text.update(path.name.encode())
        text.update(path.read_bytes())
    return text.hexdigest()


def _failed(module: str, error: Exception) -> DefinitionError:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return DefinitionError(
        f"module {module!r} can't be imported: {type(error).__name__}: {error} ({last.filename}:{last.lineno})",
        hint="it must be importable on its own: python -c 'import " + module + "'",
    )
