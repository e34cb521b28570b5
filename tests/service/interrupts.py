"""A reply that is spoken over at each of its tokens, with what was heard told in each of the three ways."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from itertools import islice

from evals.calls import FILE, read
from service import client_events as client
from service import server_events as server
from service.client_events import Heard, WordTiming
from service.options import GenerationPatch, ToolChoice, TurnOptions
from tests.service.calls import CallUnderTest, fresh_reply

TURN = TurnOptions(generation=GenerationPatch(max_tokens=48, temperature=0.0, tool_choice=ToolChoice("none")))
NEXT = TurnOptions(generation=GenerationPatch(max_tokens=8, temperature=1.0, tool_choice=ToolChoice("none")))
WORD_MS = 300


def measures(text: str, heard: int) -> dict[str, tuple[Heard, str]]:
    """The three ways to say that the first ``heard`` code points of a text were heard, each with what that admits."""
    spoken = unicodedata.normalize("NFKC", text[:heard]).upper().replace(",", "").replace(".", "")
    ends = [at for at in range(1, len(text) + 1) if at == len(text) or text[at].isspace()]
    words = tuple(WordTiming(end_ms=WORD_MS * number, end_chars=end) for number, end in enumerate(ends, 1))
    whole = [end for end in ends if end <= heard]
    by_time = Heard(played_ms=WORD_MS * len(whole) + WORD_MS // 2, words=words)
    return {
        "text": (Heard(text=spoken), text[: heard + 1]),  # a mark that is not spoken may stand behind it
        "code points": (Heard(chars=heard), text[:heard]),
        "milliseconds": (by_time, text[: whole[-1] if whole else 0]),
    }


def interrupted_at(opening: client.Open, line: str, tokens: int, measure: str) -> bool:
    """Speak over a reply after so many tokens of it; whether it had so many. Raises AssertionError where the history
    holds more than was heard, more is said, or the next reply is not that of a fresh session on the same ids.
    """
    call = CallUnderTest(opening)
    call.send(client.Final(1, line, TURN))
    turns = call.call.turns
    assert turns is not None and turns._reply is not None
    while (over := bool(call.of(server.TurnEnded))) is False and turns._reply.output_tokens < tokens:
        assert call.engine.step()
    if turns._reply.output_tokens < tokens:
        return False
    said = call.text(1)
    heard, admitted = measures(said, len(said) * 2 // 3 if tokens % 2 else len(said))[measure]
    told = len(call.events)
    call.send(client.Interrupt(1, heard))
    kept = call.of(server.Interrupted)[-1].text
    assert admitted.startswith(kept), (admitted, kept)
    call.run()
    assert not [event for event in call.events[told:] if isinstance(event, server.TextDelta)]
    assert over or call.of(server.TurnEnded)[-1].reason is server.TurnEnd.INTERRUPTED
    agrees(call)
    call.call.disconnect()
    call.run()
    return True


def agrees(call: CallUnderTest) -> None:
    """The next reply is that of a fresh session, in an engine of its own, on the ids that the history holds."""
    call.send(client.Final(2, "Sorry?", NEXT))
    call.run()
    turns = call.call.turns
    assert turns is not None and turns._reply is not None
    assert fresh_reply(call, turns._reply) == turns._reply.current.tokens


def openings(count: int) -> Iterator[tuple[client.Open, str]]:
    """Calls, and a first line of the caller for each."""
    for call in islice(read(FILE), count):
        yield client.Open(system=call.system, seed=7), call.turns[0].text


def run(replies: int) -> int:
    """Speak over so many replies at every token, by every measure; how often."""
    count = 0
    for opening, line in openings(replies):
        for measure in measures("", 0):
            tokens = 1
            while interrupted_at(opening, line, tokens, measure):
                tokens, count = tokens + 1, count + 1
    return count
