"""The command that asks an engine for a generation behind a conversation."""

from __future__ import annotations

from engine import records
from service.conversation import Conversation
from service.options import Generation


def submission(
    conversation: Conversation,
    session: str,
    number: int,
    keep: int,
    tokens: tuple[int, ...],
    generation: Generation,
    *,
    said: int = 0,
    deadline: float = 0.0,
    hold: int | None = None,
    ahead: int = 0,
    speaking_rate: float = 0.0,
) -> records.Submit:
    """number: the generation's name at the engine. keep, tokens: what the engine's log is to be. said: tokens of the
    reply that came before this generation. deadline, hold, ahead and speaking_rate: as in ``records.Submit``.
    """
    return records.Submit(
        session=session,
        turn=number,
        keep=keep,
        tokens=tokens,
        sampling=generation.sampling,
        max_tokens=generation.max_tokens - said,
        stop_tokens=conversation.stop_tokens | generation.stop_token_ids,
        stop_strings=generation.stop_strings,
        first_index=said,
        deadline=deadline,
        drafting=generation.drafting,
        constraint=conversation.constraint(generation, goes_on=said > 0),
        hold=hold,
        ahead=ahead,
        speaking_rate=speaking_rate,
    )
