"""The client is light: importing it loads nothing that only a server, the terminal or training has."""

from __future__ import annotations

import subprocess
import sys

from tests.e2e.server import ROOT

LOADED = "import firstword, sys; print(*{name.split('.')[0] for name in sys.modules})"
HEAVY = {
    "torch",
    "numpy",
    "transformers",
    "engine",
    "service",
    "textual",
    "rich",
    "prometheus_client",
    "opentelemetry",
    "pydantic",
    "livekit",
    "redis",
}


def test_importing_the_client_loads_nothing_heavy() -> None:
    result = subprocess.run([sys.executable, "-c", LOADED], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert {"firstword", "grpc"} <= loaded
    assert not loaded & HEAVY
