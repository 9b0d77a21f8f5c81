"""Makes `crds/*.yaml` of the models: `python -m romancy.control.crds --write`; `--check` fails if the files are old."""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from romancy.control import resources

FOLDER: Final = Path(__file__).parents[3] / "crds"
_HEAD: Final = (
    "# Made by `python -m romancy.control.crds --write` of operator/romancy/control/resources.py: change it there.\n"
)
_PLAIN: Final = re.compile(r"[A-Za-z.][A-Za-z0-9_./-]*")
_WORDS_OF_YAML: Final = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})
# What JSON schema says and the API server takes; everything else in pydantic's output is dropped or refused below.
_KEYS: Final = (
    "type",
    "format",
    "description",
    "default",
    "enum",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "maxItems",
    "required",
)


def definitions() -> dict[str, dict[str, Any]]:
    """The CustomResourceDefinitions by file name."""
    return {"workflowrun.yaml": _workflow_run(), "workflowengine.yaml": _workflow_engine()}


def text_of(definition: dict[str, Any]) -> str:
    """As it stands in the file."""
    return _HEAD + "\n".join(_yaml(definition, 0)) + "\n"


def _workflow_run() -> dict[str, Any]:
    return _definition(
        kind="WorkflowRun",
        plural=resources.RUNS,
        short="wfr",
        description="One execution of a workflow. Applying it starts the run; deleting it cancels the run.",
        spec=resources.WorkflowRunSpec,
        status=resources.WorkflowRunStatus,
        is_spec_required=True,
        # So kstatus (Flux, and others) does not take an object for well that no engine has seen yet.
        first_status={"observedGeneration": -1},
        selectable=[".spec.workflow", ".status.phase"],
        columns=[
            _column("Workflow", ".spec.workflow", "The workflow that runs"),
            _column("Status", ".status.phase", "Where the run is"),
            _column("Started", ".status.startTime", "When a worker took it first", kind="date"),
            _column("Duration", ".status.duration", "From start to end"),
            _column("Age", ".metadata.creationTimestamp", "Since the object was created", kind="date"),
            _column("Reason", ".status.reason", "Why it is in its phase", priority=1),
            _column("Worker", ".status.worker", "Who has it in hands", priority=1),
            _column("Message", ".status.message", "Why, and what comes next", priority=1),
        ],
    )


def _workflow_engine() -> dict[str, Any]:
    return _definition(
        kind="WorkflowEngine",
        plural=resources.ENGINES,
        short="wfe",
        description="The health of one Romancy engine; made, written and, when deleted, made again by its leader.",
        spec=resources.WorkflowEngineSpec,
        status=resources.WorkflowEngineStatus,
        is_spec_required=False,
        first_status={},
        selectable=[],
        columns=[
            _column("Ready", '.status.conditions[?(@.type=="Ready")].status', "Runs make progress"),
            _column("Workers", ".status.workers", "Workers with a valid lease", kind="integer"),
            _column("Workflows", ".status.workflowCount", "Workflows that live workers have", kind="integer"),
            _column("Open", ".status.backlog.open", "Runs that have not ended", kind="integer"),
            _column("Due", ".status.backlog.due", "Runs that wait for a free worker", kind="integer"),
            _column("Blocked", ".status.backlog.blocked", "Runs that need somebody", kind="integer"),
            _column("Oldest", ".status.backlog.oldestDue", "How long the longest due run has waited"),
            _column("Build", ".status.versions[0].build", "The newest code that live workers run", priority=1),
            _column("Version", ".status.version", "Version of the leader"),
            _column("Age", ".metadata.creationTimestamp", "Since the object was created", kind="date"),
            _column("Leader", ".status.leader", "The process that leads", priority=1),
            _column("Message", '.status.conditions[?(@.type=="Ready")].message', "Why it is (not) ready", priority=1),
            _column(
                "Code", '.status.conditions[?(@.type=="CodeFits")].message', "Runs that the code blocks", priority=1
            ),
        ],
    )


def _definition(
    *,
    kind: str,
    plural: str,
    short: str,
    description: str,
    spec: type[BaseModel],
    status: type[BaseModel],
    is_spec_required: bool,
    first_status: dict[str, Any],
    selectable: list[str],
    columns: list[dict[str, Any]],
) -> dict[str, Any]:
    schema = {
        "description": description,
        "type": "object",
        **({"required": ["spec"]} if is_spec_required else {}),
        "properties": {
            "apiVersion": {"description": "Version of this schema.", "type": "string"},
            "kind": {"description": "The kind of this object.", "type": "string"},
            "metadata": {
                "type": "object",
                "properties": {"name": {"type": "string", "maxLength": resources.NAME_MAX}},
            },
            "spec": structural(spec),
            "status": {**structural(status), **({"default": first_status} if first_status else {})},
        },
    }
    version = {
        "name": resources.VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        **({"selectableFields": [{"jsonPath": path} for path in selectable]} if selectable else {}),
        "additionalPrinterColumns": columns,
        "schema": {"openAPIV3Schema": schema},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{resources.GROUP}"},
        "spec": {
            "group": resources.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
                "categories": ["romancy"],
            },
            "versions": [version],
        },
    }


def _column(name: str, path: str, description: str, *, kind: str = "string", priority: int = 0) -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "type": kind, "jsonPath": path, "description": description}
    return {**column, "priority": priority} if priority else column


def structural(model: type[BaseModel]) -> dict[str, Any]:
    """A model as a structural schema: no references, no unions, only what the API server takes."""
    schema = model.model_json_schema(by_alias=True, mode="validation")
    return _flat(schema, schema.get("$defs", {}), path=model.__name__)


def _flat(schema: dict[str, Any], models: dict[str, Any], *, path: str) -> dict[str, Any]:
    if "$ref" in schema:
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        schema = {**models[schema["$ref"].rsplit("/", 1)[1]], **rest}
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        # Whatever is in it is the user's: no properties, and no default of ours but the empty object.
        schema = {key: value for key, value in schema.items() if key not in {"additionalProperties", "anyOf"}}
    if "anyOf" in schema:  # `X | None`: Kubernetes leaves the field out instead
        [one] = [choice for choice in schema["anyOf"] if choice.get("type") != "null"]
        rest = {key: value for key, value in schema.items() if key not in {"anyOf", "default"}}
        return _flat({**one, **rest}, models, path=path)
    flat = {key: schema[key] for key in _KEYS if schema.get(key) is not None}
    flat |= {key: value for key, value in schema.items() if key.startswith("x-kubernetes-")}
    if "description" in flat:
        flat["description"] = " ".join(flat["description"].split())
    if "Status" in path or flat.get("default") == "":
        flat.pop("default", None)  # a status says what has been written, not what could have been
    if "properties" in schema:
        flat["properties"] = {
            name: _flat(each, models, path=f"{path}.{name}") for name, each in schema["properties"].items()
        }
    if "items" in schema:
        flat["items"] = _flat(schema["items"], models, path=f"{path}[]")
    if "type" not in flat and not flat.get("x-kubernetes-preserve-unknown-fields"):
        raise TypeError(f"{path} can't be said in a structural schema: {schema}")
    return flat


def _yaml(value: Any, depth: int) -> list[str]:
    """YAML without a library, since the package does not need one: blocks, and each scalar in JSON's form."""
    pad = "  " * depth
    lines: list[str] = []
    if isinstance(value, dict):
        for key, each in value.items():
            if isinstance(each, dict | list) and each:
                lines += [f"{pad}{key}:", *_yaml(each, depth + 1)]
            else:
                lines.append(f"{pad}{key}: {_scalar(each)}")
    else:
        for each in value:
            if isinstance(each, dict):
                first, *rest = _yaml(each, depth + 1)
                lines += [f"{pad}- {first.strip()}", *rest]
            else:
                lines.append(f"{pad}- {_scalar(each)}")
    return lines


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS_OF_YAML:
        return value
    return json.dumps(value, ensure_ascii=False)


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or compare them."""
    parser = argparse.ArgumentParser(prog="python -m romancy.control.crds", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help="write the files")
    what.add_argument("--check", action="store_true", help="exit with 1 if a file is not what it should be")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args(arguments)
    old = []
    for name, definition in definitions().items():
        path, text = options.folder / name, text_of(definition)
        if path.exists() and path.read_text() == text:
            continue
        old.append(name)
        if options.write:
            path.write_text(text)
    if old:
        print(f"{'written' if options.write else 'old'}: {', '.join(old)}", file=sys.stderr)
    return 1 if old and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
