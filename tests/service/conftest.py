"""Examples of a property are not timed: the machine that runs them may be busy with something else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.service.calls import CallUnderTest

settings.register_profile("service", deadline=None)
settings.load_profile("service")


@pytest.fixture(autouse=True)
def ended_calls() -> Iterator[None]:
    """Every call that a test has opened ends with it: they share one pool of pages."""
    yield
    CallUnderTest.end_all()
