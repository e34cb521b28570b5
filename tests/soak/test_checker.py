"""The checker tells a server that wrote of a call it had lost from a store that has not heard who has it."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis.asyncio

from service.call_records import Record, written
from service.call_services import CallServices
from service.problems import Problem, Reason
from service.signing import Signing
from service.store import scripts
from tests.service.pods import client_of, local_pods
from tests.service.store.valkey import Valkey
from tests.soak import checker
from tests.soak.caller import Caller, Heard
from tests.soak.checker import Verdict

SECRET, CALL = "a secret of the tests' own", "call-1"
SIGNING = Signing((SECRET,), 60.0)


def _record(generation: int, base: int, seq: int) -> bytes:
    return written(SIGNING, Record("", CALL, generation, base, seq, seq - 1, ()))


async def _compared(directory: Path, heard: Heard, lease: int, stored: dict[int, bytes]) -> Verdict:
    """With what a store has."""
    store, verdict = Valkey(directory), Verdict()
    store.start()
    try:
        async with redis.asyncio.Redis.from_url(store.url) as client:
            entries = [item for seq, record in stored.items() for item in (seq, b"\0" + record)]
            names = [f"firstword:{{{checker._name(CALL, SECRET)}}}:{kind}" for kind in ("lease", "log")]
            await client.eval(scripts.APPEND, 2, *names, lease, "a pod", 0, -1, 60_000, "0", "", "", *entries)
            await verdict.compare(heard, client, SIGNING, SECRET)
    finally:
        store.kill()
    return verdict


@pytest.fixture(autouse=True)
def _catch_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker, "CATCH_UP_S", 0.0)


@pytest.mark.parametrize(("lease", "behind", "wrong"), [(1, 1, 0), (2, 0, 1)])
async def test_a_record_of_a_call_that_was_lost(tmp_path: Path, lease: int, behind: int, wrong: int) -> None:
    heard = Heard(0, CALL, generations={1: 1, 2: 1, 3: 2}, last_seq=3)
    heard.records = {1: _record(1, 0, 1), 2: _record(1, 0, 2), 3: _record(2, 2, 3)}
    stored = heard.records | {3: _record(1, 0, 3)}  # by whom the client had left behind event 2
    verdict = await _compared(tmp_path, heard, lease, stored)
    assert (verdict.behind, len(verdict.wrong), verdict.stored_records) == (behind, wrong, 3)


@pytest.mark.parametrize("second_wrote", [False, True])
@pytest.mark.parametrize("silent", [False, True])
async def test_a_record_that_the_next_holder_voids_and_the_one_after_it_cannot(
    tmp_path: Path, second_wrote: bool, silent: bool
) -> None:
    """Where the second holder never wrote, the store was not told; where it did, its predecessor wrote after it."""
    heard = Heard(0, CALL, generations={1: 1, 2: 1, 3: 2, 4: 2, 5: 3}, last_seq=5)
    heard.records = {1: _record(1, 0, 1), 2: _record(1, 0, 2), 4: _record(2, 2, 4), 5: _record(3, 4, 5)}
    if not silent:  # event 3 changed something
        heard.records[3] = _record(2, 2, 3)
    stored = heard.records | {3: _record(1, 0, 3)}
    if not second_wrote:
        del stored[4]
    verdict = await _compared(tmp_path, heard, 3, stored)
    assert len(verdict.wrong) == second_wrote


def test_a_call_that_was_not_recorded_is_no_good_call() -> None:
    turns: list[tuple[str, tuple[str, ...], str, int]] = [("Good morning.", (), "Good morning.", 9)]
    never = Heard(0, CALL, turns=turns)
    late = Heard(0, CALL, turns=turns, generations={1: 1}, texts={1: "morning."})
    for heard, wrong in ((never, 2), (late, 1)):
        verdict = Verdict()
        verdict.add(heard, Heard(0, turns=turns))
        assert len(verdict.wrong) == wrong
        assert all("recorded" in what for what in verdict.wrong)


async def test_a_call_that_a_leaving_server_has_refused_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = 0

    def leaving() -> CallServices:
        nonlocal refused
        refused += 1
        raise Problem(Reason.DRAINING, "the service is about to stop", retry_after_s=1.0)

    async with local_pods(2) as two, client_of(two) as client:
        monkeypatch.setattr(two[0]._servicer, "_serving", leaving)
        while not refused:  # calls are spread over both
            heard = await Caller(client, 0).run()
    verdict = Verdict()
    verdict.add(heard, heard)
    assert not verdict.wrong
    assert heard.events == heard.last_seq > 0
    assert heard.records
    assert heard.generations
