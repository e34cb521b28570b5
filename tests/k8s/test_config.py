"""The rendered firstword.toml is what the service takes: read by its own loader, for every set of values."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.config import ConfigError, ServiceConfig, load_config
from tests.k8s.charts import SETS, container, manifests, the, toml, values


def loaded(text: str, directory: Path) -> ServiceConfig:
    file = directory / "firstword.toml"
    file.write_text(text, encoding="utf-8")
    return load_config({"FIRSTWORD_RESUME__KEYS": "signed by whoever has it"}, file)


@pytest.mark.parametrize("name", SETS)
def test_the_service_reads_it(name: str, tmp_path: Path) -> None:
    rendered = manifests(values(name))
    config = loaded(toml(rendered), tmp_path)
    ports = {port["name"]: port["containerPort"] for port in container(rendered)["ports"]}
    assert ports == {
        "grpc": config.server.port,
        "health": config.server.health_port,
        "metrics": config.telemetry.prometheus_port,
    }
    assert "prometheus" in config.telemetry.metrics
    assert config.engine.device.startswith("cuda") == ("nvidia.com" in str(container(rendered)["resources"]))


def test_what_is_set_arrives(tmp_path: Path) -> None:
    config = loaded(toml(manifests(values("everything"))), tmp_path)
    assert config.admission.max_calls == 48, "extraConfig lies over config"
    assert config.server.port == 7443, "and leaves the rest of its table"
    assert config.call.nearly_full == 0.8
    assert config.fallback["small"].draft_layer_ids == (2, 8, 13)
    assert config.fallback["small"].dtype == "bfloat16"
    assert config.fallback["other"].model == "/models/Qwen3-0.6B"


def test_pods_that_share_a_store_say_where_they_are() -> None:
    def advertised(rendered: list[dict[str, Any]]) -> list[str]:
        entries = container(rendered)["env"]
        assert [entry["name"] for entry in entries].index("POD_IP") < len(entries) - 1
        return [entry["value"] for entry in entries if entry["name"] == "FIRSTWORD_SERVER__ADVERTISE"]

    assert advertised(manifests(values("production"))) == ["$(POD_IP):50051"]
    assert advertised(manifests(values("default"))) == []


@pytest.mark.parametrize(("ip", "host"), [("10.0.0.7", "10.0.0.7"), ("fd00::7", "[fd00::7]")])
def test_clients_can_dial_what_a_pod_says_of_itself_whichever_kind_its_ip_is(ip: str, host: str) -> None:
    (said,) = (
        entry["value"]
        for entry in container(manifests(values("production")))["env"]
        if entry["name"] == "FIRSTWORD_SERVER__ADVERTISE"
    )
    config = load_config({"FIRSTWORD_SERVER__ADVERTISE": said.replace("$(POD_IP)", ip)})
    assert config.server.advertise == f"{host}:50051"


def test_the_loader_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    """The chart lets a newer service's keys through; this service says no to them."""
    rendered = toml(manifests({"extraConfig": "[server]\nwarp = 9"}))
    with pytest.raises(ConfigError, match=r"server\.warp.*unknown key"):
        loaded(rendered, tmp_path)


def test_a_service_named_firstword_would_break_the_configuration() -> None:
    """Why enableServiceLinks is false: these are the variables that Kubernetes sets for a Service of that name."""
    for variable in ("FIRSTWORD_PORT", "FIRSTWORD_SERVICE_HOST", "FIRSTWORD_PORT_50051_TCP"):
        with pytest.raises(ConfigError, match=variable):
            load_config({variable: "tcp://10.0.0.1:50051"})


text = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(
    model=text,
    layers=st.lists(st.integers(0, 100), max_size=3),
    theta=st.floats(1e-3, 1e12),
    pool=st.integers(0, 2**53),
    coupled=st.booleans(),
    names=st.lists(st.from_regex(r"[a-z][a-z0-9_-]{0,9}", fullmatch=True), unique=True, max_size=3),
)
def test_every_value_comes_through_two_formats_unchanged(
    model: str, layers: list[int], theta: float, pool: int, coupled: bool, names: list[str]
) -> None:
    """YAML into Helm, TOML out of it, inside a manifest that is YAML again."""
    engine: dict[str, Any] = {
        "model": model,
        "draft_layer_ids": layers,
        "draft_rope_theta": theta,
        "pool_tokens": pool,
        "couple_noise": coupled,
        "device": "cuda",
    }
    config = {"engine": engine, "fallback": dict.fromkeys(names, engine)}
    read = tomllib.loads(toml(manifests({"config": config, "models": {"existingClaim": "weights"}})))
    assert {key: read["engine"][key] for key in engine} == engine
    assert read.get("fallback", {}) == dict.fromkeys(names, engine)


def test_a_changed_setting_rolls_the_pods_and_nothing_else_does() -> None:
    def checksum(**over: Any) -> str:
        template = the("Deployment", manifests(values("default", **over)))["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert checksum(config={"call": {"nearly_full": 0.5}}) != checksum()
    assert checksum(extraConfig="[call]\nnearly_full = 0.5") == checksum(config={"call": {"nearly_full": 0.5}})
    assert checksum(replicas=5) == checksum()
