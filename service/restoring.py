"""Makes a call's replies again from what was written down of them."""

from __future__ import annotations

import time

from engine.session import TurnStats
from service.call_state import ReplyState
from service.heard import Hearing
from service.history import History
from service.reply import Reply
from service.telemetry import TurnRecord


def restored_reply(state: ReplyState, history: History) -> Reply:
    """A reply as it was. Its account begins anew: what an earlier server has measured went with that."""
    now = time.monotonic()
    record = TurnRecord(state.turn_id, now, sampling=state.generation.sampling, max_tokens=state.generation.max_tokens)
    record.stats.append(TurnStats(submitted=now, ended=now))
    reply = Reply(state.turn_id, state.begin, state.before, state.generation, record)
    reply.source, reply.phase = state.source, state.phase
    reply.answerer = history.shadows.get(state.model)  # None too where this server does not have that model
    reply.segments = [history.generations.restored_segment(segment, state.model) for segment in state.segments]
    reply.played, reply.hearing = state.played, Hearing(state.words)
    reply.cut, reply.kept, reply.cut_by = state.cut, state.kept, state.cut_by
    reply.item_ids, reply.settled, reply.ending = state.item_ids, state.settled, state.ending
    return reply
