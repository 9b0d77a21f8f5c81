"""`romancy`: every command, its help and its exit code."""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
from pydantic import SecretStr

from romancy.cli import database
from romancy.cli.options import duration, json_or_text, pair, time
from romancy.errors import FilterError, RomancyError, SettingsError
from romancy.model.run import Phase

EXIT_ERROR = 1
EXIT_USAGE = 2


class Commands(click.Group):
    """A group whose errors are one line with a hint; the trace only with ROMANCY_LOG__LEVEL=DEBUG."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RomancyError as error:
            if os.environ.get("ROMANCY_LOG__LEVEL") == "DEBUG":
                raise
            click.echo(f"error ({error.reason}): {error.message}", err=True)
            if error.hint:
                click.echo(f"hint: {error.hint}", err=True)
            sys.exit(EXIT_USAGE if isinstance(error, SettingsError | FilterError) else EXIT_ERROR)


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

    sys.exit(
        asyncio.run(
            development.run(file, database_url, workflow=workflow, text=_object(text), reload=reload, port=port)
        )
    )


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


@main.command()
@click.argument("workflow")
@click.option("-i", "--input", "text", default="{}", help="The input, as a JSON object.")
@click.option("--id", "name", help="Name of the run; starting it twice is one run.")
@click.option("-n", "--namespace", default="default", show_default=True)
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait for its end and print its output.")
def run(workflow: str, text: str, name: str | None, namespace: str, wait: bool) -> None:
    """Start a run of WORKFLOW in the database of DATABASE_URL, or of `romancy dev` in this folder.

    Prints the id, then the output. Exits with 1 if the run fails.
    """
    from romancy.cli import runs

    sys.exit(asyncio.run(runs.start(workflow, _object(text), name=name, namespace=namespace, wait=wait)))


@main.group()
def runs() -> None:
    """The runs in the database of DATABASE_URL, or of `romancy dev` in this folder: find them, and delete old ones."""


_NAMESPACE = click.option("-n", "--namespace", default="default", show_default=True)
_ALL_NAMESPACES = click.option("-A", "--all-namespaces", is_flag=True, help="In all namespaces.")


@runs.command("list")
@_NAMESPACE
@_ALL_NAMESPACES
@click.option("-w", "--workflow", help="Of this workflow.")
@click.option("--phase", "phases", multiple=True, type=click.Choice(list(Phase), case_sensitive=False))
@click.option(
    "-l",
    "--label",
    "labels",
    multiple=True,
    type=pair,
    metavar="NAME=VALUE",
    help="With this label; each that is given.",
)
@click.option("--name", "name_part", help="With this in their name.")
@click.option("--id", "id_prefix", help="Whose id begins so.")
@click.option("--created-after", type=time, help="A time, or a duration: so long ago.")
@click.option("--created-before", type=time)
@click.option("--finished-after", type=time)
@click.option("--finished-before", type=time)
@click.option("-i", "--input", "part", help="Whose input contains this JSON object.")
@click.option(
    "--input-at",
    "at",
    multiple=True,
    type=pair,
    metavar="PATH=VALUE",
    help="With this value at a path of the input, as in order.id=7.",
)
@click.option("--limit", default=50, show_default=True, help="Runs of a page, 1 to 1000.")
@click.option("--page", "after", metavar="TOKEN", help="The page after the one that gave this token.")
@click.option("-o", "--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def list_runs(
    namespace: str,
    all_namespaces: bool,
    labels: tuple[tuple[str, str], ...],
    part: str | None,
    at: tuple[tuple[str, str], ...],
    form: str,
    **filters: Any,
) -> None:
    """Runs, newest first; all that is given must hold. Prints a page, and the token of the next."""
    from romancy.cli import runs

    filters["labels"] = dict(labels)
    filters["input"] = None if part is None else json.loads(_object(part))
    filters["input_at"] = {path: json_or_text(text) for path, text in at}
    asyncio.run(runs.show("*" if all_namespaces else namespace, form, filters))


@runs.command("purge")
@click.option("--older-than", required=True, type=duration, help="Since their end, as in 30d; at least 10m.")
@click.option(
    "--phase",
    "phases",
    multiple=True,
    type=click.Choice([phase for phase in Phase if phase.is_done], case_sensitive=False),
    help="Default: all three.",
)
@_NAMESPACE
@_ALL_NAMESPACES
@click.option("-w", "--workflow", help="Of this workflow.")
@click.option("--dry-run", is_flag=True, help="Only count.")
def purge_runs(
    older_than: timedelta,
    phases: tuple[str, ...],
    namespace: str,
    all_namespaces: bool,
    workflow: str | None,
    dry_run: bool,
) -> None:
    """Delete ended runs with their history, in small transactions beside all that goes on. It can't be taken back.

    A run whose WorkflowRun is there stays. Prints how many by outcome. Afterwards their names are free.
    """
    from romancy.cli import runs

    asked = phases or tuple(phase for phase in Phase if phase.is_done)
    where = "*" if all_namespaces else namespace
    asyncio.run(runs.purge(where, workflow, asked, older_than, dry_run=dry_run))


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


main.add_command(database.db)


def _object(text: str) -> str:
    """A JSON object, as it was given."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"the input is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise click.UsageError(f"the input must be a JSON object, not {type(value).__name__}")
    return text


def with_fixed_hash_seed(execute: Callable[..., Any] = os.execve) -> None:
    """Start this process anew with PYTHONHASHSEED=0: sets of strings then iterate alike wherever a run is replayed."""
    if _is_hash_random() and "ROMANCY_HASHSEED_SET" not in os.environ:
        environment = {**os.environ, "PYTHONHASHSEED": "0", "ROMANCY_HASHSEED_SET": "1"}
        execute(sys.executable, [sys.executable, "-m", "romancy", *sys.argv[1:]], environment)


def _is_hash_random() -> bool:
    return bool(sys.flags.hash_randomization)
