"""What a store is opened with, and what is said of it."""

from __future__ import annotations

import logging

import pytest

from service.config import ResumeConfig, ServiceConfig, StoreConfig
from service.store.opening import store_of

KEY = "a secret of all servers"
OTHER = "another secret of all"


@pytest.mark.parametrize(
    ("keys", "name_key", "warnings"),
    [(KEY, "", 1), (f"{OTHER}, {KEY}", "", 1), (KEY, OTHER, 0), (f"{OTHER}, {KEY}", KEY, 0)],
)
def test_a_store_whose_names_would_rotate_is_told_of_before_they_do(
    keys: str, name_key: str, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    config = ServiceConfig(
        store=StoreConfig(url="redis://localhost", name_key=name_key), resume=ResumeConfig(keys=keys)
    )
    with caplog.at_level(logging.WARNING):
        store_of(config, "", lambda: (0, 1), dict)
    assert ["store.name_key is not set" in record.message for record in caplog.records] == [True] * warnings
