"""Kinds of other projects, whose schemas are not at hand in the tests: what is in them, written out."""

from __future__ import annotations

import re

from tests.k8s.charts import manifests, the, values


def test_calls_are_routed_without_time_outs_and_back_to_the_pod_that_is_warm() -> None:
    rendered = manifests(values("production"))
    route = the("GRPCRoute", rendered)["spec"]
    assert route["parentRefs"] == [{"name": "voice", "namespace": "gateways", "sectionName": "grpc"}]
    assert route["hostnames"] == ["voice.example.com"]
    calls, health = route["rules"]
    backends = [{"name": "firstword", "port": 50051}]
    assert calls == {
        "matches": [{"method": {"service": "firstword.v1.CallService"}}],
        "backendRefs": backends,
        "sessionPersistence": {"type": "Header", "sessionName": "x-firstword-pod"},
    }
    assert health == {"matches": [{"method": {"service": "grpc.health.v1.Health"}}], "backendRefs": backends}
    policy = the("BackendTrafficPolicy", rendered)["spec"]
    assert policy == {
        "targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "GRPCRoute", "name": "firstword"}],
        "timeout": {"http": {"requestTimeout": "0s", "maxStreamDuration": "0s", "streamIdleTimeout": "0s"}},
        "tcpKeepalive": {"idleTime": "60s", "interval": "20s", "probes": 3},
        "loadBalancer": {"type": "LeastRequest"},
        "circuitBreaker": {"maxParallelRequests": 1024, "maxPendingRequests": 1024},
    }


def test_a_gateways_breaker_is_never_the_limit_on_calls() -> None:
    over = {"config": {"admission": {"max_calls": 500}}, "autoscaling": {"maxReplicas": 40}}
    breaker = the("BackendTrafficPolicy", manifests(values("production", **over)))["spec"]["circuitBreaker"]
    assert breaker["maxParallelRequests"] == (40 + 1) * 500


def test_another_gateway_gets_the_route_alone() -> None:
    rendered = manifests(values("gateway"))
    assert "sessionPersistence" not in the("GRPCRoute", rendered)["spec"]["rules"][0]
    assert all(one["kind"] != "BackendTrafficPolicy" for one in rendered)


def test_keda_counts_this_releases_calls_and_drains_nobody_in_the_dark() -> None:
    spec = the("ScaledObject", manifests(values("keda")))["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (2, 8)
    assert spec["fallback"] == {"failureThreshold": 4, "replicas": 2, "behavior": "currentReplicasIfHigher"}
    (trigger,) = spec["triggers"]
    assert trigger["type"] == "prometheus"
    assert trigger["metricType"] == "AverageValue"
    assert trigger["metadata"] == {
        "serverAddress": "http://prometheus.monitoring:9090",
        "query": 'sum(firstword_calls_active{namespace="voice",service="firstword-headless"})',
        "threshold": "22",
        "ignoreNullValues": "false",
    }
    assert all(isinstance(value, str) for value in trigger["metadata"].values())


def test_prometheus_scrapes_the_pods_through_the_headless_service_alone() -> None:
    rendered = manifests(values("production"))
    monitor = the("ServiceMonitor", rendered)
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    (endpoint,) = monitor["spec"]["endpoints"]
    services = [one for one in rendered if one["kind"] == "Service"]
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    scraped = [
        one["metadata"]["name"]
        for one in services
        if wanted <= one["metadata"]["labels"].items()
        and endpoint["port"] in {port["name"] for port in one["spec"]["ports"]}
    ]
    assert scraped == ["firstword-headless"]


def test_capacity_rules_are_about_this_releases_calls() -> None:
    groups = the("PrometheusRule", manifests(values("production")))["spec"]["groups"]
    assert groups[0]["name"] == "firstword-capacity"
    for rule in groups[0]["rules"]:
        assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
        metrics = set(re.findall(r"\bfirstword_[a-z_]+", rule["expr"]))
        assert metrics == {"firstword_calls_active"}  # test_served.py finds it in what the service shows
        assert 'service="firstword-headless"' in rule["expr"]
