"""The real service on the embedded model, started once for all tests that do it no harm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.server import MODEL, ServiceProcess


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not (MODEL / "model.safetensors").is_file():
        for item in items:
            if "tests/e2e" in str(item.path):
                item.add_marker(pytest.mark.skip(reason="models/receptionist is not there: make model"))


@pytest.fixture(scope="session")
def service() -> Iterator[ServiceProcess]:
    with ServiceProcess() as process:
        yield process
