"""Each command, against the database and against the HTTP API: what it prints, and what it ends with."""

import asyncio
import json
import os
import sys
from uuid import uuid4

import asyncpg
import pytest
import yaml

from romancy.model.event import CloudEvent
from romancy.model.run import Phase
from romancy.model.shown import run_as_json
from tests.cli.conftest import Cli
from tests.cli.flows import BANK
from tests.gateway.conftest import until

CHARGE = ("run", "cli_charge", "-i", '{"order":"7"}', "--id", "c1")
WAIT = ("run", "cli_wait", "-i", '{"order":"7"}', "--id", "w1", "--no-wait")


async def phase(cli: Cli, name: str, phase: Phase) -> None:
    await until(cli.app.handle(name).info, lambda run: run.phase is phase)


async def test_a_run_prints_its_output_and_nothing_else(cli: Cli) -> None:
    done = await cli(*CHARGE, "-l", "team=post", "--priority", "3", "--timeout", "1h")

    assert (done.exit_code, done.stdout) == (0, '"paid 7"\n')
    run = await cli.app.handle("c1").info()
    assert done.stderr == f"default/c1 {run.id}\n"
    assert (run.labels["team"], run.priority, run.timeout_seconds) == ("post", 3, 3600)
    assert (await cli(*CHARGE)).stdout == '"paid 7"\n'  # twice is one run
    other = await cli("run", "cli_charge", "-i", '{"order":"8"}', "--id", "c1")
    assert (other.exit_code, other.stdout) == (1, "")
    assert "error (RunExists): run default/c1 exists already with another input\nhint: " in other.stderr


async def test_the_input_may_come_from_stdin(cli: Cli) -> None:
    done = await cli("run", "cli_charge", "-i", "-", "--name", "c1", "-o", "name", input='{"order":"7"}')

    assert done.stdout == "c1\n"
    assert await cli.app.handle("c1").result() == "paid 7"


async def test_a_run_that_fails_is_retried(cli: Cli) -> None:
    BANK["is_away"] = True
    failed = await cli(*CHARGE)
    assert (failed.exit_code, failed.stdout) == (1, "")
    assert failed.stderr.endswith("failed (OSError): the bank is away\n")
    told = await cli.said("why", "c1")
    assert "next: retry it from its last checkpoint: romancy retry c1 -n default\n" in told

    BANK["is_away"] = False
    assert await cli.said("retry", "c1") == "default/c1: goes on from its last checkpoint\n"
    assert (await cli("watch", "c1")).exit_code == 0
    refused = await cli("retry", "c1")
    assert refused.exit_code == 1
    assert refused.stderr == (
        "error (RetryRefused): run default/c1 is Succeeded; only a run that has Failed is retried\nhint: start a new run\n"
    )
    history = await cli.told("history", "c1")
    assert [entry["kind"] for entry in history["entries"]] == ["ActivityFailed", "Retried", "ActivityCompleted"]
    table = await cli.said("history", "c1")
    assert table.splitlines()[0].split() == ["POSITION", "AT", "KIND", "NAME", "VALUE"]
    assert "OSError: the bank is away" in table
    assert [line.split()[4] for line in table.splitlines()[1:]] == ["(ActivityFailed)", "Retried", "ActivityCompleted"]


async def test_the_forms_of_a_run(cli: Cli) -> None:
    await cli(*CHARGE)
    shown = run_as_json(await cli.app.handle("c1").info())

    assert await cli.told("get", "c1") == shown
    assert await cli.told("get", shown["id"]) == shown
    assert await cli.told("get", "default/c1", "-n", "other") == shown
    assert yaml.safe_load(await cli.said("get", "c1", "-o", "yaml")) == shown
    assert await cli.said("get", "c1", "-o", "name") == "c1\n"
    assert (await cli.said("get", "c1")).splitlines()[1].startswith("default    c1    cli_charge  Succeeded  ")
    assert (await cli.said("get", "c1", "-o", "wide")).splitlines()[0].split()[-4:] == [
        "WORKER",
        "REASON",
        "WHY",
        "NEXT",
    ]
    assert await cli.told("list") == {"runs": [shown], "next": None}
    assert await cli.told("get") == {"runs": [shown], "next": None}
    assert await cli.said("list", "-A", "-o", "name") == "default/c1\n"
    assert await cli.told("list", "-n", "other") == {"runs": [], "next": None}
    assert await cli.told("list", "--workflow", "cli_wait") == {"runs": [], "next": None}
    assert await cli.told("list", "--input-at", "order=7", "--phase", "succeeded") == {"runs": [], "next": None}
    assert await cli.told("list", "--input-at", 'order="7"', "--created-after", "1h") == {"runs": [shown], "next": None}


async def test_pages(cli: Cli) -> None:
    for nth in range(3):
        await cli.said("run", "cli_sleep", "-i", '{"seconds":0}', "--id", f"s{nth}")

    first = await cli("list", "--limit", "2", "-o", "name")
    token = first.stderr.removeprefix("more: --page ").strip()

    assert first.stdout == "s2\ns1\n"
    assert await cli.said("list", "--limit", "2", "-o", "name", "--page", token) == "s0\n"
    wrong = await cli("list", "--page", "x")
    assert (wrong.exit_code, wrong.stderr.partition(":")[0]) == (2, "error (FilterInvalid)")


async def test_an_event_wakes_who_waits_for_it(cli: Cli) -> None:
    await cli.said(*WAIT)
    await phase(cli, "w1", Phase.WAITING)
    why = await cli.said("why", "w1")
    assert why.startswith(
        "Waiting (WaitingForEvent)\nwaiting for event cli.paid (order='7')\nnext: nothing: it goes on "
    )

    sent = await cli.told("events", "send", "cli.paid", "-d", '{"order":"7"}', "--id", "e1", "--subject", "x")
    again = await cli.said("events", "send", "cli.paid", "-d", '{"order":"7"}', "--id", "e1", "--subject", "x")

    assert (sent["id"], sent["runs"], sent["duplicate"]) == ("e1", 1, False)
    assert again == "e1: 0 runs got it (it had come before)\n"
    assert await cli.app.handle("w1").result() == {"order": "7"}


async def test_an_event_to_one_run(cli: Cli) -> None:
    await cli.said(*WAIT)
    await phase(cli, "w1", Phase.WAITING)

    told = await cli("events", "send", "cli.paid", "-d", "-", "--to", "w1", input='{"order":"7"}')
    assert told.stdout.endswith(": 1 run got it\n")
    assert await cli.app.handle("w1").result() == {"order": "7"}
    nobody = await cli("events", "send", "cli.paid", "--to", "nobody")
    assert nobody.exit_code == 3


async def test_suspend_resume_cancel(cli: Cli) -> None:
    await cli.said(*WAIT)
    await phase(cli, "w1", Phase.WAITING)

    assert await cli.said("suspend", "w1") == "default/w1: is suspended\n"
    await phase(cli, "w1", Phase.SUSPENDED)
    assert "next: resume it: romancy resume w1 -n default" in await cli.said("why", "w1")
    assert await cli.said("resume", "w1") == "default/w1: goes on\n"
    await phase(cli, "w1", Phase.WAITING)
    assert await cli.said("cancel", "w1", "-m", "not wanted") == "default/w1: is asked to end\n"
    watched = await cli("watch", "w1")
    assert watched.exit_code == 1
    assert "not wanted" in watched.stdout
    assert await cli.said("cancel", "w1") == "default/w1: nothing to cancel: it is Cancelled\n"


async def test_a_run_that_is_watched_is_printed_when_it_changes(cli: Cli) -> None:
    """Each line at once, also into a pipe."""
    await cli.said(*WAIT)
    await phase(cli, "w1", Phase.WAITING)
    watching = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "romancy", "get", "w1", "-w", "-o", "json"),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **cli.environment},
        stdout=asyncio.subprocess.PIPE,
    )
    assert watching.stdout is not None
    async with asyncio.timeout(20):
        first = await watching.stdout.readline()
        await cli.app.send_event("cli.paid", {"order": "7"})
        rest, _ = await watching.communicate()

    phases = [json.loads(line)["phase"] for line in (first, *rest.splitlines())]
    assert (phases[0], phases[-1]) == ("Waiting", "Succeeded")
    assert watching.returncode == 0


async def test_who_is_there(cli: Cli) -> None:
    [worker] = (await cli.told("workers"))["workers"]
    workflows = (await cli.told("workflows"))["workflows"]

    assert (worker["name"], worker["workflows"]) == ("w", ["cli_charge", "cli_sleep", "cli_wait"])
    assert [each["name"] for each in workflows] == ["cli_charge", "cli_sleep", "cli_wait"]
    assert (await cli.said("workers")).splitlines()[1].split()[1:4] == ["w", "default", "alive"]
    assert (await cli.said("workflows", "-o", "name")).split() == ["cli_charge", "cli_sleep", "cli_wait"]


async def test_a_run_that_nobody_can_take_says_so(cli: Cli) -> None:
    started = await cli("run", "cli_chrage", "--id", "x1", "--no-wait")

    assert "warning (WorkflowNotRegistered): no worker has workflow 'cli_chrage'" in started.stderr
    assert "did you mean cli_charge?" in started.stderr
    assert await cli.said("why", "x1") == (
        "Pending (WorkflowNotRegistered)\nno live worker has workflow 'cli_chrage': near names are 'cli_charge'\n"
        "next: start a worker that has workflow 'cli_chrage', or cancel the run and start it under the right name\n"
    )


@pytest.mark.parametrize("command", ["get", "why", "history", "watch", "cancel", "suspend", "resume", "retry"])
async def test_a_run_that_is_not_there(cli: Cli, command: str) -> None:
    done = await cli(command, "nobody")

    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr.startswith("error (RunNotFound): ")
    assert done.stderr.count("\n") == 2  # the error, and the hint


async def test_a_doctor_finds_nothing(cli: Cli) -> None:
    done = await cli("doctor", "--kubeconfig", "/nowhere")

    assert done.exit_code == 0, done.stdout
    assert "wrong" not in done.stdout
    assert "1 live" in done.stdout


async def test_dead_letters_are_listed_sent_again_and_given_up(cli: Cli) -> None:
    connection = await asyncpg.connect(
        cli.app.store.settings.url.get_secret_value(), server_settings={"search_path": "romancy"}
    )
    for nth in range(3):
        await connection.execute(
            "insert into dead_letter (run_id, namespace, at, attempts, failure, payload) values ($1, $2, now(), 3, $3, $4)",
            uuid4(),
            "default" if nth else "other",
            "503 Service Unavailable",
            CloudEvent(id=str(nth), source="/s", type="shop.emitted").as_text(),
        )
    await connection.close()

    page = await cli.told("dead-letters", "list", "--limit", "1")
    [newest] = page["deadLetters"]
    rest = await cli.told("dead-letters", "list", "--page", str(page["next"]))
    everywhere = await cli.told("dead-letters", "list", "-A")
    table = (await cli.said("dead-letters", "list")).splitlines()
    assert [newest["event"]["id"], *[each["event"]["id"] for each in rest["deadLetters"]]] == ["2", "1"]
    assert (rest["next"], len(everywhere["deadLetters"])) == (None, 3)
    assert table[0].split() == ["ID", "NAMESPACE", "RUN", "TYPE", "DIED", "ATTEMPTS", "WHY"]
    assert "503 Service Unavailable" in table[1]

    other = str(everywhere["deadLetters"][-1]["id"])
    gone = await cli("dead-letters", "delete", other)
    assert gone.exit_code == 3
    assert "error (DeadLetterNotFound)" in gone.stderr
    assert await cli.said("dead-letters", "delete", other, "-A") == ""
    assert await cli.said("dead-letters", "resend", str(newest["id"])) == ""
    assert [each["event"]["id"] for each in (await cli.told("dead-letters", "list", "-A"))["deadLetters"]] == ["1"]
