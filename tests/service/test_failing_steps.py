"""A reply whose last step fails: what the history holds is what was told, and the engine's log is the history."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine import records
from engine.text.reply import Read, ReplyReader
from service import client_events as client
from service import server_events as server
from service.items import MessageItem
from service.options import GenerationPatch, TurnOptions
from service.problems import Reason
from service.server_events import TurnEnd
from tests.service.calls import (
    LINES,
    SYSTEM,
    CallUnderTest,
    LocalEngine,
    chat,
    default_drafter,
    exact_target,
    fresh_reply,
)
from tests.service.test_guardrails import holds

GREEDY = TurnOptions(generation=GenerationPatch(max_tokens=12, temperature=0.0))


class FailingReader(ReplyReader):
    """Fails at one of its tokens, before or after it has read that, or when what it has read is taken."""

    fails_at, where = 0, ""

    def push(self, token: int) -> str:
        self.fails_at -= 1
        if self.fails_at == 0 and self.where == "before it is read":
            raise RuntimeError("a token that cannot be read")
        text = super().push(token)
        if self.fails_at == 0 and self.where == "behind that":
            raise RuntimeError("a text that cannot be read")
        return text

    def take(self, *, final: bool = False, cut: bool = False) -> Read:
        if self.fails_at <= 0 and self.where == "when it is taken":
            raise RecursionError("a text that cannot be told")
        return super().take(final=final, cut=cut)


class UnreadableEngine(LocalEngine):
    """Whose next reply is read by a ``FailingReader``."""

    _failing: FailingReader | None = None

    def fail(self, at: int, where: str) -> None:
        self._failing = FailingReader(chat().codec)
        self._failing.fails_at, self._failing.where = at, where

    def _new_reader(self, command: records.Submit) -> ReplyReader:
        failing, self._failing = self._failing, None
        return failing or super()._new_reader(command)


def plain() -> UnreadableEngine:
    return UnreadableEngine()


def drafting() -> UnreadableEngine:
    """Of whose steps one has several tokens, of which the last fails."""
    return UnreadableEngine(exact_target(), proposer=default_drafter(), nodes=16)


@pytest.mark.parametrize("new_engine", [plain, drafting])
@pytest.mark.parametrize("where", ["before it is read", "behind that", "when it is taken"])
@pytest.mark.parametrize("at", [1, 2, 3, 6, 8, 12])
def test_what_was_told_is_history_and_the_engines_log(
    new_engine: Callable[[], UnreadableEngine], at: int, where: str
) -> None:
    engine = new_engine()
    engine.fail(at, where)
    call = CallUnderTest(client.Open(system=SYSTEM, seed=7), engine)
    call.send(client.Final(1, LINES[0], GREEDY))
    call.run()
    (end,) = call.of(server.TurnEnded)
    assert end.reason is TurnEnd.FAILED and call.of(server.Failure)[-1].problem.reason is Reason.INTERNAL
    told = call.text(1)
    assert end.text == told and bool(told) == (at > 1 or where == "behind that")
    held = [item.text for item in call.conversation.items if isinstance(item, MessageItem) and item.role != "user"]
    assert held == ([told] if told else [])
    spelled = chat().codec.decode(list(call.conversation.tokens[call.call.turns.reply.before :]))
    assert spelled == told
    assert end.history.used_tokens == call.conversation.length
    holds(call)
    call.send(client.Final(2, LINES[1], GREEDY))
    call.run()
    assert call.of(server.TurnEnded)[-1].reason is not TurnEnd.FAILED
    reply = call.call.turns.reply
    assert reply.current.tokens == fresh_reply(call, reply)
    holds(call)


@pytest.mark.parametrize("where", ["before it is read", "when it is taken"])
def test_a_reply_that_cannot_be_read_again_after_a_restart_keeps_what_was_told(where: str) -> None:
    engine = UnreadableEngine()
    call = CallUnderTest(client.Open(system=SYSTEM, seed=7), engine)
    call.send(client.Final(1, LINES[0], GREEDY))
    call.step_until_text()
    call.step_until_text()
    told = call.text(1)
    engine.fail(2, where)
    engine.die()
    call.run()
    (end,) = call.of(server.TurnEnded)
    assert end.reason is TurnEnd.FAILED and end.text == call.text(1) == told
    assert [item.text for item in call.conversation.items if isinstance(item, MessageItem)][-1] == told
    holds(call)
    call.send(client.Final(2, LINES[1], GREEDY))
    call.run()
    assert call.of(server.TurnEnded)[-1].reason is not TurnEnd.FAILED
    holds(call)
