"""A call that is gone on with elsewhere is the call that it would have been: from every event on, word for word."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from service import client_events as client
from service import server_events as server
from service.call_records import merged, read, replayed
from service.client_events import (
    EagerEndOfTurn,
    Final,
    Heard,
    Interrupt,
    Open,
    Playback,
    Respond,
    Say,
    ToolResult,
    Update,
)
from service.conversation import Conversation
from service.items import ToolDefinition
from service.options import Fallback, GenerationPatch, TurnOptions
from service.problems import Reason
from tests.e2e.server import example_calls
from tests.service.calls import LINES, SYSTEM, TOOLS, CallUnderTest, chat, target

SHORT = GenerationPatch(temperature=0.7, max_tokens=14)
OPEN = Open(system=SYSTEM, tools=TOOLS, seed=7, generation=SHORT)
_system, _tools, TOOL_LINES = example_calls(2)[1]
ASKS_TOOLS = Open(
    system=_system,
    tools=tuple(ToolDefinition(t.name, t.description, json.loads(t.parameters_json_schema)) for t in _tools),
    seed=7,
    generation=GenerationPatch(temperature=0.7, max_tokens=45),
)


class Script:
    """A client that says what it has to say at fixed places, and does what clients do: it numbers events, drops what
    an older server says, resends what no record holds, and answers tools.
    """

    def __init__(self, *steps: Callable[[], Sequence[client.ClientEvent]] | client.ClientEvent) -> None:
        self._steps = steps
        self.call: CallUnderTest | None = None
        self.sent: list[client.ClientEvent] = []
        self.received: list[server.Envelope] = []
        self.at = 0

    def begin(self, opening: Open) -> None:
        self._on(CallUnderTest(opening))
        self._take()

    def _on(self, call: CallUnderTest) -> None:
        self.call, self._seen = call, 0

    def run(self, until_seq: int | None = None) -> bool:
        """To the end, or until event ``until_seq`` is there; whether it came to that."""
        while True:
            if until_seq is not None and self.received[-1].seq >= until_seq:
                return True
            assert self.call is not None
            self.call.run_due()
            self._take(until_seq)
            if until_seq is not None and self.received[-1].seq >= until_seq:
                return True
            if self.call.engine.step():
                self._take(until_seq)
            elif not self._next():
                return False
            self._take(until_seq)

    def _take(self, until_seq: int | None = None) -> None:
        """Receive what is there, one event at a time, as far as it is wanted."""
        assert self.call is not None
        while self._seen < len(self.call.envelopes):
            if until_seq is not None and self.received and self.received[-1].seq >= until_seq:
                return
            envelope = self.call.envelopes[self._seen]
            self._seen += 1
            if isinstance(envelope.event, server.Opened) and envelope.event.resumed:
                continue
            assert not self.received or envelope.seq == self.received[-1].seq + 1
            self.received.append(envelope)
            if isinstance(envelope.event, server.TurnWaiting):
                for call_id in envelope.event.call_ids:
                    self._send(ToolResult(envelope.event.turn_id, call_id, '{"ok": true}'))

    def _next(self) -> bool:
        """Say the next thing, when nothing more comes by itself."""
        if self.at >= len(self._steps):
            return False
        step, self.at = self._steps[self.at], self.at + 1
        self._send(step if not callable(step) else step())
        return True

    def _send(self, event: client.ClientEvent) -> None:
        assert self.call is not None
        self.sent.append(event)
        self.call.call.handle(len(self.sent), event)

    def go_on_elsewhere(self) -> None:
        """The server is gone. Another one gets what the client has."""
        assert self.call is not None
        before, last = self.call, self.received[-1]
        services = before.call.services
        records = {e.seq: read(services.signing, e.record) for e in self.received if e.record}
        found = replayed(merged(records.values()), last.seq)
        assert found is not None
        state, _ = found
        fresh = CallUnderTest.unopened()
        fresh.call.restore(state, last.generation + 1, last.seq, 0)
        assert not fresh.ended_with, fresh.ended_with
        opened = fresh.envelopes[0]
        assert isinstance(opened.event, server.Opened) and opened.event.resumed and opened.seq == last.seq
        self._on(fresh)
        for seq, event in enumerate(self.sent, 1):
            if seq > opened.client_seq:
                fresh.call.handle(seq, event)

    def outcome(self) -> list[tuple[str, object]]:
        """What a client knows of the call in the end, but for names that are drawn at random."""
        texts: dict[int, str] = {}
        calls: list[tuple[str, object]] = []
        ends: dict[int, tuple[str, object]] = {}
        for envelope in self.received:
            match envelope.event:
                case server.TextDelta() as delta:
                    assert delta.offset == len(texts.get(delta.turn_id, "")), "a word is lost, or comes twice"
                    texts[delta.turn_id] = texts.get(delta.turn_id, "") + delta.text
                case server.ToolCalled() as made:
                    calls.append((made.call.name, json.loads(made.call.arguments)))
                case server.TurnEnded() as end:
                    ends[end.turn_id] = (end.reason.value, (end.text, end.history.version, end.history.used_tokens))
        assert self.call is not None and self.call.conversation is not None
        tokens = self.call.conversation.tokens
        said = [(f"turn {turn}", text) for turn, text in texts.items()]
        ended = [(f"end of {turn}", end) for turn, end in sorted(ends.items())]
        return [*said, *calls, *ended, ("log", tokens)]


SCRIPTS: dict[str, tuple[Open, Sequence[client.ClientEvent]]] = {
    "text": (OPEN, [Final(1, LINES[0]), Final(2, LINES[1])]),
    "tools": (ASKS_TOOLS, [Final(1, TOOL_LINES[0]), Final(2, "Thank you, goodbye.")]),
    "interrupted": (
        OPEN,
        [
            Final(1, LINES[0]),
            Playback(1, Heard(chars=4)),
            Interrupt(1, Heard(chars=9)),
            Final(2, LINES[1]),
            Final(3, "yes"),
        ],
    ),
    "ahead": (OPEN, [EagerEndOfTurn(1, 1, LINES[0]), Final(1, LINES[0]), EagerEndOfTurn(2, 1, "ye"), Final(2, "yes")]),
    "edits": (
        OPEN,
        [
            Final(1, LINES[0]),
            Update(system="You answer the phone of a bakery."),
            Final(2, LINES[1]),
            Say(3, "One moment, please."),
            Respond(4),
        ],
    ),
}


@pytest.fixture(scope="module", params=SCRIPTS)
def uninterrupted(request: pytest.FixtureRequest) -> tuple[str, int, list[tuple[str, object]]]:
    opening, steps = SCRIPTS[request.param]
    script = Script(*steps)
    script.begin(opening)
    script.run()
    found = script.outcome()
    assert request.param != "tools" or any(isinstance(made.event, server.ToolCalled) for made in script.received)
    last = script.received[-1].seq
    CallUnderTest.end_all()
    return request.param, last, found


def test_a_call_goes_on_from_every_event(uninterrupted: tuple[str, int, list[tuple[str, object]]]) -> None:
    name, last, wanted = uninterrupted
    opening, steps = SCRIPTS[name]
    for seq in range(1, last + 1):
        script = Script(*steps)
        script.begin(opening)
        if not script.run(seq):
            break
        script.go_on_elsewhere()
        script.run()
        assert script.outcome() == wanted, f"after event {seq}, a {type(script.received[seq - 1].event).__name__}"
        CallUnderTest.end_all()


def test_a_call_goes_on_again_and_again() -> None:
    """Each event is the last of its server."""
    opening, steps = SCRIPTS["tools"]
    alone = Script(*steps)
    alone.begin(opening)
    alone.run()
    wanted = alone.outcome()
    script = Script(*steps)
    script.begin(opening)
    while script.run(script.received[-1].seq + 1):
        script.go_on_elsewhere()
    assert script.outcome() == wanted
    assert script.received[-1].generation > 10


def phrase_said() -> Script:
    """A script at a turn that a phrase has answered, for there was no engine."""
    late = TurnOptions(first_token_deadline_ms=100)
    script = Script(Final(1, LINES[0], late))
    script.begin(replace(OPEN, fallbacks=(Fallback(phrase="One moment, please."),)))
    assert script.call is not None
    script.call.engine.serving = False
    return script


def test_a_phrase_that_was_said_is_the_whole_answer_elsewhere_too() -> None:
    """From its text on nothing is generated behind it; before, the model may still answer."""
    whole = phrase_said()
    whole.run()
    text = next(made.seq for made in whole.received if isinstance(made.event, server.TextDelta))
    taken = next(made.seq for made in whole.received if isinstance(made.event, server.FallbackTaken))
    assert taken < text < whole.received[-1].seq
    for seq in range(taken, whole.received[-1].seq + 1):
        script = phrase_said()
        assert script.run(seq)
        script.go_on_elsewhere()
        script.run()
        if seq >= text:
            assert script.outcome() == whole.outcome()
        else:
            (end,) = (made.event for made in script.received if isinstance(made.event, server.TurnEnded))
            assert end.source is server.AnswerSource.MODEL and script.outcome()[0] == ("turn 1", end.text)
        CallUnderTest.end_all()


def test_a_call_whose_context_is_full_goes_on_elsewhere() -> None:
    """The end of its last message has no room in the engine's log any more."""
    most = target().max_context_tokens
    script = Script(Final(1, LINES[0], TurnOptions(generation=GenerationPatch(max_tokens=200, temperature=1.5))))
    short = Conversation.opened(chat(), Open(system="well"))
    room = most - 4 - short.length - len(short.user_tokens(LINES[0])) - len(short.prompt)
    script.begin(Open(system="well" + " well" * (room // len(chat().codec.encode(" well"))), seed=7))
    script.run()
    assert isinstance(script.received[-1].event, server.TurnEnded)
    assert script.received[-1].event.reason is server.TurnEnd.CONTEXT_FULL
    assert script.call is not None and script.call.conversation is not None
    assert script.call.conversation.length > most
    script.go_on_elsewhere()
    script.run()
    assert not script.call.ended_with
    script._send(Final(2, "And?"))
    script.run()
    last = script.received[-1].event
    assert isinstance(last, server.Failure) and last.problem.reason is Reason.CONTEXT_FULL
    script._send(Update(system="Be short."))
    script._send(Final(3, "And?"))
    script.run()
    assert isinstance(script.received[-1].event, server.TurnEnded) and script.received[-1].event.text


def test_timings_that_replace_others_are_written_down() -> None:
    call = CallUnderTest(Open(system=SYSTEM, seed=7))
    early = (client.WordTiming(100, word="one"), client.WordTiming(200, word="moment"))
    later = (early[0], client.WordTiming(300, word="moment"))
    call.send(Say(1, "One moment, please."))
    for words in (early, later):
        call.send(Playback(1, Heard(played_ms=100, words=words)), Update("Be brief."))
    records = {e.seq: read(call.call.services.signing, e.record) for e in call.envelopes if e.record}
    found = replayed(merged(records.values()), call.envelopes[-1].seq)
    assert found is not None and found[0].replies[0].words == later
