"""Alerts and dashboard ask for metrics that there are and lead to pages that there are; KEDA asks for a view that there is."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics import MetricWrapperBase

from romancy.base import metrics
from tests.chart.conftest import CHART, DATABASE, Template

ROOT = Path(__file__).parents[2]
ALL = (
    *DATABASE,
    *("--set", "metrics.serviceMonitor.enabled=true", "--set", "metrics.prometheusRule.enabled=true"),
    *("--set", "metrics.dashboard.enabled=true", "--set", "keda.enabled=true"),
)
FROM_PROMETHEUS = {"namespace", "pod", "job", "le"}
OF_THE_PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total"}
DASHBOARD = json.loads((CHART / "dashboards/romancy.json").read_text())


def series() -> dict[str, set[str]]:
    """Every time series of a process, with its labels."""
    found: dict[str, set[str]] = {name: set() for name in OF_THE_PROCESS}
    for each in vars(metrics).values():
        if isinstance(each, MetricWrapperBase):
            family, labels = each.describe()[0], set(each._labelnames)
            match family.type:
                case "counter":
                    found[f"{family.name}_total"] = labels
                case "histogram":
                    found |= {f"{family.name}_{part}": labels for part in ("bucket", "sum", "count")}
                case _:
                    found[family.name] = labels
    return found


SERIES = series()


def asked(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:romancy|process|python)_\w+", re.sub(r'"[^"]*"', '""', expression)))


def labels_asked(expression: str) -> set[str]:
    grouped = re.findall(r"\b(?:by|on|without|ignoring) \(([^)]*)\)", expression)
    selected = re.findall(r"\{([^}]*)\}", expression)
    names = {name.strip() for group in grouped for name in group.split(",")}
    return names | {name for each in selected for name in re.findall(r"(\w+) *(?:=~|!~|!=|=)", each)}


def expressions_of_the_dashboard() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["definition"].removeprefix("label_values(").partition(",")[0]


def object_of(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    [found] = [each for each in objects if each["kind"] == kind]
    return found


def alerts(template: Template, *more: str) -> list[dict[str, Any]]:
    [group] = object_of(template(*ALL, *more), "PrometheusRule")["spec"]["groups"]
    return list(group["rules"])


def check(expression: str) -> None:
    names = asked(expression)
    assert names, expression
    assert names <= SERIES.keys(), expression
    known = FROM_PROMETHEUS.union(*(SERIES[name] for name in names))
    assert labels_asked(expression) <= known, expression


@pytest.mark.parametrize("expression", sorted(set(expressions_of_the_dashboard())))
def test_a_panel_asks_for_what_there_is(expression: str) -> None:
    check(expression)


def test_every_alert_asks_for_what_there_is_and_leads_to_a_page(template: Template) -> None:
    rules = alerts(template)
    assert len(rules) >= 9
    for rule in rules:
        check(rule["expr"])
        page = rule["annotations"]["runbook_url"]
        assert (ROOT / page).is_file(), page
        assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= labels_asked(rule["expr"])


def test_runbooks_lead_to_where_the_pages_are(template: Template) -> None:
    base = "https://git.example/romancy/blob/main/"

    assert all(
        rule["annotations"]["runbook_url"].startswith(f"{base}docs/")
        for rule in alerts(template, "--set", f"metrics.prometheusRule.runbookBase={base}")
    )


def test_the_dashboard_shows_every_metric_and_is_whole(template: Template) -> None:
    """A metric that nobody sees is one that nobody needs."""
    shown = {name for expression in expressions_of_the_dashboard() for name in asked(expression)}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) if name not in SERIES else name for name in SERIES}
    missing = {
        name
        for name in families
        if not any(
            each == name or re.sub(r"_(bucket|sum|count)$", "", each) == re.sub(r"_(bucket|sum|count)$", "", name)
            for each in shown
        )
    }
    rendered = object_of(template(*ALL), "ConfigMap")

    assert missing == set()
    assert json.loads(rendered["data"]["romancy.json"]) == DASHBOARD
    assert rendered["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all(panel["description"] for panel in DASHBOARD["panels"])


def test_keda_asks_the_view_and_leaves_the_replicas_alone(template: Template) -> None:
    objects = template(*ALL)
    scaled = object_of(objects, "ScaledObject")["spec"]
    [trigger] = scaled["triggers"]
    deployment = object_of(objects, "Deployment")["spec"]
    own = template(*ALL, "--set", "keda.authenticationRef=scaler", "--set", "settings.database.schema_name=flows")
    [other] = object_of(own, "ScaledObject")["spec"]["triggers"]

    assert trigger["metadata"]["query"] == "select runs from romancy.scale"
    assert "create view scale" in (ROOT / "operator/romancy/store/migrations/0002_scale.sql").read_text()
    assert scaled["minReplicaCount"] >= 1
    assert "replicas" not in deployment
    [container] = deployment["template"]["spec"]["containers"]
    assert scaled["scaleTargetRef"] == {"name": "shop-romancy", "envSourceContainerName": container["name"]}
    assert trigger["metadata"]["connectionFromEnv"] in {each["name"] for each in container["env"]}
    assert other["metadata"]["query"] == "select runs from flows.scale"
    assert "connectionFromEnv" not in other["metadata"]
    assert other["authenticationRef"] == {"name": "scaler"}


def test_two_autoscalers_are_refused(run_helm: Any) -> None:
    done = run_helm("template", "shop", str(CHART), *ALL, "--set", "autoscaling.enabled=true")

    assert done.returncode != 0
    assert "exclude each other" in done.stderr
