"""Turns as the client would have received them, for tests of how they are shown."""

from __future__ import annotations

from firstword import AnswerSource, Drafting, EndReason, TextDelta, Timings, Turn, TurnReport, Usage


def delta(text: str, offset: int, *lengths: int, clause_ends: tuple[int, ...] = (), at: float = 0.0) -> TextDelta:
    """lengths: of its spans; the first one is the target's own choice, and they take turns."""
    spans = tuple((length, index % 2 == 1) for index, length in enumerate(lengths or (len(text),)))
    return TextDelta(1, text, offset, clause_ends, spans, len(spans), len(spans) // 2, 1.0, at)


def report(
    tokens: int = 12, steps: int = 5, drafted: int = 20, accepted: int = 7, decode_ms: float = 22.0
) -> TurnReport:
    timings = Timings(0.1, 2.0, 3.0, 3.5, 9.0, decode_ms, None, None, 30.0)
    drafting = Drafting(steps, drafted, accepted, (), (), 1.0, 10.0, ())
    usage = Usage(208, 204, 10, tokens, 0, 0)
    reason, source = EndReason.COMPLETED, AnswerSource.MODEL
    return TurnReport(1, reason, source, "m", usage, timings, drafting, False, 2, (), 230, "")


def turn(*events: TextDelta, ended: TurnReport | None) -> Turn:
    """A turn that was asked for at 0 and is over."""

    async def never(_call: object) -> None:
        raise AssertionError("no tool was called")

    made = Turn(1, never)
    made.sent_at = 0.0
    for event in events:
        made.receive(event)
    made.end(ended)
    return made
