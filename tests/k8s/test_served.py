"""The real service, started on what the chart renders, is asked what the chart's manifests ask: a pod's life."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from os import kill
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from firstword.v1 import options_pb2 as options_pb
from tests.e2e.server import CallStream, ServiceProcess, connected
from tests.k8s.charts import container, manifests, the, toml, values

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING

RENDERED = manifests(values("laptop"))


class Probes:
    """Asks as the kubelet does: a probe passes where the service that it names says SERVING in time."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._health = health_pb2_grpc.HealthStub(channel)

    async def passes(self, name: str) -> bool:
        probe = container(RENDERED)[f"{name}Probe"]
        request = health_pb2.HealthCheckRequest(service=probe["grpc"]["service"])
        return bool((await self._health.Check(request, timeout=probe["timeoutSeconds"])).status == SERVING)

    async def readiness(self) -> AsyncIterator[bool]:
        """Each change of it, from what it is now."""
        service = container(RENDERED)["readinessProbe"]["grpc"]["service"]
        async for answer in self._health.Watch(health_pb2.HealthCheckRequest(service=service)):
            yield answer.status == SERVING


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def helm_test(port: int) -> list[int]:
    """Exit statuses of what ``helm test`` runs in the cluster, against the service here."""
    statuses = []
    for one in the("Pod", RENDERED)["spec"]["containers"]:
        script, address, *names = one["args"]
        assert address.endswith(":50051")
        command = [sys.executable, *one["command"][1:], script, f"127.0.0.1:{port}", *names]
        statuses.append(subprocess.run(command, timeout=60, check=False, capture_output=True).returncode)
    return statuses


def metrics_used() -> set[str]:
    """Names of the metrics that pods are scaled by and rules are about."""
    hpa, keda = manifests(values("production")), manifests(values("keda"))
    expressions = [
        the("HorizontalPodAutoscaler", hpa)["spec"]["metrics"][0]["pods"]["metric"]["name"],
        the("ScaledObject", keda)["spec"]["triggers"][0]["metadata"]["query"],
        *(rule["expr"] for rule in the("PrometheusRule", hpa)["spec"]["groups"][0]["rules"]),
    ]
    return {name for expression in expressions for name in re.findall(r"\bfirstword_\w+", expression)}


def environment(directory: Path, metrics_port: int) -> dict[str, str]:
    """The container's, with ports that are free here."""
    file = directory / "firstword.toml"
    file.write_text(toml(RENDERED))
    given = {entry["name"]: entry["value"] for entry in container(RENDERED)["env"] if "value" in entry}
    return {
        **given,
        "FIRSTWORD_CONFIG": str(file),
        "FIRSTWORD_SERVER__PORT": "0",
        "FIRSTWORD_SERVER__HEALTH_PORT": "0",
        "FIRSTWORD_SERVER__STOP_GRACE_S": "60",  # the laptop's five seconds are few for a busy machine
        "FIRSTWORD_TELEMETRY__PROMETHEUS_PORT": str(metrics_port),
    }


async def test_a_pods_life(tmp_path: Path) -> None:
    metrics_port = free_port()
    process = ServiceProcess(environment(tmp_path, metrics_port))
    try:
        listening = await asyncio.to_thread(process.wait_for, "listening")
        port, health_port = int(listening["port"]), int(listening["health_port"])
        async with grpc.aio.insecure_channel(f"127.0.0.1:{health_port}") as channel:
            probes = Probes(channel)
            assert not await probes.passes("startup"), "weights are being loaded"
            assert await probes.passes("liveness")
            await asyncio.to_thread(process.wait_for, "serving")
            assert await probes.passes("startup")
            assert await probes.passes("readiness")
            assert await asyncio.to_thread(helm_test, port) == [0, 0]
            await check_metrics_without_a_call(metrics_port)
            await check_a_replaced_engine(process, probes)
            await check_a_drain(process, port, probes)
    finally:
        await asyncio.to_thread(process.stop)


async def check_metrics_without_a_call(metrics_port: int) -> None:
    """An idle pod is one that says 0, not one that says nothing: autoscalers must know the difference."""

    def page() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics") as answer:
            return str(answer.read().decode())

    figures = dict(re.findall(r"^(\w+)(?:\{.*\})? (\S+)$", await asyncio.to_thread(page), re.MULTILINE))
    assert metrics_used() == {"firstword_calls_active"}
    assert float(figures["firstword_calls_active"]) == 0


async def check_a_replaced_engine(process: ServiceProcess, probes: Probes) -> None:
    """No new calls meanwhile, and nobody restarts the pod for it."""
    changes = probes.readiness()
    assert await anext(changes)
    kill(process.engine_pid, signal.SIGKILL)
    assert not await anext(changes)
    assert await probes.passes("liveness")
    assert await anext(changes)
    assert await probes.passes("liveness")


async def check_a_drain(process: ServiceProcess, port: int, probes: Probes) -> None:
    """SIGTERM: no new calls, an open one goes on, and nobody kills it for that."""
    async with connected(f"127.0.0.1:{port}") as stub:
        call = CallStream(stub)
        await call.open(sampling=options_pb.Sampling(max_output_tokens=8))
        process.process.send_signal(signal.SIGTERM)
        notice: Any = await call.expect("notice")
        assert notice.draining.grace_ms == 55_000  # the rest is for what goes on elsewhere
        assert not await probes.passes("readiness")
        assert await probes.passes("liveness")
        assert await asyncio.to_thread(helm_test, port) == [1, 1]
        assert (await call.say("hello")).ended is not None
        assert await call.close() is grpc.StatusCode.OK
    assert await asyncio.to_thread(process.process.wait, 30) == 0
