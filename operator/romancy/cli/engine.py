"""The engine on the command line: who executes runs, and whether all is in order."""

import sys
from typing import Any, Final

import click

from romancy.cli import options, output
from romancy.cli.backend import Reach


@click.command()
@options.output
@options.asking
def workers(form: str, reach: Reach) -> None:
    """Who executes runs."""
    with reach.backend() as backend:
        found = backend.workers()
    output.show(form, found, output.WORKER_COLUMNS, wide=output.WORKER_WIDE, whole={"workers": found})


@click.command()
@options.output
@options.asking
def workflows(form: str, reach: Reach) -> None:
    """What live workers have."""
    with reach.backend() as backend:
        found = backend.workflows()
    output.show(form, found, output.WORKFLOW_COLUMNS, whole={"workflows": found})


@click.command()
@options.namespace
@click.option("--kubeconfig", type=click.Path(dir_okay=False), help="Default: $KUBECONFIG or ~/.kube/config.")
@click.option("-o", "--output", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@options.asking
def doctor(namespace: str, kubeconfig: str | None, form: str, reach: Reach) -> None:
    """Look whether all is in order: the database, its schema and clock, workers, the HTTP API, Kubernetes.

    What is not named anywhere is not looked at. A line for each with what to do. Exits with 1 if something is wrong.
    """
    from romancy.cli import doctor as looks

    found = list(looks.look(reach, namespace=namespace, kubeconfig=kubeconfig))
    if form == "json":
        output.say_data(form, {"findings": [each.as_json() for each in found]})
    else:
        for each in found:
            sign = click.style("ok   ", fg="green") if each.is_ok else click.style("wrong", fg="red")
            click.echo(f"{sign} {each.what}: {each.found}" + (f"\n      do: {each.advice}" if not each.is_ok else ""))
    sys.exit(0 if all(each.is_ok for each in found) else 1)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the code that completes commands in SHELL, as for `source <(romancy completion bash)`."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    root: Any = context.find_root()
    click.echo(kind(root.command, {}, "romancy", "_ROMANCY_COMPLETE").source())


@click.group("dead-letters")
def dead_letters() -> None:
    """Events that runs have emitted and no sink has taken."""


@dead_letters.command("list")
@options.namespace
@options.all_namespaces
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 999), help="Of a page.")
@click.option("--page", type=click.IntRange(1), metavar="TOKEN", help="The page after the one that gave this token.")
@options.output
@options.asking
def list_dead_letters(
    namespace: str, all_namespaces: bool, limit: int, page: int | None, form: str, reach: Reach
) -> None:
    """Dead letters, newest first. Prints a page, and the token of the next."""
    with reach.backend() as backend:
        found = backend.dead_letters(None if all_namespaces else namespace, limit=limit, page=page)
    output.show(form, found["deadLetters"], output.LETTER_COLUMNS, whole=found, name=lambda letter: str(letter["id"]))
    if found["next"] is not None and form not in {"json", "yaml"}:
        click.echo(f"more: --page {found['next']}", err=True)


@dead_letters.command("resend")
@click.argument("ids", nargs=-1, required=True, type=click.IntRange(1), metavar="ID...")
@options.namespace
@options.all_namespaces
@options.asking
def resend_dead_letters(ids: tuple[int, ...], namespace: str, all_namespaces: bool, reach: Reach) -> None:
    """Have ID delivered again, behind what its run has emitted since."""
    with reach.backend() as backend:
        for number in ids:
            backend.resend_dead_letter(None if all_namespaces else namespace, number)
            click.echo(f"dead letter {number}: it is sent again", err=True)


@dead_letters.command("delete")
@click.argument("ids", nargs=-1, required=True, type=click.IntRange(1), metavar="ID...")
@options.namespace
@options.all_namespaces
@options.asking
def delete_dead_letters(ids: tuple[int, ...], namespace: str, all_namespaces: bool, reach: Reach) -> None:
    """Give ID up: it is deleted."""
    with reach.backend() as backend:
        for number in ids:
            backend.delete_dead_letter(None if all_namespaces else namespace, number)
            click.echo(f"dead letter {number}: deleted", err=True)


COMMANDS: Final = (workers, workflows, dead_letters, doctor, completion)
