"""`romancy check`: each rule finds the wrong form and lets the right one be; what is reached, and what is not."""

import json
import textwrap
from pathlib import Path

import pytest

from romancy.check import RULES, Finding, check
from romancy.errors import SettingsError
from tests.cli.test_main import ROOT, romancy

WRONG = {
    "clock": [
        "import time; time.time()",
        "from datetime import datetime as d; d.now()",
        "import time; map(time.time, [])",
    ],
    "sleep": ["import time; time.sleep(1)"],
    "chance": ["import random; random.random()", "from uuid import uuid4; uuid4()", "import random; random.Random()"],
    "io": [
        "open('f')",
        "from pathlib import Path; Path('f').read_text()",
        "import httpx; await httpx.AsyncClient().get('u')",
        "import urllib.request; urllib.request.urlopen('u')",
    ],
    "output": ["print('x')", "log.info('x')", "import logging; logging.warning('x')"],
    "environment": [
        "import os; os.environ['A']",
        "import os; os.environ.get('A')",
        "from os import getenv; getenv('A')",
    ],
    "threads": [
        "import asyncio; await asyncio.to_thread(len, [])",
        "loop.run_in_executor(None, len)",
        "import threading; threading.Thread()",
    ],
    "loop": ["import asyncio; asyncio.run(None)"],
    "set-order": [
        "for x in {'a', 'b'}: pass",
        "[x for x in set(names)]",
        "for x in list({'a'} | names): pass",
        "own = {'a'}\nfor x in own: pass",
        "own: set[str] = names; [x for x in own]",
    ],
    "foreign-await": ["import trio; await trio.sleep(1)", "from library import fetch; await fetch('x')"],
    "bare-coroutines": [
        "import asyncio; asyncio.as_completed([f(1), f(2)])",
        "import asyncio; await asyncio.wait(f(n) for n in names)",
    ],
    "global-state": ["global counter"],
}
RIGHT = [
    "ctx.now()",
    "import asyncio; await asyncio.sleep(1)",
    "ctx.random.random(); ctx.uuid4()",
    "import random; random.Random(names).random()",
    "ctx.logger.info('x')",
    "for x in sorted({'a', 'b'}): pass",
    "'a' in {'a', 'b'}; len(set(names))",
    "import asyncio; asyncio.as_completed([asyncio.create_task(f(n)) for n in names])",
    "from datetime import datetime, timedelta; ctx.now() + timedelta(1); datetime(2026, 1, 1)",
    "time = names; time.sleep(1)",
    "from pathlib import Path; Path('a') / 'b'",
    "from datetime import datetime; x: datetime = ctx.now()",
    "def later() -> 'datetime.now': pass",
]


HELPERS = """import time

from romancy import activity


def stamp():
    return inner()


def inner():
    return time.time()


def unused():
    return time.time()


@activity
async def saved() -> float:
    return time.time()


@saved.compensate
async def undo(result: float) -> None:
    time.time()
"""


def written(folder: Path, body: str, *, rest: str = "") -> Path:
    """A file with one workflow of that body."""
    lines = "\n".join(
        f"    {line}" for part in body.split("\n") for line in ([part] if ": pass" in part else part.split("; "))
    )
    file = folder / "shop.py"
    file.write_text(
        "import logging\n\nfrom romancy import activity, workflow\n\nlog = logging.getLogger(__name__)\ncounter = 0\n\n\n"
        f"{textwrap.dedent(rest)}\n\n@workflow\nasync def order(ctx, names, f, loop):\n{lines}\n"
    )
    return file


def rules_of(found: list[Finding]) -> set[str]:
    return {each.rule.name for each in found}


@pytest.mark.parametrize(("rule", "body"), [(rule, body) for rule, bodies in WRONG.items() for body in bodies])
def test_the_wrong_form_is_found(tmp_path: Path, rule: str, body: str) -> None:
    found = check([written(tmp_path, body)])

    assert rules_of(found) == {rule}
    assert all(each.workflow == each.within == "order" for each in found)


@pytest.mark.parametrize("body", RIGHT)
def test_the_right_form_is_let_be(tmp_path: Path, body: str) -> None:
    assert check([written(tmp_path, body)]) == []


def test_each_rule_has_samples_and_a_line_in_the_reference() -> None:
    page = (ROOT / "docs/reference/check.md").read_text()

    assert set(WRONG) == {rule.name for rule in RULES}
    assert [rule.name for rule in RULES if f"| `{rule.name}` |" not in page] == []


def test_a_finding_says_where_why_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [found] = check([written(tmp_path, "import time\nx = 1 + time.time()")])

    assert str(found) == (
        "shop.py:14:13: clock: time.time(): it is another time at each replay; use ctx.now(), the run's own clock "
        "(workflow order)"
    )


def test_what_a_workflow_calls_is_followed_up_to_activities(tmp_path: Path) -> None:
    (tmp_path / "helpers.py").write_text(HELPERS)
    found = check([written(tmp_path, "import helpers; helpers.stamp(); await helpers.saved(); helpers.undo(1.0)")])

    [one] = found
    assert (one.path.name, one.rule.name, one.within, one.workflow) == ("helpers.py", "clock", "inner", "order")
    assert "(workflow order through inner)" in str(one)


def test_relative_imports_of_a_package_are_followed(tmp_path: Path) -> None:
    package = tmp_path / "flows"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "clock.py").write_text("import time\n\n\ndef stamp():\n    return time.time()\n")
    (package / "shop.py").write_text(
        "from romancy import workflow as flow\n\nfrom .clock import stamp\n\n\n@flow(name='w')\nasync def w():\n    stamp()\n"
    )

    assert [each.path.name for each in check([package])] == ["clock.py"]


def test_functions_that_call_each_other_are_walked_once(tmp_path: Path) -> None:
    rest = "def even(n):\n    return n == 0 or odd(n - 1)\n\n\ndef odd(n):\n    print(n)\n    return n != 0 and even(n - 1)\n"

    assert rules_of(check([written(tmp_path, "even(3)", rest=rest)])) == {"output"}


def test_a_line_is_let_be_for_a_reason_only(tmp_path: Path) -> None:
    allowed = written(tmp_path, "print('x')  # romancy: allow[output] seen by nobody")
    assert check([allowed]) == []
    assert rules_of(check([written(tmp_path, "print('x')  # romancy: allow[output]")])) == {"output"}
    assert rules_of(check([written(tmp_path, "print('x')  # romancy: allow[clock] another rule")])) == {"output"}
    assert check([written(tmp_path, "print(\n'x'\n)  # romancy: allow[output] at its end")]) == []
    with pytest.raises(SettingsError, match="no rule 'clok'"):
        check([written(tmp_path, "print('x')  # romancy: allow[clok] misspelt")])


def test_ones_own_functions_are_not_taken_for_pythons(tmp_path: Path) -> None:
    assert check([written(tmp_path, "open('door')", rest="def open(what):\n    return what\n")]) == []


def test_the_workflows_of_this_repository_can_be_replayed() -> None:
    assert check([ROOT / "workflows", ROOT / "tools/demo_workflows.py", ROOT / "bench/flows.py"]) == []


@pytest.mark.parametrize(("name", "text"), [("gone.py", None), ("broken.py", "def ("), ("binary.py", "\0")])
def test_what_can_not_be_read_is_said(tmp_path: Path, name: str, text: str | None) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)

    with pytest.raises(SettingsError, match=name):
        check([tmp_path / name])


def test_the_command(tmp_path: Path) -> None:
    wrong = written(tmp_path, "print('x')")

    done = romancy("check", str(wrong))
    assert (done.returncode, done.stdout.count("output: print()")) == (1, 1)
    assert done.stderr == "1 found\n"
    [found] = json.loads(romancy("check", "--format", "json", str(wrong)).stdout)
    assert (found["rule"], found["line"], found["workflow"]) == ("output", 13, "order")

    clean = romancy("check", "workflows")
    assert (clean.returncode, clean.stdout) == (0, "")
    assert romancy("check", str(tmp_path / "none.py")).returncode == 2
