"""Runs on the command line: start, find, watch, explain, change."""

import difflib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import click

from romancy.cli import options, output
from romancy.cli.backend import Backend, Json, Key, Query, Reach
from romancy.errors import RomancyError

PHASES: Final = (
    *("Pending", "Running", "Waiting", "Suspended", "Compensating", "Blocked"),
    *("Succeeded", "Failed", "Cancelled"),
)
"""Those of model/run.py, which is not imported for the help alone: a test compares them."""
ENDED: Final = PHASES[-3:]


def exit_code(run: Json) -> int:
    """Of a command that waits for the end of a run."""
    return 0 if run["phase"] == "Succeeded" else 1


# --- start ------------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("workflow")
@click.option("-i", "--input", "text", default="{}", help="The input, as a JSON object; `-` reads it from stdin.")
@click.option("--id", "--name", "name", help="Name of the run; starting it twice is one run.")
@options.namespace
@click.option("-l", "--label", "labels", multiple=True, type=options.pair, metavar="NAME=VALUE", help="A label of it.")
@click.option("--priority", default=0, show_default=True, help="Higher is taken first.")
@click.option("--delay", type=options.duration, metavar="DURATION", help="Begin so much later, as in 1h30m.")
@click.option("--timeout", type=options.duration, metavar="DURATION", help="Cancel it if it takes longer.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait for its end and print its output.")
@options.output
@options.asking
def run(
    workflow: str,
    text: str,
    name: str | None,
    namespace: str,
    labels: tuple[tuple[str, str], ...],
    priority: int,
    delay: Any,
    timeout: Any,
    wait: bool,
    form: str,
    reach: Reach,
) -> None:
    """Start a run of WORKFLOW, wait for its end, and print its output as JSON.

    In a terminal it is shown as a tree meanwhile. Exits with 1 if the run does not succeed.
    """
    given = options.json_object(sys.stdin.read() if text == "-" else text)
    asked: Json = {"workflow": workflow, "input": given, "name": name, "labels": dict(labels), "priority": priority}
    asked["delaySeconds"] = delay.total_seconds() if delay else None
    asked["timeoutSeconds"] = timeout.total_seconds() if timeout else None
    with reach.backend() as backend:
        _warn_of_unknown(backend, workflow)
        found, _is_new = backend.start(namespace, {key: value for key, value in asked.items() if value is not None})
        click.echo(f"{found['namespace']}/{found['name']} {found['id']}", err=wait or form != "text")
        if wait:
            found = _waited(backend, found)
    if form in {"json", "yaml"}:
        output.say_data(form, found)
    elif form == "name":
        click.echo(found["name"])
    elif wait and found["phase"] == "Succeeded":
        click.echo(json.dumps(found["output"], ensure_ascii=False))
    if wait and found["phase"] != "Succeeded":
        failure = found["failure"]
        named = failure["type"].rpartition(".")[2] if failure else found["reason"]
        message = failure["message"] if failure else found["message"]
        click.echo(f"{found['phase'].lower()} ({named}): {message}", err=True)
        sys.exit(exit_code(found))


def _warn_of_unknown(backend: Backend, workflow: str) -> None:
    try:
        known = {each["name"] for each in backend.workflows() if each["workers"]}
    except RomancyError:
        return  # whoever may start runs need not be allowed to see what there is
    if workflow not in known:
        near = difflib.get_close_matches(workflow, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "start a worker that has it, or correct the name"
        click.echo(
            f"warning (WorkflowNotRegistered): no worker has workflow {workflow!r} ({len(known)} known); {hint}",
            err=True,
        )


def _waited(backend: Backend, run: Json) -> Json:
    key = Key(run["namespace"], run["id"])
    if sys.stderr.isatty():
        from romancy.cli import progress

        return progress.follow(backend, key)
    for state in backend.watch_run(key):
        run = state
    return run


# --- find -------------------------------------------------------------------------------------------------------------


def _filters[**P, R](command: Callable[P, R]) -> Callable[P, R]:
    for option in reversed(
        (
            click.option("--workflow", help="Of this workflow."),
            click.option("--phase", "phases", multiple=True, type=click.Choice(PHASES, case_sensitive=False)),
            click.option(
                "-l",
                "--label",
                "--selector",
                "labels",
                multiple=True,
                type=options.pairs,
                metavar="NAME=VALUE,...",
                help="With these labels; each that is given.",
            ),
            click.option("--name", "name_part", help="With this in their name."),
            click.option("--id", "id_prefix", help="Whose id begins so."),
            click.option("--created-after", type=options.time, help="A time, or a duration: so long ago."),
            click.option("--created-before", type=options.time),
            click.option("--finished-after", type=options.time),
            click.option("--finished-before", type=options.time),
            click.option("-i", "--input", "part", help="Whose input contains this JSON object."),
            click.option(
                "--input-at",
                "at",
                multiple=True,
                type=options.pair,
                metavar="PATH=VALUE",
                help="With this value at a path of the input, as in order.id=7.",
            ),
            click.option("--limit", default=50, show_default=True, help="Runs of a page, 1 to 1000."),
            click.option("--page", "after", metavar="TOKEN", help="The page after the one that gave this token."),
        )
    ):
        command = option(command)
    return command


@click.command("list")
@options.namespace
@options.all_namespaces
@_filters
@click.option("-w", "--watch", is_flag=True, help="Print each again when it changes, until Ctrl-C.")
@options.output
@options.asking
def list_runs(
    namespace: str,
    all_namespaces: bool,
    labels: tuple[dict[str, str], ...],
    part: str | None,
    at: tuple[tuple[str, str], ...],
    watch: bool,
    form: str,
    reach: Reach,
    **filters: Any,
) -> None:
    """Runs, newest first; all that is given must hold. Prints a page, and the token of the next on stderr."""
    filters["labels"] = {name: value for each in labels for name, value in each.items()}
    filters["input"] = _contained(part, at)
    query = Query(
        None if all_namespaces else namespace,
        {name: value for name, value in filters.items() if value not in (None, (), {})},
    )
    with reach.backend() as backend:
        if watch:
            _print_news(backend.watch_runs(query), form, is_of_all=all_namespaces)
            return
        page = backend.runs(query)
    output.show(
        form,
        page["runs"],
        output.RUN_COLUMNS,
        wide=output.RUN_WIDE,
        whole=page,
        name=lambda run: output.name_of(run, is_of_all=all_namespaces),
    )
    if page["next"] is not None and form not in {"json", "yaml"}:
        click.echo(f"more: --page {page['next']}", err=True)


def _contained(part: str | None, at: tuple[tuple[str, str], ...]) -> Json | None:
    """What the input is to contain: the object that is given, and values at paths."""
    given = None if part is None else options.json_object(part)
    if not at:
        return given
    from romancy.model import search

    text = search.input_of(given, {path: options.json_or_text(value) for path, value in at})
    return None if text is None else json.loads(text)


def _print_news(news: Iterator[Json], form: str, *, is_of_all: bool) -> None:
    columns = output.RUN_WIDE if form == "wide" else output.RUN_COLUMNS
    if form in {"text", "wide"}:
        click.echo(output.line([(head, head) for head, _ in columns]))
    for run in news:
        match form:
            case "json":
                click.echo(json.dumps(run, ensure_ascii=False))  # one line each, so that it can be read as it comes
            case "yaml":
                click.echo("---")
                output.say_data(form, run)
            case "name":
                click.echo(output.name_of(run, is_of_all=is_of_all))
            case _:
                click.echo(output.line([(head, of(run)) for head, of in columns]))


@click.command()
@click.argument("names", metavar="[RUN]...", nargs=-1)
@options.namespace
@options.all_namespaces
@click.option("-w", "--watch", is_flag=True, help="Print it again when it changes, until it has ended.")
@options.output
@options.asking
@click.pass_context
def get(
    context: click.Context,
    names: tuple[str, ...],
    namespace: str,
    all_namespaces: bool,
    watch: bool,
    form: str,
    reach: Reach,
) -> None:
    """Runs by name, id or NAMESPACE/NAME; without any, what `romancy list` shows."""
    if not names:
        given = {"namespace": namespace, "all_namespaces": all_namespaces, "watch": watch, "form": form}
        context.invoke(list_runs, **given, server=reach.server, token_file=reach.token_file)
        return
    with reach.backend() as backend:
        if watch:
            if len(names) > 1:
                raise click.UsageError("one run is watched at a time")
            _print_news(backend.watch_run(Key.of(names[0], namespace)), form, is_of_all=False)
            return
        found = [backend.run(Key.of(name, namespace)) for name in names]
    whole: object = found[0] if len(found) == 1 else {"runs": found, "next": None}
    output.show(form, found, output.RUN_COLUMNS, wide=output.RUN_WIDE, whole=whole)


# --- one run ----------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("name", metavar="RUN")
@options.namespace
@options.output
@options.asking
def watch(name: str, namespace: str, form: str, reach: Reach) -> None:
    """Follow RUN until it has ended: in a terminal as a tree, else a line a change (JSON with -o json).

    Exits with 1 if the run does not succeed.
    """
    key = Key.of(name, namespace)
    with reach.backend() as backend:
        run = backend.run(key)
        key = Key(run["namespace"], run["id"])  # another one may take its name meanwhile
        if form == "text" and sys.stdout.isatty():
            from romancy.cli import progress

            run = progress.follow(backend, key)
        else:

            def each() -> Iterator[Json]:
                nonlocal run
                for state in backend.watch_run(key):
                    run = state
                    yield state

            _print_news(each(), form, is_of_all=False)
    sys.exit(exit_code(run))


@click.command()
@click.argument("name", metavar="RUN")
@options.namespace
@options.output
@options.asking
def history(name: str, namespace: str, form: str, reach: Reach) -> None:
    """All that happened to RUN, in order; in parentheses what stands no more since it was retried."""
    with reach.backend() as backend:
        found = backend.history(Key.of(name, namespace))
    entries = output.with_what_stands(found["entries"])
    output.show(form, entries, output.ENTRY_COLUMNS, whole=found, name=lambda entry: str(entry["position"]))


@click.command()
@click.argument("name", metavar="RUN")
@options.namespace
@options.output
@options.asking
def why(name: str, namespace: str, form: str, reach: Reach) -> None:
    """Why RUN does not move, and what comes next or is to be done."""
    with reach.backend() as backend:
        run = backend.run(Key.of(name, namespace))
    told = {key: run[key] for key in ("namespace", "name", "phase", "reason", "message", "next")}
    if form in {"json", "yaml"}:
        output.say_data(form, told)
        return
    word = run["reason"] or run["phase"]
    click.echo(run["phase"] + (f" ({run['reason']})" if run["reason"] else ""))
    click.echo(run["message"].removesuffix(f"; {run['next']}"))
    if run["next"]:
        click.echo(f"next: {run['next']}")
    click.echo(f"more: docs/errors/{word}.md", err=True)


# --- change -----------------------------------------------------------------------------------------------------------


def _change(names: tuple[str, ...], namespace: str, reach: Reach, verb: str, said: str, message: str = "") -> None:
    with reach.backend() as backend:
        for name in names:
            run, is_new = backend.change(Key.of(name, namespace), verb, message)
            word = said if is_new else f"nothing to {verb}: it is {run['phase']}"
            click.echo(f"{run['namespace']}/{run['name']}: {word}")


_NAMES = click.argument("names", metavar="RUN...", nargs=-1, required=True)


@click.command()
@_NAMES
@options.namespace
@click.option("-m", "--message", "--reason", default="", help="Kept with the run and shown in its status.")
@options.asking
def cancel(names: tuple[str, ...], namespace: str, message: str, reach: Reach) -> None:
    """Ask RUN to end: it cleans up, and what it has done is compensated."""
    _change(names, namespace, reach, "cancel", "is asked to end", message)


@click.command()
@_NAMES
@options.namespace
@options.asking
def suspend(names: tuple[str, ...], namespace: str, reach: Reach) -> None:
    """Let running activities of RUN end, and start no new ones until it is resumed."""
    _change(names, namespace, reach, "suspend", "is suspended")


@click.command()
@_NAMES
@options.namespace
@options.asking
def resume(names: tuple[str, ...], namespace: str, reach: Reach) -> None:
    """Let a suspended RUN go on."""
    _change(names, namespace, reach, "resume", "goes on")


@click.command()
@_NAMES
@options.namespace
@options.asking
def retry(names: tuple[str, ...], namespace: str, reach: Reach) -> None:
    """Let a failed RUN go on from its last checkpoint; what had failed has all of its attempts again."""
    _change(names, namespace, reach, "retry", "goes on from its last checkpoint")


@click.group()
def events() -> None:
    """Events, in CloudEvents' form."""


@events.command("send")
@click.argument("type")
@click.option("-d", "--data", help="JSON, or a text if it is none; `-` reads it from stdin.")
@click.option("--to", metavar="RUN", help="To this run alone.")
@click.option("--id", "event_id", help="With its source it names the event: the same pair twice is one event.")
@click.option("--source", default="/romancy/cli", show_default=True)
@click.option("--subject")
@click.option("--time", "at", help="When it happened, as in 2026-01-31T12:00:00Z; default: now.")
@options.namespace
@options.output
@options.asking
def send_event(
    type: str,
    data: str | None,
    to: str | None,
    event_id: str | None,
    source: str,
    subject: str | None,
    at: str | None,
    namespace: str,
    form: str,
    reach: Reach,
) -> None:
    """Send an event of TYPE to the runs that wait for it; returns when it is stored and with them."""
    from uuid import uuid4

    from romancy.cli.backend import event_of

    text = sys.stdin.read() if data == "-" else data
    if at is not None:
        at = options.time(at).isoformat()
    event = event_of(type, text, id=event_id or str(uuid4()), source=source, subject=subject, time=at)
    with reach.backend() as backend:
        told = backend.send_event(event, None if to is None else Key.of(to, namespace))
    if form in {"json", "yaml"}:
        output.say_data(form, told)
        return
    again = " (it had come before)" if told["duplicate"] else ""
    began = f", {told['started']} begun by it" if told["started"] else ""
    click.echo(f"{told['id']}: {told['runs']} run{'' if told['runs'] == 1 else 's'} got it{began}{again}")


COMMANDS: Final = (run, list_runs, get, watch, history, why, cancel, suspend, resume, retry, events)
