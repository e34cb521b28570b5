"""Whatever a client does, whenever, and whatever dies meanwhile: what the contract says of every call holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from service import client_events as client
from service import server_events as server
from service.config import CallConfig
from service.items import MessageItem
from service.mirror import MAX_RESUMES
from service.options import GenerationPatch, TurnOptions
from service.problems import Reason
from tests.service.calls import (
    LINES,
    SYSTEM,
    CallUnderTest,
    LocalEngine,
    accepted_tokens,
    drafting_engine,
    fresh_reply,
)
from tests.service.interrupts import measures
from tests.service.test_telemetry import at_a_tool_call

REFUSALS = {
    Reason.STALE_HISTORY,
    Reason.CANCELLED,
    Reason.STALE_TURN,
    Reason.UNKNOWN_TURN,
    Reason.UNKNOWN_TOOL_CALL,
    Reason.INVALID_FIELD,
    Reason.CONTEXT_FULL,
}
TURN_IDS = st.integers(-1, 1)
"""Beside the next one: a turn that is older, or is there already."""


class Calls(RuleBasedStateMachine):
    """One call at the history that makes the model call a tool, with everything that can happen to it."""

    new_engine: Callable[[], LocalEngine] = LocalEngine
    config = CallConfig()
    accepted = 0
    """Tokens of all scripts that a drafter had guessed."""

    def __init__(self) -> None:
        super().__init__()
        opening, self.line = at_a_tool_call()
        self.call = CallUnderTest(opening, type(self).new_engine(), self.config)
        self.session = opening.session_id
        self.begun: set[int] = set()
        self.seen = 0
        self.newest = 0
        self.deaths = 0

    def teardown(self) -> None:
        try:
            self.check_end()
            self.check_reply()
            self.check_end()
        finally:
            self.call.send(client.CloseCall())
            self.call.run()
        assert self.call.ended_with == [None]
        type(self).accepted += accepted_tokens(self.call)

    def check_reply(self) -> None:
        """Whatever came before, the next reply is that of a fresh session with the same ids."""
        call = self.call
        patch = GenerationPatch(max_tokens=10, temperature=1.0)
        call.send(client.Final(self.newest + 1, "Thank you.", TurnOptions(generation=patch)))
        if self.newest + 1 not in {event.turn_id for event in call.of(server.TurnEnded)}:
            call.run()
        turns = call.call.turns
        assert turns is not None and turns._reply is not None and call.conversation is not None
        if turns._reply.turn_id != self.newest + 1:  # it was refused: there is no room
            return
        self.begun.add(self.newest + 1)
        self.newest += 1
        segment = turns._reply.segments[0]
        tokens = fresh_reply(call, turns._reply)
        assert tokens[: len(segment.tokens)] == segment.tokens and len(tokens) - len(segment.tokens) in (0, 1)

    def check_end(self) -> None:
        """In the end every turn that began has ended once, and the engine holds the history."""
        self.call.run()
        self.check()
        waiting = {event.turn_id for event in self.call.of(server.TurnWaiting)}
        ends = [event.turn_id for event in self.call.of(server.TurnEnded)]
        assert len(ends) == len(set(ends))
        assert self.begun - set(ends) <= waiting & {self.newest}
        assert set(ends) <= self.begun
        # A hypothesis may lie behind the history; whatever the client does next replaces it.
        assert self.call.conversation is not None
        tokens = self.call.conversation.tokens
        log = self.call.engine.log(self.session)
        # The mirror's log has no reply that is in progress.
        assert log == self.call.engine.mirrored(self.session) + self.call.engine.standing(self.session)
        if not self.call.of(server.TurnWaiting) or self.newest in ends:
            assert log[: len(tokens)] == tokens or log == tokens[: len(log)]

    @invariant()
    def check(self) -> None:
        """Of every event that came since: it keeps what the contract says of its kind."""
        assert not self.call.ended_with
        envelopes = self.call.envelopes
        assert [envelope.seq for envelope in envelopes] == list(range(1, len(envelopes) + 1))
        for event in self.call.events[self.seen :]:
            self.seen += 1
            ended = {e.turn_id for e in self.call.events[: self.seen - 1] if isinstance(e, server.TurnEnded)}
            match event:
                case server.TextDelta():
                    assert event.turn_id not in ended
                    assert event.turn_id == self.newest
                    assert event.offset + len(event.text) <= len(self.call.text(event.turn_id))
                    assert sum(length for length, _ in event.spans) == len(event.text)
                case server.ToolCalled() | server.TurnWaiting():
                    assert event.turn_id not in ended
                case server.TurnEnded():
                    assert event.turn_id not in ended
                    said = (
                        self.call.text(event.turn_id)
                        if event.source is not server.AnswerSource.GIVEN_TEXT
                        else event.text
                    )
                    assert said.startswith(event.text)
                    assert len(event.history.item_ids) == len(set(event.history.item_ids))
                case server.Interrupted() if event.turn_id in {d.turn_id for d in self.call.of(server.TextDelta)}:
                    assert self.call.text(event.turn_id).startswith(event.text)
                case server.Failure():
                    assert event.problem.reason in REFUSALS
                case _:
                    pass
        versions = [event.history.version for event in self.call.events if hasattr(event, "history")]
        assert versions == sorted(versions)

    def begin(self, event: client.Final | client.Respond | client.Say) -> None:
        failures = len(self.call.of(server.Failure))
        newer, self.newest = event.turn_id > self.newest, max(self.newest, event.turn_id)
        self.call.send(event)
        if newer:
            assert len(self.call.of(server.Failure)) == failures
            self.begun.add(event.turn_id)

    def turn_id(self, offset: int) -> int:
        return max(1, self.newest + offset) if offset < 1 else self.newest + 1

    @rule(offset=TURN_IDS, tool=st.booleans(), limit=st.integers(1, 60), temperature=st.sampled_from([0.0, 1.0]))
    def final(self, offset: int, tool: bool, limit: int, temperature: float) -> None:
        line = self.line if tool else LINES[0]
        patch = GenerationPatch(max_tokens=limit, temperature=temperature)
        self.begin(client.Final(self.turn_id(offset), line, TurnOptions(generation=patch)))

    @rule(offset=TURN_IDS)
    def respond(self, offset: int) -> None:
        patch = GenerationPatch(max_tokens=20)
        self.begin(client.Respond(self.turn_id(offset), TurnOptions(generation=patch)))

    @rule(offset=TURN_IDS)
    def say(self, offset: int) -> None:
        self.begin(client.Say(self.turn_id(offset), "One moment, 👋🏽 please."))

    @rule(offset=TURN_IDS, revision=st.integers(1, 5), length=st.integers(0, 30))
    def partial(self, offset: int, revision: int, length: int) -> None:
        self.call.send(client.Partial(self.turn_id(offset), revision, LINES[0][:length]))

    @rule(offset=TURN_IDS, revision=st.integers(1, 5), tool=st.booleans(), limit=st.sampled_from([20, 60]))
    def eager(self, offset: int, revision: int, tool: bool, limit: int) -> None:
        options = TurnOptions(generation=GenerationPatch(max_tokens=limit, temperature=0.0))
        line = self.line if tool else LINES[0]
        self.call.send(client.EagerEndOfTurn(self.turn_id(offset), revision, line, options))

    @rule(tool=st.booleans(), limit=st.sampled_from([20, 60]))
    def final_of_an_eager(self, tool: bool, limit: int) -> None:
        """Often the one that was answered ahead."""
        options = TurnOptions(generation=GenerationPatch(max_tokens=limit, temperature=0.0))
        self.begin(client.Final(self.turn_id(1), self.line if tool else LINES[0], options))

    @rule(offset=TURN_IDS)
    def resume(self, offset: int) -> None:
        self.call.send(client.TurnResumed(self.turn_id(offset)))

    @rule()
    def wait(self) -> None:
        self.call.wait()

    @rule(offset=TURN_IDS, chars=st.integers(0, 60), measure=st.sampled_from([None, *measures("", 0)]))
    def interrupt(self, offset: int, chars: int, measure: str | None) -> None:
        turns = self.call.call.turns
        assert turns is not None
        reply, turn_id = turns.reply, self.turn_id(offset)
        said = "" if reply is None else reply.text
        heard, admitted = measures(said, min(chars, len(said)))[measure] if measure else (None, said)
        self.call.send(client.Interrupt(turn_id, heard))
        if reply is not None and reply.turn_id == turn_id and not reply.settled:
            cut = self.call.of(server.Interrupted)[-1]
            assert cut.turn_id == turn_id and admitted.startswith(cut.text)

    @rule(offset=TURN_IDS, chars=st.integers(0, 60))
    def playback(self, offset: int, chars: int) -> None:
        self.call.send(client.Playback(self.turn_id(offset), client.Heard(chars=chars)))

    @rule(index=st.integers(0, 3), no_reply=st.booleans())
    def tool_result(self, index: int, no_reply: bool) -> None:
        made = self.call.of(server.ToolCalled)
        if made:
            called = made[-1 - index % len(made)]
            result = client.ToolResult(called.turn_id, called.call.call_id, '{"id": "V2443"}', no_reply=no_reply)
            self.call.send(result)

    @rule(number=st.integers(1, 4), tokens=st.integers(1, 12), own=st.booleans())
    def ask_aside(self, number: int, tokens: int, own: bool) -> None:
        items = (MessageItem("", "user", "Is all well?"),) if own else None
        patch = GenerationPatch(max_tokens=tokens, temperature=1.0)
        self.call.send(client.Generate(number, "" if own else "What was said?", items, patch))

    @rule(number=st.integers(1, 4))
    def drop_question(self, number: int) -> None:
        self.call.send(client.CancelGenerate(number))

    @rule(system=st.sampled_from([SYSTEM, "Be short.", None]), temperature=st.sampled_from([0.0, 1.0]))
    def update(self, system: str | None, temperature: float) -> None:
        self.call.send(client.Update(system=system, generation=GenerationPatch(temperature=temperature)))

    @rule(drop=st.integers(0, 3), add=st.booleans(), old=st.booleans())
    def edit(self, drop: int, add: bool, old: bool) -> None:
        """The client's view: the same, less, or other at its end; sometimes one of before."""
        assert self.call.conversation is not None
        items = self.call.conversation.items
        view = items[: len(items) - drop] if drop else items
        added = (MessageItem("", "user", "Hello?"), MessageItem("", "assistant", "Yes?")) if add else ()
        self.call.send(client.Items((*view, *added), 0 if old else None))

    @rule(steps=st.integers(1, 40))
    def work(self, steps: int) -> None:
        for _ in range(steps):
            self.call.engine.step()

    @precondition(lambda self: self.deaths < MAX_RESUMES)
    @rule()
    def die(self) -> None:
        self.deaths += 1
        self.call.engine.die()


class DraftedCalls(Calls):
    """The same with the drafter that is served, several tokens a step, and partials whose end waits."""

    new_engine = staticmethod(drafting_engine)
    config = CallConfig(unstable_partial_ms=300)


def run_scripts(count: int, calls: type[Calls] = Calls) -> None:
    """So many random calls, each of at most 25 events. Raises AssertionError with the shortest that breaks a rule, and
    where what should be drafted never was.
    """
    calls.accepted = 0
    run_state_machine_as_test(calls, settings=settings(max_examples=count, stateful_step_count=25, deadline=None))
    assert (calls.accepted > 0) is (calls is DraftedCalls)


@pytest.mark.parametrize(("calls", "count"), [(Calls, 15), (DraftedCalls, 10)])
def test_whatever_happens_to_a_call(calls: type[Calls], count: int) -> None:
    run_scripts(count, calls)
