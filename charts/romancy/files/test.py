"""`helm test`: asks what a user would ask of a new release. Only the standard library; the last line says how it is."""

import http.client
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
SECONDS = 60
NO_ANSWER = (OSError, http.client.HTTPException)


def health(url: str) -> str:
    """Empty if a worker behind the Service takes runs; else why not."""
    try:
        with urllib.request.urlopen(f"{url}/healthz/ready", timeout=5):
            return ""
    except urllib.error.HTTPError as error:
        return f"{url}/healthz/ready: {error.code} {error.read().decode(errors='replace')[:500]}"
    except NO_ANSWER as error:
        return f"{url}/healthz/ready: {error}"


def engine(namespace: str, name: str) -> str:
    """Empty if the WorkflowEngine is Ready; else why not."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    host = f"[{host}]" if ":" in host else host  # an IPv6 address
    url = f"https://{host}:{port}/apis/romancy.dev/v1alpha1/namespaces/{namespace}/workflowengines/{name}"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}"})
    try:
        context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
        with urllib.request.urlopen(request, timeout=5, context=context) as answer:
            status = json.load(answer).get("status", {})
    except NO_ANSWER as error:
        return f"{url}: {error}"
    conditions = {each["type"]: each for each in status.get("conditions", [])}
    ready = conditions.get("Ready", {"status": "Unknown", "message": "it has no status"})
    return "" if ready["status"] == "True" else f"WorkflowEngine {name}: {ready['message']}"


def main() -> int:
    url, namespace, name = sys.argv[1:]
    end = time.monotonic() + SECONDS
    while why := health(url) or engine(namespace, name):
        print(f"not yet: {why}", flush=True)
        if time.monotonic() > end:
            print(f"Romancy does not work: {why}")
            return 1
        time.sleep(2)
    print("Romancy is ready: a worker takes runs, and the WorkflowEngine is Ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
