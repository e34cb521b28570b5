"""A server whose telemetry is received, started once for all tests that read it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e import observed as running
from tests.e2e.observed import Observed


@pytest.fixture(scope="session")
def observed() -> Iterator[Observed]:
    with running.observed() as found:
        yield found
