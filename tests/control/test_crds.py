"""What the API server takes and refuses by itself, with the message that a user sees."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from romancy.control import crds
from romancy.model.run import Phase
from tests.control.objects import a_run, change, create, path_of, read
from tests.controlplane.plane import ApiError, ControlPlane

FILES = Path(__file__).parents[2] / "crds"


def test_the_files_are_what_the_models_say() -> None:
    assert crds.main(["--check"]) == 0


def test_the_files_are_yaml_of_the_definitions() -> None:
    for name, definition in crds.definitions().items():
        assert yaml.safe_load((FILES / name).read_text()) == definition


def test_an_old_file_is_found_and_written(tmp_path: Path) -> None:
    assert crds.main(["--check", "--folder", str(tmp_path)]) == 1
    assert crds.main(["--write", "--folder", str(tmp_path)]) == 0

    assert crds.main(["--check", "--folder", str(tmp_path)]) == 0


def test_every_field_has_a_description() -> None:
    for definition in crds.definitions().values():
        schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        missing = [
            path
            for part in ("spec", "status")
            for path, each in _fields(schema["properties"][part], part)
            if not each.get("description")
        ]
        assert missing == []


def test_the_phases_are_those_of_the_model() -> None:
    schema = crds.definitions()["workflowrun.yaml"]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]

    assert schema["properties"]["status"]["properties"]["phase"]["enum"] == [phase.value for phase in Phase]


def _fields(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, each in schema.get("properties", {}).items():
        yield from _fields(each, f"{path}.{name}")
    if "properties" in schema.get("items", {}):
        yield from _fields(schema["items"], f"{path}[]")


@pytest.mark.kube
class TestApiServer:
    def test_defaults_are_written_into_the_object(self, cluster: ControlPlane, namespace: str) -> None:
        created = create(cluster, namespace, a_run())

        assert created["spec"] == {
            "workflow": "w",
            "input": {},
            "suspend": False,
            "cancel": False,
            "priority": 0,
            "deletionPolicy": "Cancel",
        }

    def test_the_input_keeps_whatever_it_holds(self, cluster: ControlPlane, namespace: str) -> None:
        value = {"order": {"id": "ü", "big": 9007199254740993, "none": [None, 1.5, {"x": []}]}}

        created = create(cluster, namespace, a_run(input=value))

        assert created["spec"]["input"] == value

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ({"workflow": ""}, "spec.workflow in body should be at least 1 chars long"),
            ({"workflow": "w" * 254}, "may not be more than 253"),
            ({"workflow": None}, "spec.workflow: Required value"),
            ({"input": [1]}, 'spec.input in body must be of type object: "array"'),
            ({"timeout": "5 minutes"}, "timeout must be a positive duration"),
            ({"timeout": "1d"}, "(for days write hours: 48h)"),
            ({"timeout": "0s"}, "timeout must be a positive duration"),
            ({"timeout": "-5m"}, "timeout must be a positive duration"),
            ({"priority": 1001}, "spec.priority in body should be less than or equal to 1000"),
            ({"priority": -1001}, "spec.priority in body should be greater than or equal to -1000"),
            ({"deletionPolicy": "Keep"}, 'supported values: "Cancel", "Orphan"'),
            ({"ttlSecondsAfterFinished": -1}, "should be greater than or equal to 0"),
        ],
    )
    def test_a_wrong_spec_is_refused_with_what_to_do(
        self, cluster: ControlPlane, namespace: str, spec: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ApiError) as refused:
            create(cluster, namespace, a_run(**spec))

        assert refused.value.code == 422
        assert message in refused.value.message

    def test_a_name_that_fits_no_label_is_refused(self, cluster: ControlPlane, namespace: str) -> None:
        with pytest.raises(ApiError, match="may not be more than 63"):
            create(cluster, namespace, a_run("r" * 64))

    @pytest.mark.parametrize("timeout", ["90s", "15m", "1h30m", "0.5s", "250ms", "48h"])
    def test_a_go_duration_is_taken(self, cluster: ControlPlane, namespace: str, timeout: str) -> None:
        created = create(cluster, namespace, a_run(timeout=timeout))

        assert created["spec"]["timeout"] == timeout

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ({"workflow": "v"}, "workflow can't be changed after creation; create another WorkflowRun instead"),
            ({"input": {"a": {"b": 2}}}, "input can't be changed after creation; create another WorkflowRun instead"),
            ({"input": None}, "input can't be changed after creation"),
            ({"priority": 2}, "priority can't be changed after creation"),
            ({"timeout": "2m"}, "timeout can't be changed after creation; set cancel to end the run early"),
            ({"timeout": None}, "timeout can't be changed after creation"),
            ({"cancel": False}, "cancel can't be taken back; create another WorkflowRun to run again"),
            ({"cancel": None}, "cancel can't be taken back"),
        ],
    )
    def test_what_is_fixed_stays(
        self, cluster: ControlPlane, namespace: str, spec: dict[str, Any], message: str
    ) -> None:
        run = a_run(input={"a": {"b": 1}}, timeout="1m", priority=1, cancel=True)
        create(cluster, namespace, run)

        with pytest.raises(ApiError) as refused:
            change(cluster, namespace, run["metadata"]["name"], **spec)

        assert refused.value.code == 422
        assert message in refused.value.message

    def test_a_timeout_cannot_be_added_later(self, cluster: ControlPlane, namespace: str) -> None:
        run = a_run()
        create(cluster, namespace, run)

        with pytest.raises(ApiError, match=r"spec\.timeout: .*timeout can't be changed after creation"):
            change(cluster, namespace, run["metadata"]["name"], timeout="1m")

    def test_wishes_can_be_changed(self, cluster: ControlPlane, namespace: str) -> None:
        run = a_run()
        create(cluster, namespace, run)
        wishes = {"suspend": True, "cancel": True, "deletionPolicy": "Orphan", "ttlSecondsAfterFinished": 60}

        changed = change(cluster, namespace, run["metadata"]["name"], **wishes)

        assert {name: changed["spec"][name] for name in wishes} == wishes
        assert changed["metadata"]["generation"] == 2

    def test_a_status_takes_any_output_and_leaves_the_generation(self, cluster: ControlPlane, namespace: str) -> None:
        run = create(cluster, namespace, a_run())
        name = run["metadata"]["name"]
        for output in ({"a": [1, None]}, "text", 7, [1, {"b": 2}], True, 1.5):
            cluster.call("PATCH", path_of(namespace, name=name, sub="status"), {"status": None})
            cluster.call("PATCH", path_of(namespace, name=name, sub="status"), {"status": {"output": output}})
            assert read(cluster, namespace, name)["status"]["output"] == output

        assert read(cluster, namespace, name)["metadata"]["generation"] == 1

    def test_runs_are_selected_by_workflow_and_phase(self, cluster: ControlPlane, namespace: str) -> None:
        for name, workflow, phase in (("a", "v", "Running"), ("b", "w", "Failed"), ("c", "w", "Running")):
            create(cluster, namespace, a_run(name, workflow=workflow))
            cluster.call("PATCH", path_of(namespace, name=name, sub="status"), {"status": {"phase": phase}})

        found = cluster.call("GET", path_of(namespace) + "?fieldSelector=spec.workflow%3Dw,status.phase%21%3DFailed")

        assert [each["metadata"]["name"] for each in found["items"]] == ["c"]

    def test_kubectl_shows_the_columns_and_the_category(self, cluster: ControlPlane, namespace: str) -> None:
        create(cluster, namespace, a_run("order-1", workflow="process_order"))
        status = {"phase": "Succeeded", "reason": "Succeeded", "duration": "1.2s", "startTime": "2026-01-01T00:00:00Z"}
        cluster.call("PATCH", path_of(namespace, name="order-1", sub="status"), {"status": status})

        lines = kubectl(cluster, "get", "romancy", "-n", namespace).splitlines()

        assert lines[0].split() == ["NAME", "WORKFLOW", "STATUS", "STARTED", "DURATION", "AGE"]
        assert lines[1].split()[:3] == ["workflowrun.romancy.dev/order-1", "process_order", "Succeeded"]
        assert lines[1].split()[4] == "1.2s"
        assert "REASON" in kubectl(cluster, "get", "wfr", "-n", namespace, "-o", "wide")

    def test_kubectl_explains_every_field(self, cluster: ControlPlane, namespace: str) -> None:
        explained = kubectl(cluster, "explain", "wfr.spec.deletionPolicy")

        assert "What deleting this object does" in explained
        assert "Orphan" in explained


def kubectl(plane: ControlPlane, *arguments: str) -> str:
    """The standard output of kubectl."""
    done = subprocess.run(
        ["kubectl", "--kubeconfig", str(plane.kubeconfig), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
