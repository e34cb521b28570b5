"""What holds whatever the values are: of calls that survive, of pods that can be trusted, of what names what."""

from __future__ import annotations

import math
import re
import tomllib
from typing import Any

import pytest
import yaml

from tests.k8s.charts import SETS, Manifest, container, gen_chart, manifests, of_kind, pod, the, toml, values, walk


@pytest.fixture(params=SETS)
def rendered(request: pytest.FixtureRequest) -> list[Manifest]:
    return manifests(values(request.param))


def containers(rendered: list[Manifest]) -> list[Manifest]:
    """Of all pods: the service's, what downloads weights, and the test's."""
    specs = [pod(rendered), the("Pod", rendered)["spec"]]
    return [one for spec in specs for one in [*spec.get("initContainers", []), *spec["containers"]]]


# Calls


def test_the_pods_grace_is_longer_than_the_services(rendered: list[Manifest]) -> None:
    server = tomllib.loads(toml(rendered))["server"]
    before = container(rendered).get("lifecycle", {"preStop": {"sleep": {"seconds": 0}}})["preStop"]["sleep"]["seconds"]
    ends_in = pod(rendered)["terminationGracePeriodSeconds"] - before - server["stop_grace_s"]
    assert ends_in >= 19, "the streams' ends, the engine's and the last spans come after the calls' grace"


@pytest.mark.parametrize("grace", [0, 0.2, 59.9, 7200])
def test_the_grace_follows_the_configuration(grace: float) -> None:
    spec = pod(manifests({"config": {"server": {"stop_grace_s": grace}}, "preStopSeconds": 7}))
    assert spec["terminationGracePeriodSeconds"] == 7 + math.ceil(grace) + 20


def test_probes_ask_ports_that_are_there_for_names_that_mean_it(rendered: list[Manifest]) -> None:
    service = container(rendered)
    ports = {port["containerPort"] for port in service["ports"] if port["name"] == "health"}
    probes = {name: service[f"{name}Probe"]["grpc"] for name in ("startup", "readiness", "liveness")}
    assert {probe["port"] for probe in probes.values()} == ports
    assert probes["startup"]["service"] == probes["readiness"]["service"] == "firstword.v1.CallService"
    assert probes["liveness"]["service"] == "liveness", "the other ends calls that wait for a new engine"


@pytest.mark.parametrize("seconds", [5, 181, 600, 7200])
def test_the_startup_probe_waits_for_the_weights(seconds: int) -> None:
    probe = container(manifests({"probes": {"startupSeconds": seconds}}))["startupProbe"]
    waits = probe["periodSeconds"] * probe["failureThreshold"]
    assert seconds <= waits < seconds + probe["periodSeconds"]


def test_an_image_cannot_say_where_to_listen(rendered: list[Manifest]) -> None:
    """Its own FIRSTWORD_SERVER__HOST would win over firstword.toml; the pod's wins over that."""
    server = tomllib.loads(toml(rendered))["server"]
    assert {"name": "FIRSTWORD_SERVER__HOST", "value": server["host"]} in container(rendered)["env"]


def test_a_rollout_is_given_up_later_than_a_pod_may_drain_and_load(rendered: list[Manifest]) -> None:
    spec = the("Deployment", rendered)["spec"]
    probe = container(rendered)["startupProbe"]
    loads = probe["periodSeconds"] * probe["failureThreshold"]
    assert spec["progressDeadlineSeconds"] >= loads + pod(rendered)["terminationGracePeriodSeconds"]


def test_the_autoscaler_owns_the_number_of_pods(rendered: list[Manifest]) -> None:
    deployment = the("Deployment", rendered)
    scalers = [*of_kind("HorizontalPodAutoscaler", rendered), *of_kind("ScaledObject", rendered)]
    assert ("replicas" in deployment["spec"]) == (not scalers)
    for scaler in scalers:
        assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]


def test_headroom_is_left_of_the_call_limit() -> None:
    def target(calls: int, percent: int) -> str:
        over: dict[str, Any] = {
            "config": {"admission": {"max_calls": calls}},
            "autoscaling": {"by": "hpa", "headroomPercent": percent},
        }
        (metric,) = the("HorizontalPodAutoscaler", manifests(over))["spec"]["metrics"]
        return str(metric["pods"]["target"]["averageValue"])

    assert target(64, 30) == "44"
    assert target(100, 0) == "100"
    assert target(1, 90) == "1"


def test_scaling_down_is_slower_than_up_and_one_pod_at_a_time() -> None:
    for name, path in (("production", "HorizontalPodAutoscaler"), ("keda", "ScaledObject")):
        spec = the(path, manifests(values(name)))["spec"]
        behaviour = spec.get("behavior") or spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        assert behaviour["scaleUp"]["stabilizationWindowSeconds"] == 0
        assert behaviour["scaleDown"]["stabilizationWindowSeconds"] == 900
        assert [policy["value"] for policy in behaviour["scaleDown"]["policies"]] == [1]


def test_a_budget_never_stops_a_nodes_drain(rendered: list[Manifest]) -> None:
    for budget in of_kind("PodDisruptionBudget", rendered):
        assert "minAvailable" not in budget["spec"]
        assert budget["spec"]["maxUnavailable"] == 1
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


# Trust


def test_pods_are_confined(rendered: list[Manifest]) -> None:
    """By the rules of the Pod Security Standard "restricted", and a read-only root and no token beside."""
    for spec in (pod(rendered), the("Pod", rendered)["spec"]):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    for one in containers(rendered):
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not [port for port in one.get("ports", []) if "hostPort" in port]
    kinds = {kind for volume in pod(rendered)["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
    for account in of_kind("ServiceAccount", rendered):
        assert account["automountServiceAccountToken"] is False


def test_a_platform_may_choose_the_user() -> None:
    over = {"podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None}}
    assert pod(manifests(over))["securityContext"] == {
        "runAsNonRoot": True,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_what_is_written_to_is_mounted_and_the_rest_is_read_only(rendered: list[Manifest]) -> None:
    volumes = {volume["name"]: volume for volume in pod(rendered)["volumes"]}
    for one in [container(rendered), *pod(rendered).get("initContainers", [])]:
        mounts = {mount["mountPath"]: mount for mount in one["volumeMounts"]}
        assert {mount["name"] for mount in mounts.values()} <= volumes.keys()
        writable = {path for path, mount in mounts.items() if not mount.get("readOnly")}
        assert writable == ({"/tmp"} if one["name"] == "firstword" else {"/tmp", "/models"})
        homes = {entry["value"] for entry in one["env"] if entry["name"] == "HOME"}
        assert homes == {"/tmp"}
    assert all("sizeLimit" in volume["emptyDir"] for volume in volumes.values() if "emptyDir" in volume)


def test_secrets_are_named_and_never_held(rendered: list[Manifest]) -> None:
    assert of_kind("Secret", rendered) == []
    telling = re.compile(r"token|password|secret|api_?key|headers|credential", re.IGNORECASE)
    for one in containers(rendered):
        for entry in one.get("env", []):
            assert not (telling.search(entry["name"]) and "value" in entry), entry
    for key, value in walk(tomllib.loads(toml(rendered))):
        assert not (telling.search(key) and isinstance(value, str)) or key.endswith("_file"), key


def test_every_secret_that_is_asked_for_is_referred_to() -> None:
    rendered = manifests(values("everything"))
    references = [value for one in containers(rendered) for key, value in walk(one) if key == "secretKeyRef"]
    assert {"name": "otlp", "key": "headers"} in references
    assert {"name": "hugging-face", "key": "hf"} in references
    volumes = [volume["secret"] for volume in pod(rendered)["volumes"] if "secret" in volume]
    assert volumes == [{"secretName": f"firstword-{name}", "defaultMode": 0o440} for name in ("auth", "tls")]


def test_images_have_a_version(rendered: list[Manifest]) -> None:
    for one in containers(rendered):
        tag = one["image"].rpartition("/")[2].partition(":")[2]
        assert tag and tag != "latest", one["image"]


# Names and ports


def test_policies_let_calls_probes_and_scrapes_through() -> None:
    for name in ("production", "everything"):
        rendered = manifests(values(name))
        policy = the("NetworkPolicy", rendered)["spec"]
        assert policy["podSelector"]["matchLabels"].items() <= labels(rendered).items()
        ports = {port["name"] for port in container(rendered)["ports"]}
        opened = {port["port"]: rule["from"] for rule in policy["ingress"] for port in rule["ports"]}
        assert ports == {"grpc", "health", "metrics"}
        assert opened.keys() == (ports if name == "everything" else ports - {"health"}), (
            "helm test asks it where TLS is"
        )
        assert all(opened.values()), "an empty list of peers would be everybody"
        tester = the("Pod", rendered)["metadata"]["labels"]
        assert any(
            peer["podSelector"]["matchLabels"].items() <= tester.items()
            for peer in opened["grpc"]
            if "podSelector" in peer
        )
        lookups = policy["egress"][0]
        assert lookups == {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}


def test_a_policy_without_clients_is_open_to_its_namespace_only() -> None:
    policy = the("NetworkPolicy", manifests({"networkPolicy": {"enabled": True}}))["spec"]
    assert policy["ingress"][0]["from"] == [{"podSelector": {}}]


def labels(rendered: list[Manifest]) -> dict[str, str]:
    return dict(the("Deployment", rendered)["spec"]["template"]["metadata"]["labels"])


def test_everything_selects_the_pods_and_points_at_ports_they_have(rendered: list[Manifest]) -> None:
    ports = {port["name"]: port["containerPort"] for port in container(rendered)["ports"]}
    services = {service["metadata"]["name"]: service["spec"] for service in of_kind("Service", rendered)}
    assert sorted("clusterIP" in spec for spec in services.values()) == [False, True]
    for spec in services.values():
        assert spec["selector"].items() <= labels(rendered).items()
        assert {port["targetPort"]: port["port"] for port in spec["ports"]}.items() <= ports.items()
    for kind, path in (("PodDisruptionBudget", "selector"), ("Deployment", "selector")):
        for one in of_kind(kind, rendered):
            assert one["spec"][path]["matchLabels"].items() <= labels(rendered).items()
    for route in of_kind("GRPCRoute", rendered):
        for rule in route["spec"]["rules"]:
            (backend,) = rule["backendRefs"]
            assert backend["port"] in {port["port"] for port in services[backend["name"]]["ports"]}
    tester = the("Pod", rendered)
    asked = {one["args"][1].partition(":")[0].partition(".")[0] for one in tester["spec"]["containers"]}
    assert asked == services.keys()
    assert not all(tester["metadata"]["labels"].get(key) == value for key, value in labels(rendered).items())


def test_a_gpu_is_asked_for_where_one_is_used() -> None:
    rendered = manifests(values("everything"))
    assert container(rendered)["resources"]["limits"]["nvidia.com/mig-3g.40gb"] == 2
    assert pod(rendered)["nodeSelector"]["nvidia.com/gpu.present"] == "true"
    assert pod(rendered)["runtimeClassName"] == "nvidia"
    assert all("resources" in one for one in containers(rendered))
    laptop = manifests(values("laptop"))
    assert "nvidia" not in str(pod(laptop))


def test_ranks_have_shared_memory() -> None:
    rendered = manifests({"config": {"engine": {"ranks": 2}}, "gpu": {"count": 2}})
    volumes = {volume["name"]: volume for volume in pod(rendered)["volumes"]}
    assert volumes["shared"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}
    assert {"name": "shared", "mountPath": "/dev/shm"} in container(rendered)["volumeMounts"]


def test_disk_is_asked_for_where_weights_are_downloaded_to_it() -> None:
    assert container(manifests(values("keda")))["resources"]["requests"]["ephemeral-storage"] == "64Gi"
    into_a_claim = container(manifests(values("everything")))["resources"]["requests"]
    assert "ephemeral-storage" not in into_a_claim


def test_releases_of_one_name_in_two_namespaces_share_nothing_of_the_clusters() -> None:
    names = []
    for namespace in ("one", "two"):
        texts = gen_chart.rendered(values("production"), namespace=namespace).values()
        found = [yaml.safe_load(text) for text in texts if "kind: PriorityClass" in text]
        names += [one["metadata"]["name"] for one in found]
    assert names == ["firstword-one", "firstword-two"]


def test_two_releases_in_one_namespace_keep_apart() -> None:
    first, second = (manifests(values("production"), release) for release in ("sales", "support"))
    names = [{(one["kind"], one["metadata"]["name"]) for one in some} for some in (first, second)]
    assert not names[0] & names[1]
    for one, other in ((first, second), (second, first)):
        for service in of_kind("Service", one):
            assert not service["spec"]["selector"].items() <= labels(other).items()


def test_long_names_stay_names() -> None:
    rendered = manifests(values("everything", fullnameOverride="", nameOverride="a" * 60), "b" * 53)
    for one in rendered:
        assert len(one["metadata"]["name"]) <= 63
        assert all(len(str(value)) <= 63 for value in one["metadata"].get("labels", {}).values())
