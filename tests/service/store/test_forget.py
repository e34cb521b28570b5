"""The command that deletes what is stored of a caller."""

from __future__ import annotations

import asyncio
import sys

import pytest

from service.config import ResumeConfig, ServiceConfig, StoreConfig
from service.store import CallKey, Ownership
from service.store.forget import main
from service.store.opening import store_of
from tests.service.store.valkey import valkey
from tests.service.waiting import until

KEY = "a secret of all servers"


async def a_call_of(url: str, caller: str) -> None:
    """Store one."""
    config = ServiceConfig(store=StoreConfig(url=url, timeout_s=5.0), resume=ResumeConfig(keys=KEY))
    store = store_of(config, "", lambda: (0, 1), dict)
    await store.start()
    owned = Ownership(1, 0, 0, caller, lambda: (1, b""), lambda lost: None, lambda durable: None)
    store.begin(CallKey("", "call-1"), owned).append(1, b"record")
    await until(lambda: not store.writer.pending)
    await store.stop(0.0)


def test_it_deletes_what_there_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FIRSTWORD_RESUME__KEYS", KEY)
    with valkey() as server:
        monkeypatch.setenv("FIRSTWORD_STORE__URL", server.url)
        monkeypatch.setenv("FIRSTWORD_STORE__TIMEOUT_S", "5")
        asyncio.run(a_call_of(server.url, "anna"))
        for caller, calls in (("otto", 0), ("anna", 1), ("anna", 0)):
            monkeypatch.setattr(sys, "argv", ["forget", caller])
            assert main() == 0
            assert capsys.readouterr().out == f"{calls} calls deleted\n"
    assert main() == 1
    assert "does not answer" in capsys.readouterr().err
    monkeypatch.delenv("FIRSTWORD_STORE__URL")
    assert main() == 2
    assert "store.url" in capsys.readouterr().err
