"""The chart rendered by Helm's own engine, and Kubernetes' validation of the result."""

import functools
import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from helm_python import Chart
from referencing import Registry, Resource


ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "flopwatch"
OPTIONS = sorted(CHART.glob("ci/*-values.yaml"))
# The oldest and the newest Kubernetes that the chart is for.
KUBERNETES_VERSIONS = ("1.25.0", "1.37.0")


def option(name: str) -> dict[str, Any]:
    """The values of one of the chart's options."""
    return dict(yaml.safe_load((CHART / "ci" / f"{name}-values.yaml").read_text()))


def render(values: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """All objects of a release called `flopwatch` in the namespace `monitored`."""
    rendered = _render(json.dumps(values or {}))
    return [document for text in rendered for document in yaml.load_all(text, _LOADER) if document]


class _LOADER(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Refuses a key that is given twice, as `kubectl apply` and every GitOps tool does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        keys = [key.value for key, _value in node.value]
        assert len(keys) == len(set(keys)), f"a key twice among {keys}"
        return super().construct_mapping(node, deep)


@functools.cache
def _render(values: str) -> tuple[str, ...]:
    with Chart.load(CHART) as chart:
        rendered = chart.render(json.loads(values), name="flopwatch", namespace="monitored")
    return tuple(text for path, text in sorted(rendered.items()) if path.endswith(".yaml"))


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [found for found in objects if found["kind"] == kind]


def container(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """The daemon's container of the only DaemonSet: the first, where a site adds others."""
    (daemonset,) = of_kind(objects, "DaemonSet")
    return dict(daemonset["spec"]["template"]["spec"]["containers"][0])


def pod(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (daemonset,) = of_kind(objects, "DaemonSet")
    return dict(daemonset["spec"]["template"]["spec"])


def environment(objects: list[dict[str, Any]]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container(objects)["env"]}


def validate(found: dict[str, Any], versions: tuple[str, ...] = KUBERNETES_VERSIONS) -> None:
    """Raise ValidationError where Kubernetes, or the Prometheus operator, would refuse the object."""
    if found["apiVersion"] == "monitoring.coreos.com/v1":
        jsonschema.validate(found, _OPERATOR)
        return
    for version in versions:
        _validator(version, found["kind"], found["apiVersion"]).validate(found)


@functools.cache
def _validator(version: str, kind: str, api_version: str) -> jsonschema.Draft202012Validator:
    """The strict schema of a kind, from the package kubernetes-validate, read once."""
    # apps/v1 is `apps-v1` there, networking.k8s.io/v1 `networking-v1`.
    name = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    schema = _schema(version, f"{kind.lower()}-{name}")
    registry = Resource.from_contents(schema) @ (_definitions(version) @ Registry())
    return jsonschema.Draft202012Validator(schema, registry=registry)


@functools.cache
def _definitions(version: str) -> Resource[Any]:
    return Resource.from_contents(_schema(version, "_definitions"))


def _schema(version: str, name: str) -> Any:
    folder = resources.files("kubernetes_validate") / "kubernetes-json-schema"
    return json.loads((folder / f"v{version}-local-strict" / f"{name}.json").read_text())


# The fields of the operator's resources that the chart uses, from its API reference. Unlike the rest
# they are not in Kubernetes' own schemas.
_STRING = {"type": "string"}
_RELABEL = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "sourceLabels": {"type": "array", "items": _STRING},
        "targetLabel": _STRING,
        "replacement": _STRING,
        "regex": _STRING,
        "action": {
            "enum": ["drop", "keep", "labeldrop", "labelkeep", "replace", "Drop", "Replace"]
        },
    },
}
_ENDPOINT = {
    "type": "object",
    "additionalProperties": False,
    "required": ["port"],
    "properties": {
        "port": _STRING,
        "path": _STRING,
        "scheme": {"enum": ["http", "https"]},
        "interval": {"type": "string", "pattern": "^([0-9]+(ms|s|m|h))+$"},
        "scrapeTimeout": {"type": "string", "pattern": "^([0-9]+(ms|s|m|h))+$"},
        "honorLabels": {"type": "boolean"},
        "tlsConfig": {"type": "object"},
        "basicAuth": {"type": "object", "required": ["username", "password"]},
        "relabelings": {"type": "array", "items": _RELABEL},
        "metricRelabelings": {"type": "array", "items": _RELABEL},
    },
}
_RULE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["expr"],
    "properties": {
        "alert": _STRING,
        "record": _STRING,
        "expr": _STRING,
        "for": _STRING,
        "keep_firing_for": _STRING,
        "labels": {"type": "object", "additionalProperties": _STRING},
        "annotations": {"type": "object", "additionalProperties": _STRING},
    },
    "oneOf": [{"required": ["alert"]}, {"required": ["record"]}],
}
_MONITOR = {
    "jobLabel": _STRING,
    "selector": {"type": "object"},
    "namespaceSelector": {"type": "object"},
    "sampleLimit": {"type": "integer"},
}


def _spec(kind: str, required: list[str], properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "if": {"properties": {"kind": {"const": kind}}},
        "then": {
            "properties": {
                "spec": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": required,
                    "properties": properties,
                }
            }
        },
    }


_OPERATOR: dict[str, Any] = {
    "type": "object",
    "required": ["metadata", "spec"],
    "properties": {"kind": {"enum": ["ServiceMonitor", "PodMonitor", "PrometheusRule"]}},
    "allOf": [
        _spec(
            "ServiceMonitor",
            ["selector", "endpoints"],
            {**_MONITOR, "endpoints": {"type": "array", "minItems": 1, "items": _ENDPOINT}},
        ),
        _spec(
            "PodMonitor",
            ["selector", "podMetricsEndpoints"],
            {
                **_MONITOR,
                "podMetricsEndpoints": {"type": "array", "minItems": 1, "items": _ENDPOINT},
            },
        ),
        _spec(
            "PrometheusRule",
            ["groups"],
            {
                "groups": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["name", "rules"],
                        "properties": {
                            "name": {"type": "string", "minLength": 1},
                            "interval": _STRING,
                            "limit": {"type": "integer"},
                            "rules": {"type": "array", "minItems": 1, "items": _RULE},
                        },
                    },
                }
            },
        ),
    ],
}
