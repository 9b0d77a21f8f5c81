"""The JSON Schema of the chart's values: what is not here is refused, so that a typo is no silent default.

The options under `settings` are those of base/settings.py.
"""

from typing import Any, Final

from romancy.base import settings

Schema = dict[str, Any]

TEXT: Final[Schema] = {"type": "string"}
YES_OR_NO: Final[Schema] = {"type": "boolean"}
LIST: Final[Schema] = {"type": "array"}
TEXTS: Final[Schema] = {"type": "array", "items": TEXT}
TEXT_MAP: Final[Schema] = {"type": "object", "additionalProperties": TEXT}
ANY_MAP: Final[Schema] = {"type": "object"}
NOT_IN_VALUES: Final = frozenset(
    # What the chart itself gives, from other values or from the pod.
    {
        *("url", "name", "namespace", "pod_uid", "kubeconfig", "enabled", "watch_namespaces", "host", "port"),
        "events_token",  # a Secret's: events.existingSecret
        *("headers", "ca_file"),  # the same: sink.existingSecret, sink.tls.existingSecret
    }
)


def integer(minimum: int = 0, maximum: int | None = None) -> Schema:
    return {"type": "integer", "minimum": minimum, **({} if maximum is None else {"maximum": maximum})}


def record(**properties: Schema) -> Schema:
    """An object of these properties and no others."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


def one_of(*words: str) -> Schema:
    return {"type": "string", "enum": list(words)}


def options(part: str) -> Schema:
    """The options of one part of the settings, with the bounds that the process itself would refuse."""
    model = settings.Settings.model_fields[part].annotation
    assert model is not None
    found: Schema = model.model_json_schema()["properties"]  # type: ignore[attr-defined]
    kept = {"type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "pattern", "description"}
    return record(
        **{
            name: {
                **({"type": "object"} if "$ref" in each else {}),
                **{
                    key: " ".join(value.split()) if key == "description" else value
                    for key, value in each.items()
                    if key in kept
                },
            }
            for name, each in found.items()
            if name not in NOT_IN_VALUES
        }
    )


def values_schema() -> Schema:
    """The whole of it, draft 7 as Helm reads it."""
    values = record(
        **{"global": ANY_MAP},
        image=record(
            repository=TEXT,
            tag=TEXT,
            digest={"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
            pullPolicy=one_of("Always", "IfNotPresent", "Never"),
            pullSecrets=LIST,
        ),
        replicaCount=integer(),
        workflows=TEXTS,
        middleware=TEXTS,
        database=record(existingSecret=TEXT, urlKey=TEXT, url=TEXT, tls=record(existingSecret=TEXT)),
        demo=record(enabled=YES_OR_NO, image=TEXT, storage=TEXT, password={"type": "string", "minLength": 1}),
        scope=record(clusterWide=YES_OR_NO, namespaces=TEXTS),
        settings=record(
            **{
                part: options(part)
                for part in ("database", "worker", "control", "retention", "gateway", "outbox", "log")
            }
        ),
        events=record(existingSecret=TEXT, tokenKey=TEXT),
        sink=record(existingSecret=TEXT, headersKey=TEXT, tls=record(existingSecret=TEXT)),
        crds=record(install=YES_OR_NO, keep=YES_OR_NO),
        serviceAccount=record(create=YES_OR_NO, name=TEXT, annotations=TEXT_MAP),
        rbac=record(create=YES_OR_NO, aggregate=YES_OR_NO, authDelegator=YES_OR_NO),
        resources=ANY_MAP,
        podDisruptionBudget=record(enabled=YES_OR_NO, maxUnavailable={"type": ["integer", "string"]}),
        autoscaling=record(
            enabled=YES_OR_NO,
            minReplicas=integer(1),
            maxReplicas=integer(1),
            targetCPUUtilizationPercentage=integer(1, 100),
        ),
        keda=record(
            enabled=YES_OR_NO,
            minReplicas=integer(1),
            maxReplicas=integer(1),
            runsPerReplica=integer(1),
            pollingInterval=integer(1),
            authenticationRef=TEXT,
        ),
        networkPolicy=record(enabled=YES_OR_NO, **{"from": LIST}, egress=LIST),
        service=record(port=integer(1, 65535), annotations=TEXT_MAP),
        metrics=record(
            serviceMonitor=record(enabled=YES_OR_NO, interval=TEXT, labels=TEXT_MAP),
            prometheusRule=record(enabled=YES_OR_NO, labels=TEXT_MAP, runbookBase=TEXT),
            dashboard=record(enabled=YES_OR_NO, labels=TEXT_MAP, annotations=TEXT_MAP),
        ),
        terminationGracePeriodSeconds=integer(1),
        priorityClassName=TEXT,
        nodeSelector=TEXT_MAP,
        tolerations=LIST,
        affinity=ANY_MAP,
        topologySpreadConstraints=LIST,
        podAnnotations=TEXT_MAP,
        podLabels=TEXT_MAP,
        commonLabels=TEXT_MAP,
        extraEnv=LIST,
        extraEnvFrom=LIST,
        extraVolumes=LIST,
        extraVolumeMounts=LIST,
        extraContainers=LIST,
        initContainers=LIST,
        extraObjects=LIST,
    )
    return {"$schema": "http://json-schema.org/draft-07/schema#", **values}
