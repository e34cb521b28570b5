"""The soak's short form, with servers in this process: each kind of trouble at least once."""

from __future__ import annotations

import pytest

from tests.soak.faults import BOTH_KILLED, FROZEN, KILLED_IN_REPLY, STORE_RESTARTED, Plan
from tests.soak.run import soak


@pytest.mark.timeout(900)
async def test_nothing_is_lost_and_nothing_said_twice() -> None:
    plan = Plan(kills=1, restarts=1, freezes=1, both=1, lines=4)
    verdict, trouble = await soak(plan, seed=5, callers=2, scripts=2, local=True)
    assert not verdict.wrong
    assert {KILLED_IN_REPLY, STORE_RESTARTED, FROZEN, BOTH_KILLED} <= set(trouble.done)
    assert verdict.calls >= 2
    assert verdict.resumes >= 2
    assert verdict.stored_records > 0
