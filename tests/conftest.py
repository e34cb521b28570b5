"""The real service on the embedded model, started once for all tests that do it no harm."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.server import ServiceProcess

if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU; Triton decides when it is first imported

# These have an environment of their own, with 400 MB that nothing else needs: `make test-livekit`.
collect_ignore = [] if importlib.util.find_spec("livekit") else ["livekit"]


@pytest.fixture(scope="session")
def service() -> Iterator[ServiceProcess]:
    from tests.e2e.server import ServiceProcess  # the engine's tests run where there is no grpc

    with ServiceProcess() as process:
        yield process
