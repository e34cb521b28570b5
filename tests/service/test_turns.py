"""Which events of a client begin a turn, and which are refused."""

from __future__ import annotations

import pytest

from service import client_events as client
from service import server_events as server
from service.problems import Reason
from tests.service.calls import LINES, SYSTEM, CallUnderTest

FIRST = (client.Say(1, "One moment."), client.Final(1, LINES[0]), client.Respond(1))
OTHERS = (client.Say(1, "Something else."), client.Final(1, LINES[1]))


@pytest.mark.parametrize("first", FIRST)
def test_a_turn_that_has_begun_is_repeated_in_silence_and_is_nothing_else(first: client.Say) -> None:
    call = CallUnderTest(client.Open(system=SYSTEM, seed=7))
    call.send(first)
    told = len(call.events)
    call.send(first)
    assert len(call.events) == told
    for other in (*OTHERS, *(event for event in FIRST if event != first)):
        call.send(other)
        problem = call.of(server.Failure)[-1].problem
        assert problem.reason is Reason.STALE_TURN
        assert problem.field == f"{type(other).__name__.lower()}.turn_id"
    assert len(call.events) == told + 4
    call.run()
    assert [end.turn_id for end in call.of(server.TurnEnded)] == [1]
