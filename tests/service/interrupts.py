"""A reply that is spoken over at each of its tokens, with what was heard told in each of the three ways."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

from evals.calls import FILE, read
from service import client_events as client
from service import server_events as server
from service.client_events import Heard, WordTiming
from service.options import GenerationPatch, ToolChoice, TurnOptions
from tests.service.calls import BegunEngine, CallUnderTest, LocalEngine, accepted_tokens, chat, fresh_reply
from tests.service.test_guardrails import WAIT

TURN = TurnOptions(generation=GenerationPatch(max_tokens=48, temperature=0.0, tool_choice=ToolChoice("none")))
CALLING = TurnOptions(generation=GenerationPatch(max_tokens=60, temperature=0.0))
NEXT = TurnOptions(generation=GenerationPatch(max_tokens=8, temperature=1.0, tool_choice=ToolChoice("none")))
WORD_MS = 300
CALL = '<tool_call>{"name": "wait", "arguments": {}}</tool_call>'
AROUND = f"Sure, let me see.{CALL}I am looking{CALL}"
"""A reply with text around its calls, which the model has never learned to write."""


def measures(text: str, heard: int) -> dict[str, tuple[Heard, str]]:
    """The three ways to say that the first ``heard`` code points of a text were heard, each with what that admits."""
    spoken = unicodedata.normalize("NFKC", text[:heard]).upper().replace(",", "").replace(".", "")
    ends = [at for at in range(1, len(text) + 1) if at == len(text) or text[at].isspace()]
    words = tuple(WordTiming(end_ms=WORD_MS * number, end_chars=end) for number, end in enumerate(ends, 1))
    whole = [end for end in ends if end <= heard]
    by_time = Heard(played_ms=WORD_MS * len(whole) + WORD_MS // 2, words=words)
    return {
        "text": (Heard(text=spoken), _admitted(text, heard)),
        "code points": (Heard(chars=heard), text[:heard]),
        "milliseconds": (by_time, _admitted(text, whole[-1]) if whole else ""),
    }


def _admitted(text: str, heard: int) -> str:
    """What was heard, and the marks at a text's end, which nobody speaks."""
    return text[:heard] if any(char.isalnum() for char in text[heard:]) else text


def interrupted_at(
    opening: client.Open, line: str, tokens: int, measure: str, new_engine: Callable[[], LocalEngine] = LocalEngine
) -> int | None:
    """Speak over a reply after so many tokens of it; how many of those that were made a drafter had guessed, or None
    where it had not so many. Raises AssertionError where the history holds more than was heard, more is said, or the
    next reply is not that of a fresh session on the same ids.
    """
    call = CallUnderTest(opening, new_engine())
    call.send(client.Final(1, line, TURN))
    if not _made(call, tokens):
        return None
    return _spoken_over(call, tokens, measure)


def interrupted_around_calls(
    opening: client.Open, line: str, tokens: int, measure: str, new_engine: Callable[[], LocalEngine] = LocalEngine
) -> int | None:
    """The same of a reply that begins with so many tokens of ``AROUND``. Of its calls some have their results by then,
    some later, and some never.
    """
    if tokens > len(BegunEngine(AROUND).beginning):
        return None
    opening = replace(opening, tools=(*opening.tools, WAIT))
    call = CallUnderTest(opening, BegunEngine(AROUND, tokens, new_engine()))
    call.send(client.Final(1, line, CALLING))
    assert _made(call, tokens)
    if tokens % 3 == 0:
        _answer(call)
    guessed = _spoken_over(call, tokens, measure, answer_later=tokens % 3 == 1)
    assert call.of(server.ToolCalled) or CALL not in chat().codec.decode(BegunEngine(AROUND, tokens).beginning)
    return guessed


def _made(call: CallUnderTest, tokens: int) -> bool:
    """Let the engine work until so many tokens of the reply are there; whether it has so many."""
    turns = call.call.turns
    assert turns is not None and turns.reply is not None
    while not call.of(server.TurnEnded) and turns.reply.output_tokens < tokens:
        assert call.engine.step()
    return turns.reply.output_tokens >= tokens


def _answer(call: CallUnderTest) -> None:
    for called in call.of(server.ToolCalled):
        call.send(client.ToolResult(1, called.call.call_id, '{"ok": true}'))


def _spoken_over(call: CallUnderTest, tokens: int, measure: str, *, answer_later: bool = False) -> int:
    over, said = bool(call.of(server.TurnEnded)), call.text(1)
    heard, admitted = measures(said, len(said) * 2 // 3 if tokens % 2 else len(said))[measure]
    told = len(call.events)
    call.send(client.Interrupt(1, heard))
    if answer_later:
        _answer(call)
    for kept in call.of(server.Interrupted):
        assert admitted.startswith(kept.text), (admitted, kept)
    call.run()
    assert not [event for event in call.events[told:] if isinstance(event, server.TextDelta)]
    assert over or call.of(server.TurnEnded)[-1].reason is server.TurnEnd.INTERRUPTED
    holds(call, call.of(server.Interrupted)[-1].text)
    agrees(call)
    guessed = accepted_tokens(call)
    call.call.disconnect()
    call.run()
    return guessed


def holds(call: CallUnderTest, kept: str) -> None:
    """The log spells, outside of tool calls, the text that was told."""
    conversation = call.conversation
    assert conversation is not None
    turns = call.call.turns
    assert turns is not None and turns.reply is not None
    log = chat().codec.hf.decode(list(conversation.tokens_from(turns.reply.before)))
    reply = log.partition("<|assistant|>")[2].partition("<|end|>")[0]
    assert reply.replace(CALL, "") == kept


def agrees(call: CallUnderTest) -> None:
    """The next reply is that of a fresh session, in an engine of its own, on the ids that the history holds."""
    call.send(client.Final(2, "Sorry?", NEXT))
    call.run()
    turns = call.call.turns
    assert turns is not None and turns.reply is not None
    assert fresh_reply(call, turns.reply) == turns.reply.current.tokens


def openings(count: int) -> Iterator[tuple[client.Open, str]]:
    """Calls, and a first line of the caller for each."""
    for call in islice(read(FILE), count):
        yield client.Open(system=call.system, seed=7), call.turns[0].text


def run(replies: int, new_engine: Callable[[], LocalEngine] = LocalEngine) -> tuple[int, int]:
    """Speak over so many replies, and one with text around tool calls, at every token and by every measure; (how often,
    how many tokens a drafter had guessed).
    """
    guessed: list[int] = []
    for number, (opening, line) in enumerate(openings(replies)):
        for measure in measures("", 0):
            for at in (interrupted_at, interrupted_around_calls)[: 1 if number else 2]:
                tokens = 1
                while (found := at(opening, line, tokens, measure, new_engine)) is not None:
                    guessed.append(found)
                    tokens += 1
    return len(guessed), sum(guessed)
