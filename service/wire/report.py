"""Writes the account of a turn: ``turn_report.proto``."""

from __future__ import annotations

from collections.abc import Sequence

from engine.session import TurnStats
from firstword.v1 import turn_report_pb2 as report_pb
from service.telemetry import TurnRecord


def usage(account: TurnRecord) -> report_pb.TokenUsage:
    """The prompt is the last generation's, what was cached of it the first one's."""
    return report_pb.TokenUsage(
        prompt_tokens=account.stats[-1].prompt_tokens if account.stats else 0,
        cached_tokens=account.stats[0].cached_tokens if account.stats else 0,
        prefilled_ahead_tokens=account.stats[0].prefilled_ahead if account.stats else 0,
        completion_tokens=account.output_tokens,
        wasted_ahead_tokens=account.wasted_ahead,
        rewound_tokens=account.stats[0].rewound if account.stats else 0,
    )


def timings(account: TurnRecord) -> report_pb.TurnTimings:
    """Queue and prefill are those of the first generation; decoding adds up over all."""
    first = account.stats[0] if account.stats else TurnStats(submitted=0.0)
    begun = [account.first_token(stats) for stats in account.stats]
    ends = (stats.ended - stats.held_seconds for stats in account.stats)
    spans = zip(begun, ends, strict=True)
    decoding = [us for start, end in spans if (us := _us(start, max(start, end))) is not None]
    return report_pb.TurnTimings(
        queue_us=_us(account.committed, first.started),
        prefill_us=_us(max(first.started, account.released) if first.started else 0.0, first.first_token),
        first_token_us=_us(account.committed, begun[0] if begun else 0.0),
        first_text_us=_us(account.committed, account.first_text),
        first_clause_us=_us(account.committed, account.first_clause),
        decode_us=sum(decoding) if decoding else None,
        tool_wait_us=round(account.tool_wait_s * 1e6) if account.tool_wait_s else None,
        held_us=round(account.held_s * 1e6) if account.held_s else None,
        total_us=_us(account.committed, account.ended) or 0,
    )


def _us(start: float, end: float) -> int | None:
    """Microseconds from one moment to another; None where either did not come."""
    return round((end - start) * 1e6) if start and end >= start else None


def drafting(generations: Sequence[TurnStats]) -> report_pb.DraftingStatistics:
    """Over all generations of a turn. A phase goes on where the next generation drafts as the last one did."""
    depth = max((len(stats.drafted_at) for stats in generations), default=0)
    message = report_pb.DraftingStatistics(
        steps=sum(stats.steps for stats in generations),
        drafted_tokens=sum(stats.drafted for stats in generations),
        accepted_tokens=sum(stats.accepted for stats in generations),
        drafted_steps_at_depth=[
            sum(stats.drafted_at[d] for stats in generations if d < len(stats.drafted_at)) for d in range(depth)
        ],
        accepted_steps_at_depth=[
            sum(stats.accepted_at[d] for stats in generations if d < len(stats.accepted_at)) for d in range(depth)
        ],
        draft_us=round(sum(stats.draft_seconds for stats in generations) * 1e6),
        forward_us=round(sum(stats.forward_seconds for stats in generations) * 1e6),
    )
    for phase in (phase for stats in generations for phase in stats.phases):
        if not message.phases or message.phases[-1].mode != phase.mode:
            message.phases.add(mode=phase.mode, reason=phase.reason)
        told = message.phases[-1]
        told.steps += phase.steps
        told.drafted_tokens += phase.drafted
        told.accepted_tokens += phase.accepted
    return message
