"""`romancy`: every command, its help and its exit code."""

import asyncio
import copy
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from romancy.cli import database, engine, options, runs
from romancy.errors import (
    DeadLetterNotFoundError,
    FilterError,
    ProblemError,
    RomancyError,
    RunNotFoundError,
    SettingsError,
    StoreUnavailableError,
)

EXIT_ERROR: Final = 1
EXIT_USAGE: Final = 2
EXIT_NOT_FOUND: Final = 3
EXIT_UNAVAILABLE: Final = 4
EXIT_FORBIDDEN: Final = 5
EXIT_CODES: Final = {
    0: "done; of a command that waits for a run: it has succeeded",
    EXIT_ERROR: "refused, or found something wrong; of a command that waits for a run: it has failed or was cancelled",
    EXIT_USAGE: "an option, a filter or a setting is wrong",
    EXIT_NOT_FOUND: "there is no such run",
    EXIT_UNAVAILABLE: "the database or the HTTP API gives no answer; it may have been done",
    EXIT_FORBIDDEN: "the HTTP API does not know who asks, or does not let them",
    130: "ended by Ctrl-C",
}
_OF_STATUS: Final = {
    400: EXIT_USAGE,
    401: EXIT_FORBIDDEN,
    403: EXIT_FORBIDDEN,
    404: EXIT_NOT_FOUND,
    503: EXIT_UNAVAILABLE,
}


class Commands(click.Group):
    """A group whose errors are one line with a hint; the trace only with ROMANCY_LOG__LEVEL=DEBUG."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RomancyError as error:
            if os.environ.get("ROMANCY_LOG__LEVEL") == "DEBUG":
                raise
            reason = error.told if isinstance(error, ProblemError) else error.reason
            click.echo(f"error ({reason}): {error.message}", err=True)
            if error.hint:
                click.echo(f"hint: {error.hint}", err=True)
            sys.exit(exit_code(error))
        except KeyboardInterrupt:
            sys.exit(130)


def exit_code(error: RomancyError) -> int:
    """What a command ends with that met this error."""
    match error:
        case ProblemError():
            return _OF_STATUS.get(error.status, EXIT_ERROR)
        case SettingsError() | FilterError():
            return EXIT_USAGE
        case RunNotFoundError() | DeadLetterNotFoundError():
            return EXIT_NOT_FOUND
        case StoreUnavailableError():
            return EXIT_UNAVAILABLE
        case _:
            return EXIT_ERROR


@click.group(cls=Commands)
@click.version_option(package_name="romancy")
def main() -> None:
    """Durable workflows in ordinary Python, on Kubernetes and PostgreSQL."""


@main.command()
def operator() -> None:
    """Run the engine: worker and gateway in every process, control in the one that leads.

    Options come from the environment (docs/reference/settings.md): ROMANCY_WORKFLOWS names the modules,
    ROMANCY_DATABASE__URL or DATABASE_URL the database. SIGTERM drains.
    """
    with_fixed_hash_seed()
    from romancy.cli import serve

    sys.exit(asyncio.run(serve.run()))


@main.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--database-url", envvar="DATABASE_URL", help="PostgreSQL to use; default: one of its own, kept in .romancy/"
)
@click.option("--run", "workflow", help="Start a run of this workflow at once.")
@click.option("-i", "--input", "text", default="{}", help="Its input, as a JSON object.")
@click.option(
    "--reload/--no-reload", default=True, show_default=True, help="Start anew when a .py file beside FILE is saved."
)
@click.option(
    "--port", default=8080, show_default=True, help="Of HTTP, on loopback alone; another one if this is taken."
)
def dev(file: Path, database_url: str | None, workflow: str | None, text: str, reload: bool, port: int) -> None:
    """Run the workflows of FILE on this machine: a PostgreSQL of its own, a worker, no Kubernetes.

    Prints one line a change of state. Ctrl-C stops; runs go on at the next start.
    """
    with_fixed_hash_seed()
    from romancy.cli import dev as development

    options.json_object(text)
    running = development.run(file, database_url, workflow=workflow, text=text, reload=reload, port=port)
    sys.exit(asyncio.run(running))


@main.command("dev-worker", hidden=True)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--database-url", required=True)
@click.option("--port", required=True, type=int)
def dev_worker(file: Path, database_url: str, port: int) -> None:
    """The worker process of `romancy dev`."""
    from romancy.cli import dev as development

    sys.exit(asyncio.run(development.work(file, database_url, port)))


@main.command("dev-replayer", hidden=True)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--database-url", required=True)
def dev_replayer(file: Path, database_url: str) -> None:
    """The second process of `romancy dev`: replays what has come to rest."""
    from romancy.cli import replay

    sys.exit(asyncio.run(replay.watch(file, database_url)))


@main.group("runs")
def runs_group() -> None:
    """Find runs: `romancy list` does the same."""


@main.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def check(paths: tuple[Path, ...], form: str) -> None:
    """Find in the workflows of PATHS (files or folders) what replay can't bear: clocks, chance, I/O, threads and the like.

    Reads the source and imports nothing. Follows a workflow into the functions that it calls, and stops at activities. A line
    that ends in `# romancy: allow[RULE] why` is let be. Rules: docs/reference/check.md. Exits with 1 if there is a finding,
    2 if a path can't be read.
    """
    from romancy.check import check as find

    found = find(paths)
    if form == "json":
        click.echo(
            json.dumps(
                [
                    {
                        "path": str(each.path),
                        "line": each.line,
                        "column": each.column,
                        "rule": each.rule.name,
                        "what": each.what,
                        "why": each.rule.why,
                        "cure": each.rule.cure,
                        "function": each.within,
                        "workflow": each.workflow,
                    }
                    for each in found
                ],
                indent=2,
            )
        )
    else:
        for each in found:
            click.echo(str(each))
        click.echo(f"{len(found)} found" if found else "nothing that replay can't bear", err=True)
    sys.exit(EXIT_ERROR if found else 0)


@main.command()
@click.argument("modules", nargs=-1, required=True)
@click.option("--database-url", envvar="DATABASE_URL", required=True, help="PostgreSQL that holds the runs.")
@click.option(
    "--sample", default=200, show_default=True, type=click.IntRange(1), help="Newest runs of each workflow to replay."
)
@click.option(
    "--export",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Keep their histories here.",
)
def replay(modules: tuple[str, ...], database_url: str, sample: int, folder: Path | None) -> None:
    """Replay runs of a database against the workflows of MODULES: what would be Blocked is known before it is rolled out.

    Reads only. Prints a line for each run that does not fit. Exits with 1 if there is one. Exported histories hold inputs and
    results; `romancy.testing.replay(workflow, text)` plays one in a test.
    """
    with_fixed_hash_seed()
    from pydantic import SecretStr

    from romancy.base.settings import DatabaseSettings
    from romancy.cli import replay as replays
    from romancy.worker import loader

    async def all_of_them() -> tuple[int, int]:
        played = unfit = 0
        settings = DatabaseSettings(url=SecretStr(database_url))
        async for run, problem in replays.sample(settings, loader.load(modules), count=sample, folder=folder):
            played += 1
            if problem is not None:
                unfit += 1
                click.echo(f"{run.workflow}/{run.name} ({run.phase}, {run.id}): {problem}")
        return played, unfit

    played, unfit = asyncio.run(all_of_them())
    click.echo(f"{played} replayed, {unfit} do not fit" if unfit else f"{played} replayed: all fit", err=True)
    sys.exit(EXIT_ERROR if unfit else 0)


for command in (*runs.COMMANDS, *engine.COMMANDS, database.db):
    main.add_command(command)
runs_group.add_command(runs.list_runs)
_purge = copy.copy(database.purge)
_purge.hidden = True  # its former name
runs_group.add_command(_purge)


def with_fixed_hash_seed(execute: Callable[..., Any] = os.execve) -> None:
    """Start this process anew with PYTHONHASHSEED=0: sets of strings then iterate alike wherever a run is replayed."""
    if _is_hash_random() and "ROMANCY_HASHSEED_SET" not in os.environ:
        environment = {**os.environ, "PYTHONHASHSEED": "0", "ROMANCY_HASHSEED_SET": "1"}
        execute(sys.executable, [sys.executable, "-m", "romancy", *sys.argv[1:]], environment)


def _is_hash_random() -> bool:
    return bool(sys.flags.hash_randomization)
