"""Everything goes wrong at once, for some: the others say what they say alone, and nothing is left behind.

The real state machine over a real engine with the embedded model. Clients cancel, vanish and stop reading, a turn finds
no pages, a call is refused, something raises inside of one call's step, and the engine's process dies.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import pytest
import torch

from engine import records
from engine.cache import KVCache
from engine.config import EngineConfig
from engine.interfaces import Output, Proposer, Window
from engine.load import load_proposer, load_target_for
from engine.models.decoder import Decoder
from engine.text.reply import ReplyReader
from service import client_events as client
from service import server_events as server
from service.admission import Admission, Seat
from service.config import EMBEDDED_MODEL, AdmissionConfig
from service.mirror import MAX_RESUMES
from service.options import GenerationPatch
from service.problems import Problem, Reason
from service.telemetry import Telemetry
from tests.service.calls import DRAFTER, LINES, MODEL, SYSTEM, CallUnderTest, LocalEngine, accepted_tokens, chat

TURNS = 2
PAGE = 16
FREE_PAGES = 36
"""That all calls together may still grow into."""
GREEDY = "I would like to book an appointment on Tuesday. " * 160
"""Computed in one step here, and never with room, not even while the others' pages are lost with the engine."""
Role = Literal["undisturbed", "slow", "cancelling", "vanishing", "faulty", "greedy"]
ROLES: tuple[Role, ...] = ("undisturbed", "undisturbed", "slow", "slow", "cancelling", "vanishing", "faulty", "greedy")


@cache
def model() -> Decoder:
    """With a pool of its own, in float64: whatever a window's width, a reply is the same."""
    return load_target_for(EngineConfig(str(EMBEDDED_MODEL), dtype="float64", pool_tokens=8192))


@cache
def drafter() -> Proposer:
    """``DRAFTER`` over ``model``."""
    return load_proposer(EngineConfig(str(EMBEDDED_MODEL), DRAFTER, pool_tokens=8192), model())


class FaultyReader(ReplyReader):
    """Raises inside of the step that makes its third token."""

    count = 0

    def push(self, token: int) -> str:
        self.count += 1
        if self.count == 3:
            raise RuntimeError("a fault in one call's step")
        return super().push(token)


class Fault(Exception):
    """What nobody in the engine catches: its process dies of it."""


class FragileEngine(LocalEngine):
    """Dies when a step raises, as the process does, and is replaced. ``break_next``: the next forward raises."""

    def __init__(self) -> None:
        super().__init__(model(), chunk_tokens=2048, proposer=drafter(), nodes=16)
        self.break_next = False
        self.deaths = 0
        self._forward: Callable[..., list[Output]] = self.model.forward

    def step(self) -> bool:
        self.model.forward = self._forward_or_fail  # type: ignore[method-assign]
        try:
            return super().step()
        except Fault:
            self.deaths += 1
            self.die()
            return True
        finally:
            del self.model.forward  # type: ignore[method-assign]

    def open(self, session: str, *rest: Any) -> None:
        assert session not in self._sessions
        super().open(session, *rest)

    @property
    def num_sessions(self) -> int:
        return len(self._sessions)

    def _forward_or_fail(self, windows: list[Window], taps: tuple[int, ...]) -> list[Output]:
        if self.break_next:
            self.break_next = False
            raise Fault
        return self._forward(windows, taps)

    def _new_reader(self, command: records.Submit) -> ReplyReader:
        reader = super()._new_reader(command)
        if command.session.startswith("faulty"):
            return FaultyReader(chat().codec, command.stop_strings)
        return reader


def opening(role: Role, index: int) -> client.Open:
    sampled = GenerationPatch(temperature=0.9, max_tokens=20)
    return client.Open(f"{role}{index}", system=SYSTEM, seed=index, generation=sampled)


@cache
def alone(role: Role, index: int) -> tuple[str, ...]:
    """What the call says where nobody else is."""
    call = CallUnderTest(opening(role, index), LocalEngine(model()))
    for turn in range(1, TURNS + 1):
        call.send(client.Final(turn, LINES[turn - 1]))
        call.run()
    call.send(client.CloseCall())
    call.run()
    return tuple(call.text(turn) for turn in range(1, TURNS + 1))


class Caller:
    """One client, and what it does next."""

    def __init__(self, role: Role, index: int, engine: FragileEngine, seat: Seat) -> None:
        self.role, self.index, self.seat = role, index, seat
        self.call = CallUnderTest(opening(role, index), engine)
        assert self.call.conversation is not None
        conversation = self.call.conversation
        seat.open(lambda: conversation.length)
        self.turn = 0
        self.held = False

    @property
    def speaking(self) -> bool:
        refused = [failure for failure in self.call.of(server.Failure) if failure.client_seq is not None]
        return len({end.turn_id for end in self.call.of(server.TurnEnded)}) + len(refused) < self.turn

    @property
    def done(self) -> bool:
        return bool(self.call.ended_with) or (self.turn >= TURNS and not self.speaking)

    def act(self, chance: random.Random) -> None:
        """Begin the next turn when the last is over; else do as one of its kind does, now and then."""
        if self.call.ended_with:
            return
        if not self.speaking and self.turn < TURNS:
            self._ask()
        elif self.role == "slow" and chance.random() < 0.3:
            self.held = not self.held
            self.call.call.hold(self.held)
        elif self.role == "cancelling":
            self.call.send(client.Interrupt(self.turn, None))
            self._ask()
        elif self.role == "vanishing" and self.turn == TURNS:
            self.call.call.disconnect()

    def _ask(self) -> None:
        if self.turn < TURNS:
            self.turn += 1
            self.call.send(client.Final(self.turn, GREEDY if self.role == "greedy" else LINES[self.turn - 1]))
        if self.role == "cancelling" and self.turn == TURNS:
            self.call.send(client.Interrupt(self.turn, None))

    def leave(self) -> None:
        self.call.send(client.CloseCall())
        self.seat.leave()


def play(callers: list[Caller], engine: FragileEngine, admission: Admission, chance: random.Random) -> int:
    """Until everybody has had all turns; returns how many newcomers were refused meanwhile."""
    refused = 0
    breaks = chance.sample(range(5, 40), MAX_RESUMES)
    for tick in range(3000):
        if all(caller.done for caller in callers):
            return refused
        chance.choice(callers).act(chance)
        engine.break_next |= tick in breaks
        engine.step()
        if tick % 20 == 0:
            seat = admission.take("")
            with pytest.raises(Problem) as problem:
                seat.open(lambda: 8 * FREE_PAGES * PAGE)
            seat.leave()
            assert problem.value.reason is Reason.PAGES_COMMITTED
            refused += 1
    raise AssertionError([(caller.role, caller.turn, caller.speaking) for caller in callers])


@pytest.mark.parametrize("seed", [1, 2])
def test_no_other_call_notices_and_nothing_is_left(seed: int) -> None:
    expected = {
        (role, index): alone(role, index) for index, role in enumerate(ROLES) if role in ("undisturbed", "slow")
    }
    chance, engine, pool = random.Random(seed), FragileEngine(), model().pool
    assert pool.pages_in_use == 0
    config = AdmissionConfig(reserve_tokens=0, max_backlog_ms=None, max_speech_load=None)
    admission = Admission(config, lambda: engine.beat, PAGE, Telemetry(MODEL))
    callers = [Caller(role, index, engine, admission.take("")) for index, role in enumerate(ROLES)]
    engine.run()
    ballast = KVCache(pool)
    ballast.reserve((pool.num_pages - pool.pages_in_use - FREE_PAGES) * PAGE)
    held_back = pool.num_pages - FREE_PAGES - (pool.pages_in_use - ballast.num_pages)
    assert ballast.num_pages == held_back
    assert len(chat().codec.encode(GREEDY)) > (pool.num_pages - held_back) * PAGE

    assert play(callers, engine, admission, chance) > 0
    engine.run()
    assert 0 < engine.deaths <= MAX_RESUMES
    assert sum(accepted_tokens(caller.call) for caller in callers) > 0
    for caller in callers:
        ends = caller.call.of(server.TurnEnded)
        texts = tuple(caller.call.text(turn) for turn in range(1, TURNS + 1))
        problems = [failure.problem.reason for failure in caller.call.of(server.Failure)]
        match caller.role:
            case "undisturbed" | "slow":
                assert texts == expected[caller.role, caller.index] and not problems
                assert tuple(end.text for end in ends) == texts
            case "cancelling":
                assert server.TurnEnd.INTERRUPTED in {end.reason for end in ends} and not problems
            case "vanishing":
                assert len(ends) == TURNS or caller.call.ended_with == [None]
                assert ends[0].text and not problems
            case "faulty":
                assert problems == [Reason.INTERNAL] * TURNS
            case "greedy":
                # What the caller said stays in the history, answered or not: another like it is too much for that.
                assert problems == [Reason.OUT_OF_PAGES, Reason.CONTEXT_FULL] and texts == ("", "")
        if not caller.call.ended_with:
            assert caller.call.conversation is not None
            session = f"{caller.role}{caller.index}"
            log, history = engine.log(session), caller.call.conversation.tokens
            both = min(len(log), len(history))  # the template's own tokens at the end are told with what comes next
            assert log == engine.mirrored(session), caller.role
            assert log[:both] == history[:both], caller.role
    for caller in callers:
        caller.leave()
    engine.run()
    assert pool.pages_in_use == ballast.num_pages
    ballast.close()
    assert (pool.pages_in_use, engine.beat.sessions, engine.num_sessions, admission.seats) == (0, 0, 0, 0)
    assert not torch.isnan(pool.kv).any()
