"""The house itself: what a reader may rely on is checked, not hoped for."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import romancy
from romancy import errors
from romancy.control import conditions, engine, kube, leader, startup
from romancy.model.run import TRANSITIONS, Phase, Reason
from tools import reference

ROOT = Path(__file__).parents[1]
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def errors_of(*modules: ModuleType) -> Iterator[type[errors.RomancyError]]:
    for module in modules:
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if issubclass(kind, errors.RomancyError):
                yield kind


REASONS = {
    *(str(reason) for reason in Reason if reason),
    *(kind.reason for kind in errors_of(errors, kube, leader, startup)),
    *(str(reason) for reason in engine.Reason),
    *(str(phase) for phase in Phase),  # the reason of a condition where the run has none
    conditions.LOST,
    conditions.STORED,
}


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_every_reason_has_a_page_that_says_what_to_do(reason: str) -> None:
    page = (ROOT / f"docs/errors/{reason}.md").read_text()

    assert page.startswith(f"# {reason}\n")
    assert "**What to do.** " in page
    assert f"[{reason}]({reason}.md)" in (ROOT / "docs/errors/README.md").read_text()


def test_the_reference_is_what_the_code_says() -> None:
    assert reference.main(["--check"]) == 0


def test_no_mocks_and_nobody_else_s_code_is_patched() -> None:
    """Real PostgreSQL, a real API server, real processes: tests fake nothing of kopf, kubernetes or asyncpg."""
    found = []
    for path in TESTS:
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            if any(
                name.split(".")[0] in {"mock", "pytest_mock", "kmock", "responses", "aioresponses"} for name in names
            ):
                found.append((path.name, names))
            if any("unittest.mock" in name for name in names):
                found.append((path.name, names))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
                target = ast.unparse(node.args[0]) if node.args else ""
                if re.match(r"""^["']?(kopf|kubernetes|asyncpg)\b""", target):
                    found.append((path.name, [target]))

    assert found == []


def test_the_public_names_are_pinned() -> None:
    assert set(romancy.__all__) == {
        "NO_RETRY",
        "Activity",
        "App",
        "Channel",
        "ChannelMode",
        "ChildHandle",
        "Client",
        "CloudEvent",
        "Event",
        "Handle",
        "Leg",
        "Message",
        "Middleware",
        "ParentClose",
        "RetryPolicy",
        "RomancyError",
        "RunInfo",
        "Subscription",
        "TerminalError",
        "Workflow",
        "WorkflowContext",
        "activity",
        "workflow",
    }
    assert all(hasattr(romancy, name) for name in romancy.__all__)


def test_the_diagram_of_phases_is_that_of_the_model() -> None:
    text = (ROOT / "docs/reference/phases.md").read_text()

    for phase, followers in TRANSITIONS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {phase} |"))
        assert {Phase(name) for name in re.findall(r"[A-Z]\w+", row.split("|")[2])} == followers


def test_folders_of_the_package_say_what_they_are_for() -> None:
    for folder in (ROOT / "operator/romancy").iterdir():
        if (folder / "__init__.py").exists():
            assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder
    assert not (ROOT / "operator/__init__.py").exists()  # it would shadow the standard library's operator
