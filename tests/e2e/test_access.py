"""Who may do what over HTTP is the cluster's to say: service accounts and roles of a real API server, seen from outside."""

import base64
import json
import re
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from romancy.gateway import access
from tests.chaos.fleet import Fleet
from tests.controlplane.plane import ControlPlane
from tests.e2e.kubernetes import Kubernetes

pytestmark = [pytest.mark.slow, pytest.mark.kube]

LOOK = ["get", "list", "watch"]
CHANGE = ["create", "patch"]
EVENT = {"specversion": "1.0", "id": "1", "source": "/s", "type": "nobody.waits"}


def rule(resource: str, verbs: list[str]) -> dict[str, Any]:
    return {"apiGroups": ["romancy.dev"], "resources": [resource], "verbs": verbs}


@dataclass
class Accounts:
    """Service accounts of a namespace, and what they are bound to."""

    cluster: ControlPlane
    namespace: str

    def make(self, name: str, *roles: tuple[str | None, list[dict[str, Any]]]) -> str:
        """An account with these rules in these namespaces (None: in all); its token."""
        path = f"/api/v1/namespaces/{self.namespace}/serviceaccounts"
        self.cluster.call("POST", path, {"metadata": {"name": name}})
        subject = {"kind": "ServiceAccount", "name": name, "namespace": self.namespace}
        for nth, (where, rules) in enumerate(roles):
            kind, scope = ("Role", f"namespaces/{where}/") if where else ("ClusterRole", "")
            role = f"{self.namespace}-{name}-{nth}"
            base = f"/apis/rbac.authorization.k8s.io/v1/{scope}"
            self.cluster.call("POST", f"{base}{kind.lower()}s", {"metadata": {"name": role}, "rules": rules})
            binding = {
                "metadata": {"name": role},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
                "subjects": [subject],
            }
            self.cluster.call("POST", f"{base}{kind.lower()}bindings", binding)
        return self.token(name)

    def token(self, name: str, **spec: Any) -> str:
        path = f"/api/v1/namespaces/{self.namespace}/serviceaccounts/{name}/token"
        made: str = self.cluster.call("POST", path, {"spec": spec})["status"]["token"]
        return made


@dataclass
class Door:
    """The HTTP API of an operator."""

    session: ClientSession

    async def ask(self, token: str, method: str, path: str, **given: Any) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        headers |= given.pop("headers", {})
        async with self.session.request(method, path, headers=headers, **given) as response:
            return response.status, await response.json()

    async def send(self, token: str, **attributes: Any) -> tuple[int, Any]:
        headers = {"Content-Type": "application/cloudevents+json"}
        return await self.ask(token, "POST", "/events", data=json.dumps({**EVENT, **attributes}), headers=headers)


@pytest.fixture
async def door(engine: Fleet) -> AsyncIterator[Door]:
    process = await engine.start("a", ROMANCY_GATEWAY__EVENTS_TOKEN="the-token-of-events")
    lines = [json.loads(line) for line in process.log.read_text().splitlines() if '"gateway_started"' in line]
    async with ClientSession(f"http://127.0.0.1:{lines[0]['port']}") as session:
        yield Door(session)


async def test_caller_verb_and_namespace(
    engine: Fleet, kube: Kubernetes, cluster: ControlPlane, namespace: str, another_namespace: str, door: Door
) -> None:
    """The whole table: expected and seen."""
    accounts = Accounts(cluster, namespace)
    tokens = {
        "viewer": accounts.make("viewer", (namespace, [rule("workflowruns", LOOK)])),
        "editor": accounts.make("editor", (namespace, [rule("workflowruns", LOOK + CHANGE)])),
        "stranger": accounts.make("stranger", (another_namespace, [rule("*", ["*"])])),
        "auditor": accounts.make("auditor", (None, [rule("workflowruns", LOOK)])),
        "nobody": accounts.make("nobody"),
        "sender": accounts.make("sender", (namespace, [rule("workflowengines/events", ["create"])])),
        "operator": accounts.make("operator", (namespace, [rule("workflowengines", ["get"])])),
        "events token": "the-token-of-events",
    }
    kube.apply("here", "takes_time", input={"seconds": 0})
    await kube.end("here")
    here, there = f"/api/v1/namespaces/{namespace}/runs", f"/api/v1/namespaces/{another_namespace}/runs"
    run = {"workflow": "takes_time", "input": {"seconds": 3600}}
    first = (await door.ask(tokens["editor"], "POST", here, json={**run, "name": "open"}))[1]
    other = (await door.ask(tokens["stranger"], "POST", there, json={**run, "name": "secret"}))[1]

    async def status(who: str, method: str, path: str, **given: Any) -> int:
        return (await door.ask(tokens[who], method, path, **given))[0]

    table: dict[str, tuple[str, str, dict[str, Any], dict[str, int]]] = {
        # what: how, and who may (with the status); everybody else gets 403
        "list here": ("GET", here, {}, {"viewer": 200, "editor": 200, "auditor": 200}),
        "list there": ("GET", there, {}, {"stranger": 200, "auditor": 200}),
        "list all": ("GET", "/api/v1/runs", {}, {"auditor": 200}),
        "get here": ("GET", f"{here}/here", {}, {"viewer": 200, "editor": 200, "auditor": 200}),
        "history here": ("GET", f"{here}/here/history", {}, {"viewer": 200, "editor": 200, "auditor": 200}),
        "nothing here": ("GET", f"{here}/nothing", {}, {"viewer": 404, "editor": 404, "auditor": 404}),
        "start here": ("POST", here, {"json": {**run, "name": "open"}}, {"editor": 200}),
        "cancel here": ("POST", f"{here}/here/cancel", {"json": {}}, {"editor": 200}),
        "suspend there": ("POST", f"{there}/secret/suspend", {"json": {}}, {"stranger": 202}),
        "workflows": ("GET", "/api/v1/workflows", {}, {"operator": 200}),
        "workers": ("GET", "/api/v1/workers", {}, {"operator": 200}),
    }
    seen: dict[tuple[str, str], int] = {}
    expected: dict[tuple[str, str], int] = {}
    for what, (method, path, given, allowed) in table.items():
        for who in tokens.keys() - {"events token"}:
            seen[what, who] = await status(who, method, path, **given)
            expected[what, who] = allowed.get(who, 403)
    seen["list here", "events token"] = await status("events token", "GET", here)
    expected["list here", "events token"] = 401
    for who, token in tokens.items():
        seen["send", who] = (await door.send(token, id=who))[0]
        expected["send", who] = 202 if who in {"sender", "events token"} else 403
    assert seen == expected
    assert len(seen) == 11 * 7 + 1 + 8

    # By id alone, what is another's is as if it were not there; nor does a name of another namespace tell anything.
    for who in ("viewer", "editor", "nobody"):
        answers = [
            await door.ask(tokens[who], "GET", f"/api/v1/runs/{run_id}") for run_id in (other["id"], first["id"][::-1])
        ]
        assert [answer[0] for answer in answers] in ([404, 400], [404, 404])
        assert other["id"] not in json.dumps(answers[0][1]).replace(f"run {other['id']}", "")
        forbidden = [await door.ask(tokens[who], "GET", f"{there}/{name}") for name in ("secret", "nothing")]
        assert forbidden[0] == forbidden[1]
        assert forbidden[0][0] == 403
    assert (await door.ask(tokens["viewer"], "GET", f"/api/v1/runs/{first['id']}"))[0] == 200
    page = (await door.ask(tokens["viewer"], "GET", here))[1]["runs"]
    assert {each["namespace"] for each in page} == {namespace}

    # What was changed says who did it.
    assert first["labels"]["romancy.dev/started-by"] == f"system:serviceaccount:{namespace}:editor"
    log = engine.processes["a"].log.read_text()
    assert f'"caller": "system:serviceaccount:{namespace}:editor"' in log
    for token in tokens.values():
        assert token not in log


async def test_tokens_that_nobody_vouches_for(cluster: ControlPlane, namespace: str, door: Door) -> None:
    """Forged, expired, made for somebody else, of an account that is gone, none at all: 401, and not which of these."""
    accounts = Accounts(cluster, namespace)
    good = accounts.make("editor", (namespace, [rule("workflowruns", LOOK + CHANGE)]))
    accounts.make("gone", (namespace, [rule("workflowruns", LOOK)]))
    gone = accounts.token("gone")
    cluster.call("DELETE", f"/api/v1/namespaces/{namespace}/serviceaccounts/gone")
    head, claims, signature = good.split(".")
    here = f"/api/v1/namespaces/{namespace}/runs"
    bad = {
        "none": "",
        "no token": "x",
        "forged": f"{head}.{claims}.{signature[:-8]}AAAAAAAA",
        "expired": signed(cluster, head, {**decoded(claims), "exp": int(time.time()) - 60}),
        "another's": accounts.token("editor", audiences=["vault"]),
        "of one that is gone": gone,
    }

    seen = {name: await door.ask(token, "GET", here) for name, token in bad.items()}

    assert {name: status for name, (status, _) in seen.items()} == dict.fromkeys(bad, 401)
    assert len({json.dumps(body) for _, body in seen.values()}) == 1
    assert (await door.ask(good, "GET", here))[0] == 200
    for _ in range(round(access.FAILED_PER_SECOND) + 1):
        status, _ = await door.ask("still not", "GET", here)
    assert status == 429
    assert (await door.ask(good, "GET", here))[0] == 200  # from the same address


async def test_the_cluster_is_away_and_nothing_is_allowed(cluster: ControlPlane, namespace: str, door: Door) -> None:
    accounts = Accounts(cluster, namespace)
    known = accounts.make("editor", (namespace, [rule("workflowruns", LOOK)]))
    here = f"/api/v1/namespaces/{namespace}/runs"
    assert (await door.ask(known, "GET", here))[0] == 200

    cluster.kill_apiserver()
    try:
        fresh = await door.ask("somebody else", "GET", here)
        remembered = await door.ask(known, "GET", here)
    finally:
        cluster.start_apiserver()

    assert fresh[0] == 503
    assert (fresh[1]["reason"], fresh[1]["retryable"]) == ("AuthorityUnavailable", True)
    assert remembered[0] == 200  # for ten seconds
    assert (await door.send("the-token-of-events"))[0] == 202  # which the cluster is not asked about


def decoded(part: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return found


def signed(cluster: ControlPlane, head: str, claims: dict[str, Any]) -> str:
    """A token with these claims, by the cluster's own key."""
    key = next(Path(cluster.kubeconfig).parent.rglob("sa.key"))
    body = f"{head}.{re.sub('=', '', base64.urlsafe_b64encode(json.dumps(claims).encode()).decode())}"
    command = ["openssl", "dgst", "-sha256", "-sign", str(key)]
    signature = subprocess.run(command, input=body.encode(), capture_output=True, check=True).stdout
    return f"{body}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"
