"""The checker tells a server that wrote of a call it had lost from a store that has not heard who has it."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis.asyncio

from service.call_records import Record, written
from service.signing import Signing
from service.store import scripts
from tests.service.store.valkey import Valkey
from tests.soak import checker
from tests.soak.caller import Heard
from tests.soak.checker import Verdict

SECRET, CALL = "a secret of the tests' own", "call-1"
SIGNING = Signing((SECRET,), 60.0)


def _record(generation: int, base: int, seq: int) -> bytes:
    return written(SIGNING, Record("", CALL, generation, base, seq, seq - 1, ()))


@pytest.mark.parametrize(("lease", "behind", "wrong"), [(1, 1, 0), (2, 0, 1)])
async def test_a_record_of_a_call_that_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lease: int, behind: int, wrong: int
) -> None:
    monkeypatch.setattr(checker, "CATCH_UP_S", 0.0)
    heard = Heard(0, CALL, generations={1, 2}, last_seq=3)
    heard.records = {1: _record(1, 0, 1), 2: _record(1, 0, 2), 3: _record(2, 2, 3)}
    stored = heard.records | {3: _record(1, 0, 3)}  # by whom the client had left behind event 2
    store, verdict = Valkey(tmp_path), Verdict()
    store.start()
    try:
        async with redis.asyncio.Redis.from_url(store.url) as client:
            entries = [item for seq, record in stored.items() for item in (seq, b"\0" + record)]
            names = [f"firstword:{{{checker._name(CALL, SECRET)}}}:{kind}" for kind in ("lease", "log")]
            await client.eval(scripts.APPEND, 2, *names, lease, "a pod", 0, -1, 60_000, "0", "", "", *entries)
            await verdict.compare(heard, client, SIGNING, SECRET)
    finally:
        store.kill()
    assert (verdict.behind, len(verdict.wrong), verdict.stored_records) == (behind, wrong, 3)
