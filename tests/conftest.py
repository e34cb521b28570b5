"""The real service on the embedded model, started once for all tests that do it no harm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.server import ServiceProcess


@pytest.fixture(scope="session")
def service() -> Iterator[ServiceProcess]:
    from tests.e2e.server import ServiceProcess  # the engine's tests run where there is no grpc

    with ServiceProcess() as process:
        yield process
