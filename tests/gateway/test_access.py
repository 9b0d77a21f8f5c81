"""Who may do what where no cluster says it: tokens with roles, rates, pages of others."""

from pathlib import Path

import pytest
from aiohttp import ClientSession

from romancy import App
from romancy.base.clock import SystemClock
from romancy.base.settings import DatabaseSettings, WorkerSettings
from romancy.errors import SettingsError, TooManyRequestsError
from romancy.gateway import server
from romancy.gateway.access import ENGINES, EVENTS, RUNS, Open, Rates, Remembered, Tokens, read_tokens, tokens_of
from romancy.model.access import Caller, Right
from tests.gateway.conftest import LOCAL, Api
from tests.gateway.flows import WORKFLOWS

FILE = """
- {name: ada, token: token-of-ada-0123456789, role: Operator, namespaces: [shop]}
- {name: bob, token: token-of-bob-0123456789, role: Viewer}
- {name: broker, token: token-of-broker-0123456, role: Sender}
"""


class JumpingClock(SystemClock):
    """Stands still until it jumps."""

    seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def jump(self, seconds: float) -> None:
        self.seconds += seconds


async def test_what_a_role_allows_in_its_namespaces(tmp_path: Path) -> None:
    (tmp_path / "tokens.yaml").write_text(FILE)
    tokens = Tokens(read_tokens(str(tmp_path / "tokens.yaml")))
    callers = {
        name: await tokens.identify(f"token-of-{name}-0123456{'' if name == 'broker' else '789'}")
        for name in ("ada", "bob", "broker")
    }
    rights = {
        "start in shop": Right("create", RUNS, "shop"),
        "start in bank": Right("create", RUNS, "bank"),
        "see shop": Right("get", RUNS, "shop"),
        "see all": Right("list", RUNS),
        "workers": Right("get", ENGINES, "romancy"),
        "events": Right("create", EVENTS, "romancy"),
    }
    seen = {
        name: {what for what, right in rights.items() if caller and await tokens.may(caller, right)}
        for name, caller in callers.items()
    }

    assert seen == {
        "ada": {"start in shop", "see shop", "workers"},
        "bob": {"see shop", "see all", "workers"},
        "broker": {"events"},
    }
    assert await tokens.identify("token-of-eve-0123456789") is None
    assert not await tokens.may(Caller("eve"), rights["see shop"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: b", "element 0 is no token"),
        ("[{name: x, token: abc, role: Viewer}]", "has 3 characters"),
        ("[{name: x, token: aaaaaaaaaaaaaaaaaaaaaa, role: King}]", "role 'King'"),
        ("[{name: x, token: aaaaaaaaaaaaaaaaaaaaaa}]", "element 0 is no token"),
        ("[{name: x, token: aaaaaaaaaaaaaaaaaaaaaa, role: Viewer, what: y}]", "element 0 is no token"),
        ("[{name: x, token: aaaaaaaaaaaaaaaaaaaaaa, role: Viewer}]\n- [", "it is no YAML"),
    ],
)
def test_a_file_that_is_wrong_is_refused_without_its_tokens(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "tokens.yaml").write_text(text)

    with pytest.raises(SettingsError) as refused:
        read_tokens(str(tmp_path / "tokens.yaml"))

    assert said in str(refused.value)
    assert "aaaa" not in str(refused.value) + refused.value.hint


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(SettingsError, match="No such file"):
        read_tokens("/nowhere/tokens.yaml")
    with pytest.raises(SettingsError, match="role 'Boss'"):
        tokens_of({"a-token-that-is-long-enough": "Boss"})


def test_so_many_a_second_and_a_second_s_worth_at_once() -> None:
    clock = JumpingClock()
    rates = Rates(clock, 2)

    rates.take("ada", "too many")
    rates.take("ada", "too many")
    with pytest.raises(TooManyRequestsError) as refused:
        rates.take("ada", "too many")
    rates.take("bob", "too many")

    assert refused.value.retry_after_seconds == pytest.approx(0.5)
    clock.jump(0.5)
    rates.take("ada", "too many")
    with pytest.raises(TooManyRequestsError):
        rates.take("ada", "too many")


class Asked:
    """An authority that counts."""

    def __init__(self) -> None:
        self.asked = 0

    async def identify(self, token: str) -> Caller | None:
        self.asked += 1
        return Caller(token) if token == "good" else None

    async def may(self, caller: Caller, right: Right) -> bool:
        self.asked += 1
        return caller.name == "good"


async def test_answers_are_remembered_for_ten_seconds() -> None:
    clock, authority = JumpingClock(), Asked()
    access = Remembered(authority, clock)
    right = Right("get", RUNS, "shop")

    for _ in range(3):
        assert await access.identify("good") == Caller("good")
        assert await access.identify("bad") is None
        assert await access.may(Caller("good"), right)
    assert authority.asked == 3
    clock.jump(10)
    assert await access.may(Caller("good"), right)
    assert authority.asked == 4


async def test_an_application_that_was_not_told_lets_nobody_in(database: DatabaseSettings) -> None:
    async with (
        App(database, WORKFLOWS, worker=WorkerSettings(name="w")) as app,
        server.serving(app.http(), LOCAL) as port,
        ClientSession(f"http://127.0.0.1:{port}") as session,
    ):
        api = Api(app, session, port, database)
        answers = [await api.ask("GET", "/api/v1/runs"), await api.event(), await api.ask("GET", "/healthz/live")]

        assert [answer.status for answer in answers] == [401, 401, 200]
        assert answers[0].headers["WWW-Authenticate"] == 'Bearer realm="romancy"'
        assert (await api.ask("GET", "/openapi.json")).status == 200


async def test_a_page_of_the_web_can_t_use_a_machine_s_own_api(api: Api) -> None:
    """Without tokens a browser would do what any page tells it to."""
    there = {"Origin": "https://evil.example"}
    here = {"Origin": f"http://127.0.0.1:{api.port}"}
    body = {"workflow": "api_send", "input": {"to": "Ada"}}

    refused = await api.ask("POST", "/api/v1/namespaces/default/runs", json=body, headers=there)
    taken = await api.ask("POST", "/api/v1/namespaces/default/runs", json=body, headers=here)

    assert (refused.status, refused.body["reason"]) == (403, "Forbidden")
    assert taken.status == 201


async def test_a_name_that_leads_here_is_not_this_machine(database: DatabaseSettings) -> None:
    async with App(database, WORKFLOWS, worker=WorkerSettings(name="w")) as app:
        http = app.http(is_open=True)
        http[server.SERVICES].gate._access = Open(only_local=True)
        async with server.serving(http, LOCAL) as port, ClientSession(f"http://127.0.0.1:{port}") as session:
            api = Api(app, session, port, database)
            rebound = await api.ask("GET", "/api/v1/runs", headers={"Host": f"evil.example:{port}"})
            local = await api.ask("GET", "/api/v1/runs", headers={"Host": f"localhost:{port}"})

    assert (rebound.status, local.status) == (403, 200)
