"""What callers feel."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.generate.dashboards.queries import count, count_by, quantile, rate_of
from deploy.generate.panels import Panel, heat, lines
from service.telemetry import names


def first() -> Sequence[Panel]:
    token, clause = names.TIME_TO_FIRST_TOKEN, names.TIME_TO_FIRST_CLAUSE
    return (
        lines(
            "First token",
            "Committed turn to first token. Dots are exemplars: one click to the trace.",
            "s",
            {f"p{q}": quantile(q, token) for q in (50, 95, 99)},
            exemplars=True,
        ),
        heat("First token, all turns", "How many turns took how long.", f"sum by (le) ({rate_of(token + '.bucket')})"),
        lines(
            "First clause",
            "Committed turn to the end of the first clause, which is when a synthesiser can start.",
            "s",
            {f"p{q}": quantile(q, clause) for q in (50, 95, 99)},
            exemplars=True,
        ),
        lines(
            "First token by drafting mode, p95",
            "plain: nothing was drafted by the end of the turn.",
            "s",
            {"{{firstword_mode}}": quantile(95, token, names.MODE)},
        ),
        lines(
            "First token, answered ahead or not, p95",
            "true: the reply was made before the turn was committed.",
            "s",
            {"ahead {{firstword_answer_ahead}}": quantile(95, token, names.AHEAD)},
        ),
        lines(
            "First clause by drafting mode, p95",
            "Decoding is part of it, so drafting shows.",
            "s",
            {"{{firstword_mode}}": quantile(95, clause, names.MODE)},
        ),
    )


def turns() -> Sequence[Panel]:
    missed = f"sum ({count(names.DEADLINES_MISSED)}) / sum ({count(names.DEADLINES)})"
    return (
        lines(
            "Turns a second by end",
            "completed, interrupted, limit_reached or session_closed.",
            "reqps",
            {"{{gen_ai_agent_invocation_end_reason}}": count_by(names.TURNS, names.END_REASON)},
            stacked=True,
        ),
        lines(
            "Errors a second by reason",
            "Turns that failed; the reason is the one that the client got.",
            "reqps",
            {"{{error_type}}": count_by(names.TURNS, names.ERROR, 'error_type!=""')},
        ),
        lines(
            "Who answered",
            "The call's own model, a fallback model or a phrase.",
            "reqps",
            {"{{firstword_answer_source}}": count_by(names.TURNS, names.SOURCE)},
            stacked=True,
        ),
        lines(
            "Waiting in the engine",
            "queue: asked for until the first step; prefill: until the first token.",
            "s",
            {
                "queue p95": quantile(95, names.QUEUE_TIME),
                "queue p99": quantile(99, names.QUEUE_TIME),
                "prefill p95": quantile(95, names.PREFILL_TIME),
            },
        ),
        lines(
            "Time per token",
            "After the first. Speech plays three to four a second.",
            "s",
            {f"p{q}": quantile(q, names.TIME_PER_OUTPUT_TOKEN) for q in (50, 95, 99)},
        ),
        lines(
            "Words that ran out",
            "Of the clauses, those before which the caller heard silence, by the rate at which words are spoken; and "
            "those that came behind the moment at which the scheduler had them due.",
            "percentunit",
            {
                "silence before": f"sum ({count(names.UNDERRUNS)}) / sum ({count(names.CLAUSES)})",
                "behind schedule": f"sum ({count(names.CLAUSES_LATE)}) / sum ({count(names.CLAUSES)})",
            },
        ),
        lines(
            "Seconds of silence a minute",
            "Between clauses, over all calls, by the rate at which words are spoken.",
            "s",
            {"{{firstword_mode}}": f"60 * {count_by(names.UNDERRUN_TIME, names.MODE)}"},
        ),
        lines(
            "Deadlines missed",
            "Of the turns that had one for their first token.",
            "percentunit",
            {"missed": missed},
            max=1,
        ),
    )


def tools() -> Sequence[Panel]:
    return (
        lines(
            "Interruptions a second",
            "generating: while it was being made; waiting: for tools; playback: it was whole already.",
            "reqps",
            {"{{firstword_interruption_during}}": count_by(names.INTERRUPTIONS, names.DURING)},
            stacked=True,
        ),
        lines(
            "Spoken over to stopped",
            "How long a reply went on.",
            "s",
            {f"p{q}": quantile(q, names.INTERRUPTION_TIME) for q in (50, 99)},
        ),
        lines(
            "Waiting for tools",
            "Tool call told to its result.",
            "s",
            {f"p{q}": quantile(q, names.TOOL_WAIT) for q in (50, 95)},
        ),
        lines(
            "Tool calls a second by outcome",
            "abandoned: the turn went on without the result.",
            "reqps",
            {"{{firstword_tool_outcome}}": count_by(names.TOOL_CALLS, names.OUTCOME)},
            stacked=True,
        ),
        lines(
            "Length of turns",
            "Committed to ended, tools included.",
            "s",
            {f"p{q}": quantile(q, names.REQUEST_DURATION) for q in (50, 95)},
        ),
    )
