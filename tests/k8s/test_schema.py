"""The chart lints, its manifests are valid Kubernetes, and values that are wrong are refused in words that help."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.k8s.charts import SETS, HelmError, HelmValuesError, gen_chart, lint, manifests, values

CUSTOM = {
    "BackendTrafficPolicy": "gateway.envoyproxy.io/v1alpha1",
    "GRPCRoute": "gateway.networking.k8s.io/v1",
    "PrometheusRule": "monitoring.coreos.com/v1",
    "ScaledObject": "keda.sh/v1alpha1",
    "ServiceMonitor": "monitoring.coreos.com/v1",
}
"""Kinds that Kubernetes itself does not know; tests/k8s/test_custom_kinds.py looks at what is in them."""


@pytest.mark.parametrize("name", SETS)
def test_helm_lint_finds_nothing(name: str) -> None:
    report = lint(gen_chart.CHART, values(name), strict=True)
    assert report["errors"] == []
    assert [m["error"] for m in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize("name", SETS)
def test_manifests_are_strictly_valid(name: str, version: str) -> None:
    """Against the oldest Kubernetes that the chart admits and a new one; an unknown field is an error."""
    for manifest in manifests(values(name)):
        if manifest["kind"] in CUSTOM:
            assert manifest["apiVersion"] == CUSTOM[manifest["kind"]]
        else:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_the_strict_validation_sees_a_misspelt_field() -> None:
    (deployment,) = [manifest for manifest in manifests({}) if manifest["kind"] == "Deployment"]
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(deployment, "1.30", strict=True)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a key that is not there": ({"replicaCount": 2}, "at '': additional properties 'replicaCount' not allowed"),
    "a nested one": ({"gpu": {"cuont": 1}}, "at '/gpu': additional properties 'cuont' not allowed"),
    "a setting that the service does not know": (
        {"config": {"server": {"prot": 1}}},
        "at '/config/server': additional properties 'prot' not allowed",
    ),
    "a section that the service does not know": (
        {"config": {"sever": {"port": 1}}},
        "at '/config': additional properties 'sever' not allowed",
    ),
    "a setting of the wrong kind": (
        {"config": {"admission": {"max_calls": "many"}}},
        "at '/config/admission/max_calls': got string, want integer",
    ),
    "a setting out of range": (
        {"config": {"call": {"nearly_full": 1.5}}},
        "at '/config/call/nearly_full': maximum: got 1.5, want 1",
    ),
    "a port that the system chooses": (
        {"config": {"server": {"port": 0}}},
        "at '/config/server/port': minimum: got 0, want 1",
    ),
    "a choice that is none": (
        {"config": {"call": {"context_full": "drop"}}},
        "at '/config/call/context_full': value must be one of 'refuse', 'drop_oldest', 'summarise'",
    ),
    "another model without a directory": (
        {"config": {"fallback": {"small": {"device": "cuda"}}}},
        "at '/config/fallback/small': missing property 'model'",
    ),
    "an autoscaler of another name": (
        {"autoscaling": {"by": "vpa"}},
        "at '/autoscaling/by': value must be one of 'none', 'hpa', 'keda'",
    ),
    "weights by a branch": (
        {"models": {"downloads": [{"repository": "a/b", "revision": "main", "directory": "b"}]}},
        "at '/models/downloads/0/revision': 'main' does not match pattern",
    ),
    "a secret's value in place of its name": (
        {"secretEnv": {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=abc"}},
        "at '/secretEnv/OTEL_EXPORTER_OTLP_HEADERS': got string, want object",
    ),
    "an environment variable that is a number": ({"env": {"A": 1}}, "at '/env/A': got number, want string"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_values_are_refused_by_name(case: str) -> None:
    wrong, message = REFUSED[case]
    with pytest.raises(HelmValuesError) as refused:
        manifests(wrong)
    lines = [line for line in str(refused.value).splitlines() if line.startswith("- ")]
    assert len(lines) == 1, "one mistake, one message"
    assert lines[0].removeprefix("- ").startswith(message)


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "the tag latest": ({"image": {"tag": "latest"}}, "image.tag is latest"),
    "nobody could reach it": ({"config": {"server": {"host": "127.0.0.1"}}}, "config.server.host is 127.0.0.1"),
    "nor it by its name": ({"config": {"server": {"host": "localhost"}}}, "config.server.host is localhost"),
    "nobody could scrape it": (
        {"config": {"telemetry": {"prometheus_host": "::1"}}},
        "config.telemetry.prometheus_host is ::1: Prometheus cannot reach it",
    ),
    "TLS that no probe can ask": (
        {"config": {"tls": {"certificate": "/tls.crt", "key": "/tls.key"}, "server": {"health_port": None}}},
        "the kubelet's probes speak no TLS",
    ),
    "two uses of one port": ({"config": {"server": {"health_port": 50051}}}, "health has a port of its own"),
    "keys from nowhere": (
        {"config": {"auth": {"api_keys_file": "/etc/firstword/secrets/auth/keys.toml"}}},
        "name a Secret in secretFiles.auth",
    ),
    "a policy between pods and their weights": (
        values("keda", networkPolicy={"enabled": True}),
        "networkPolicy.egress is empty, so models.downloads could not reach the hub",
    ),
    "a password in a ConfigMap": (
        {"config": {"store": {"url": "redis://:hush@redis:6379/0"}}},
        "config.store.url holds a password",
    ),
    "a store without a key for all": (
        {"config": {"store": {"url": "redis://redis:6379/0"}}},
        "name a Secret in secretEnv.FIRSTWORD_RESUME__KEYS",
    ),
    "keys that could not rotate": (
        {
            "config": {"store": {"url": "redis://redis:6379/0"}},
            "secretEnv": {"FIRSTWORD_RESUME__KEYS": {"name": "firstword", "key": "resume-keys"}},
        },
        "name a Secret in secretEnv.FIRSTWORD_STORE__NAME_KEY",
    ),
    "nor with a store that a Secret names": (
        {"secretEnv": {name: {"name": "s", "key": "k"} for name in ("FIRSTWORD_STORE__URL", "FIRSTWORD_RESUME__KEYS")}},
        "name a Secret in secretEnv.FIRSTWORD_STORE__NAME_KEY",
    ),
    "cuda without a GPU": ({"gpu": {"count": 0}}, "config.engine.device is cuda and gpu.count is 0"),
    "ranks without GPUs": (
        {"config": {"engine": {"ranks": 2}}},
        "config.engine.ranks is 2 and gpu.count is 1: each rank has a GPU of its own",
    ),
    "a GPU for nothing": ({"config": {"engine": {"device": "cpu"}}}, "gpu.count asks for a GPU"),
    "weights from nowhere": (
        {"config": {"engine": {"model": "/models/llama"}}},
        "nothing is mounted at /models: set models.existingClaim or models.downloads",
    ),
    "weights of another name": (
        values("keda", config={"engine": {"model": "/models/llama-3.2-3b"}}),
        "config.engine.model is /models/llama-3.2-3b and models.downloads brings only llama-3.2-1b",
    ),
    "a rollout that cannot move": ({"rollout": {"maxSurge": 0}}, "no pod could ever be replaced"),
    "the least above the most": ({"autoscaling": {"minReplicas": 9}}, "minReplicas is above autoscaling.maxReplicas"),
    "scaling by what is not measured": (
        {"autoscaling": {"by": "hpa"}, "config": {"telemetry": {"metrics": "otlp"}}},
        "set config.telemetry.metrics to prometheus",
    ),
    "KEDA that asks nobody": (
        {"autoscaling": {"by": "keda"}, "serviceMonitor": {"enabled": True}},
        "autoscaling.keda.serverAddress is empty",
    ),
    "KEDA that asks for labels nobody sets": (
        {"autoscaling": {"by": "keda", "keda": {"serverAddress": "http://prometheus:9090"}}},
        "set serviceMonitor.enabled, or a query",
    ),
    "a monitor of nothing": (
        {"serviceMonitor": {"enabled": True}, "config": {"telemetry": {"metrics": "none"}}},
        "there is nothing to scrape",
    ),
    "rules about nothing": ({"prometheusRule": {"enabled": True}}, "set serviceMonitor.enabled"),
    "a route of no gateway": ({"gateway": {"enabled": True}}, "gateway.parentRefs is empty"),
    "no TOML": ({"extraConfig": "[server"}, "extraConfig is not TOML: "),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_values_that_contradict_each_other_are_refused(case: str) -> None:
    wrong, message = CONTRADICTIONS[case]
    with pytest.raises(HelmError, match=re.escape(message)):
        manifests(wrong)


def test_every_map_of_ours_is_closed() -> None:
    """None takes a key that it does not know. Kubernetes' own fragments are left to Kubernetes."""
    schema = json.loads(gen_chart.SCHEMA.read_text())
    theirs = {"affinity", "podSecurityContext", "securityContext", "global"}
    ours = {name: value for name, value in schema["properties"].items() if name not in theirs}
    maps = [schema, *walk_maps(ours), *walk_maps(schema["definitions"]["config"])]
    assert len(maps) > 30
    for node in maps:
        assert node.get("additionalProperties", True) is not True, node


def walk_maps(node: Any) -> list[dict[str, Any]]:
    """Every object schema with named properties, at any depth."""
    if not isinstance(node, dict):
        return []
    own = [node] if isinstance(node.get("properties"), dict) else []
    return own + [found for value in node.values() for found in walk_maps(value)]


def test_the_chart_is_of_the_services_version() -> None:
    project = tomllib.loads((gen_chart.ROOT / "pyproject.toml").read_text())["project"]
    chart = yaml.safe_load((gen_chart.CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == project["version"]


def test_the_readme_names_every_value() -> None:
    table = (gen_chart.CHART.parent / "README.md").read_text()
    table = table[table.index("## Values") : table.index("## The image")]
    named = set(re.findall(r"`(\w+)`", table))
    with_default = set(yaml.safe_load((gen_chart.CHART / "values.yaml").read_text()))
    assert with_default <= named
    assert json.loads(gen_chart.SCHEMA.read_text())["properties"].keys() == with_default | {"global"}
