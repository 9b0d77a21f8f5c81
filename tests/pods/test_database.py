"""A database of one's own: its URL in a Secret that somebody else has made, and TLS that is verified."""

import json

import pytest

from tests.pods.conftest import Release
from tests.pods.database import OWN

pytestmark = [pytest.mark.pods, pytest.mark.timeout(600)]


def test_a_url_of_ones_own_secret_over_verified_tls(database: Release) -> None:
    database.install(**OWN)
    database.apply("over-tls", "steps", run="over-tls", count=3, seconds=0.1)

    assert database.end("over-tls")["output"] == 3
    connections = database.sql(
        "select ssl from pg_stat_ssl join pg_stat_activity using (pid) where application_name like 'romancy%'"
    )
    assert set(connections) == {"t"}

    # Pods that are given the certificate of another authority say so and do not become ready; the old ones go on. It stands
    # in a Secret of its own: what changes in the one that is mounted comes to the old ones too, within a minute.
    before = {
        each["metadata"]["name"] for each in database.get("pods", "-l", "app.kubernetes.io/name=romancy")["items"]
    }
    other = {"name": "database-tls", "secret": {"secretName": "another-ca"}}
    change = {"spec": {"template": {"spec": {"volumes": [other]}}}}
    database.kubectl("patch", "deployment", "romancy", "--type=strategic", "-p", json.dumps(change))

    def new_pods() -> list[str]:
        found = database.get("pods", "-l", "app.kubernetes.io/name=romancy")["items"]
        return [each["metadata"]["name"] for each in found if each["metadata"]["name"] not in before]

    database.until(new_pods, "a new pod is made")
    [pod] = new_pods()
    database.kubectl("wait", f"pod/{pod}", "--for=jsonpath={.status.phase}=Running", "--timeout=60s")
    database.until(lambda: "CERTIFICATE_VERIFY_FAILED" in database.kubectl("logs", pod), "it says what is wrong")
    assert "se-cret" not in database.kubectl("logs", pod)
    database.apply("still", "steps", run="still", count=1, seconds=0.1)
    assert database.end("still")["output"] == 1
