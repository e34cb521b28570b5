"""The real service, run by the project's Python, for tests that run by one that has LiveKit and not torch."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.e2e.server import ROOT, ServiceProcess


@pytest.fixture(scope="session")
def service() -> Iterator[ServiceProcess]:
    with ServiceProcess(python=os.environ.get("FIRSTWORD_SERVICE_PYTHON", str(ROOT / ".venv/bin/python"))) as process:
        yield process
