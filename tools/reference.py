"""What is made of the code, in docs/reference and in the chart: `python -m tools.reference --write | --check`."""

import ast
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
from prometheus_client.metrics import MetricWrapperBase

from romancy.base import metrics, settings
from romancy.check import RULES
from romancy.cli import backend
from romancy.cli import main as cli
from tools.values_schema import values_schema

ROOT: Final = Path(__file__).parents[1]
PACKAGE: Final = ROOT / "operator/romancy"
LEVELS: Final = frozenset({"debug", "info", "warning", "error", "critical", "exception"})


def settings_page() -> str:
    """Every environment variable with its default."""
    lines = ["# Settings", "", "Environment variables of every process. `DATABASE_URL` is read as well.", ""]
    lines += ["| variable | default | what it does |", "| --- | --- | --- |"]
    shown = settings.Settings.model_construct(
        **{name: field.default for name, field in settings.Settings.model_fields.items()}
    )
    for name, text in settings.variables().items():
        value: object = shown
        for part in name.removeprefix("ROMANCY_").lower().split("__"):
            value = getattr(value, part)
        default = "" if value in ((), "") or "SecretStr" in type(value).__name__ else f"`{value}`"
        lines.append(f"| `{name}` | {default} | {' '.join(text.split())} |")
    return "\n".join(lines) + "\n"


def log_events() -> Iterator[tuple[str, str, str]]:
    """Event, level and module of every log line in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in LEVELS
                and "log" in ast.unparse(node.func.value).lower()
                and node.args
                and isinstance(node.args[0], ast.Constant)
                and isinstance(node.args[0].value, str)
            ):
                module = path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
                yield node.args[0].value, node.func.attr, module


def events_page() -> str:
    """Every event of the log."""
    lines = ["# Log events", "", "JSON lines on stdout. An event is a fact in the past; its values are fields.", ""]
    lines += ["| event | level | module |", "| --- | --- | --- |"]
    lines += [f"| `{event}` | {level} | `{module}` |" for event, level, module in sorted(set(log_events()))]
    return "\n".join(lines) + "\n"


def metrics_page() -> str:
    """Every metric."""
    lines = [
        "# Metrics",
        "",
        "`GET /metrics` of each process. Labels are names in code, reasons and outcomes, never ids.",
        "",
    ]
    lines += ["| metric | type | labels | what it tells |", "| --- | --- | --- | --- |"]
    for name, each in sorted(vars(metrics).items()):
        if name.isupper() and isinstance(each, MetricWrapperBase):
            family = each.describe()[0]
            full = family.name + ("_total" if family.type == "counter" else "")
            labels = ", ".join(f"`{label}`" for label in each._labelnames)
            lines.append(f"| `{full}` | {family.type} | {labels} | {family.documentation} |")
    lines.append("| `process_*`, `python_info` | | | CPU, memory, open files and start of the process |")
    return "\n".join(lines) + "\n"


def check_page() -> str:
    """Every rule of `romancy check`."""
    lines = [
        "# What `romancy check` finds",
        "",
        "In workflows, and in the functions that they call; activities may do all of it.",
        "",
    ]
    lines += ["| rule | what | why not | instead |", "| --- | --- | --- | --- |"]
    for rule in RULES:
        names = ", ".join(f"`{name}`" for name in rule.names) or "by its form"
        lines.append(f"| `{rule.name}` | {names} | {rule.why} | {rule.cure} |")
    lines += [
        "",
        "`module.*` is any call of something of that module. Let be: `# romancy: allow[rule] why` at the end of the line.",
    ]
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """Every command with its options, and what they end with."""
    lines = [
        "# Command line",
        "",
        "`romancy`, and the same as `kubectl romancy`. Commands ask the HTTP API if its address is given (`--server`, or",
        f"`{backend.URL_VARIABLE}`; the token in `{backend.TOKEN_VARIABLE}`, or in the file that `--token-file` or",
        f"`{backend.TOKEN_FILE_VARIABLE}` names; certificates to trust in `{backend.CA_FILE_VARIABLE}`), else the database",
        "of `DATABASE_URL`, or that of `romancy dev` in this folder. Both give the same. A RUN is a name, `NAMESPACE/NAME`",
        "or an id. Data goes to stdout, all else to stderr; `-o json` gives the objects of the HTTP API. An error is one line",
        "with its [reason](../errors/README.md), and a hint.",
        "",
        "| exit code | |",
        "| --- | --- |",
        *[f"| {code} | {text} |" for code, text in cli.EXIT_CODES.items()],
    ]
    for path, command in _commands("romancy", cli.main):
        usage = " ".join(piece for piece in command.collect_usage_pieces(click.Context(command)) if piece)
        lines += [
            "",
            f"## {path}",
            "",
            f"`{path} {usage}`",
            "",
            inspect.cleandoc(command.help or "").replace("\b\n", ""),
        ]
        found = [option for option in command.params if isinstance(option, click.Option) and not option.hidden]
        if found:
            lines += ["", "| option | what it does |", "| --- | --- |"]
            lines += [f"| {_names(option)} | {_says(option)} |" for option in found]
    return "\n".join(lines) + "\n"


def _commands(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name, each in sorted(command.commands.items()):
            if not each.hidden:
                yield from _commands(f"{path} {name}", each)
    else:
        yield path, command


def _names(option: click.Option) -> str:
    named = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    if option.is_flag:
        return named
    given = option.metavar or ("" if isinstance(option.type, click.Choice) else option.type.name.upper())
    return f"{named} {given}".strip()


def _says(option: click.Option) -> str:
    choices = ", ".join(str(each) for each in option.type.choices) if isinstance(option.type, click.Choice) else ""
    default = f"Default: `{option.default}`." if option.show_default and not option.required else ""
    parts = [
        option.help or "",
        f"One of: {choices}." if choices else "",
        default,
        "Required." if option.required else "",
    ]
    return " ".join(part for part in parts if part).replace("|", "\\|")


PAGES: Final = {
    ROOT / "docs/reference/settings.md": settings_page,
    ROOT / "docs/reference/log-events.md": events_page,
    ROOT / "docs/reference/metrics.md": metrics_page,
    ROOT / "docs/reference/check.md": check_page,
    ROOT / "docs/reference/cli.md": commands_page,
    ROOT / "charts/romancy/values.schema.json": lambda: json.dumps(values_schema(), indent=1) + "\n",
    # Helm takes no file from outside of a chart.
    **{ROOT / "charts/romancy/files/crds" / path.name: path.read_text for path in (ROOT / "crds").glob("*.yaml")},
}


def main(arguments: list[str]) -> int:
    stale = [path for path, make in PAGES.items() if not path.exists() or path.read_text() != make()]
    if "--write" in arguments:
        for path in stale:
            path.write_text(PAGES[path]())
        return 0
    for path in stale:
        print(f"{path.relative_to(ROOT)} is not what the code says: run `make generate`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
