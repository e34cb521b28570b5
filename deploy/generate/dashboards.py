"""The dashboards: what is promised, what callers feel, what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deploy.generate import naming
from deploy.generate.objectives import Objectives
from deploy.generate.panels import ENGINE, MODEL, RATE, Panel, board, figure, heat, lines, traces
from deploy.generate.rules import BUDGET_LEFT, TARGET, error_ratio
from service.telemetry import names

TURN = 'resource.service.name = "firstword" && name =~ "chat .*"'
PART = 'resource.service.name = "firstword"'
SPANS = "traces_span_metrics_duration_seconds_bucket"
"""What the collector's span metrics connector makes of our spans (``deploy/collector.yaml``)."""


def all_of(objectives: Objectives) -> dict[str, dict[str, Any]]:
    """Every dashboard, by the name of its file."""
    return {
        "objectives": board(
            "firstword-objectives",
            "Firstword: objectives",
            "What is promised, how much of the error budget is left, and the turns that spent it.",
            {
                "Error budgets": _budgets(objectives),
                "Slow turns, and where their milliseconds went (from traces)": _slow(objectives),
            },
        ),
        "calls": board(
            "firstword-calls",
            "Firstword: calls",
            "What callers feel: first token, first clause, pace, interruptions, tools.",
            {"First token and first clause": _first(), "How turns go": _turns(), "Tools and interruptions": _tools()},
        ),
        "capacity": board(
            "firstword-capacity",
            "Firstword: drafting and capacity",
            "Where tokens come from, what a forward yields, and how much room there is.",
            {"Drafting": _drafting(), "Prompts and work ahead": _prompts(), "Capacity": _capacity()},
        ),
        "store": board(
            "firstword-store",
            "Firstword: store and takeovers",
            "Whether calls would outlive their server, and how they did.",
            {"The store": _store(), "Takeovers": _takeovers()},
        ),
        "security": board(
            "firstword-security",
            "Firstword: security",
            "Who is let in, and what they are let in by.",
            {"Security": _security()},
        ),
    }


def _budgets(objectives: Objectives) -> Sequence[Panel]:
    burn = f"{error_ratio('1h')}{{{MODEL}}} / on (objective, namespace, service) group_left () (1 - {TARGET})"
    targets = "; ".join(f"{one.title}: {one.target:.1%}, {one.summary}" for one in objectives.objective)
    return (
        figure(
            f"Budget left of {objectives.period_days} days",
            f"1 is untouched, 0 is spent. {targets}.",
            "percentunit",
            f"{BUDGET_LEFT}{{{MODEL}}}",
            "{{objective}} {{gen_ai_request_model}}",
        ),
        lines(
            "Burn rate, last hour",
            "How many times faster than allowed the budget is spent. 1 spends it in the period; 14.4 wakes somebody.",
            "none",
            {"{{objective}} {{gen_ai_request_model}}": burn},
            width=12,
        ),
        lines(
            "Bad events, last 5 minutes",
            "Share of the events that were outside their objective.",
            "percentunit",
            {"{{objective}} {{gen_ai_request_model}}": f"{error_ratio('5m')}{{{MODEL}}}"},
            width=12,
        ),
    )


def _slow(objectives: Objectives) -> Sequence[Panel]:
    late = {one.name: f"{one.within_s * 1e3:.0f}ms" for one in objectives.objective if one.histogram}
    by_part = "hand over|queue|prefill|decode"
    return (
        lines(
            "First token, 95th percentile by part",
            "hand over: from the committed turn to the engine; queue: until its first step; prefill: until the token.",
            "s",
            {"{{span_name}}": _span_quantile(0.95, "hand over|queue|prefill|first token", ahead=False)},
            exemplars=True,
            width=12,
        ),
        lines(
            "Mean time of a turn by part",
            "Where a turn's time goes, tools included.",
            "s",
            {
                "{{span_name}}": "sum by (span_name) (rate(traces_span_metrics_duration_seconds_sum"
                f'{{service_name="firstword", span_name=~"{by_part}|execute_tool .*"}}[{RATE}]))'
                " / ignoring (span_name) group_left () sum (rate(traces_span_metrics_duration_seconds_count"
                f'{{service_name="firstword", span_name=~"chat .*"}}[{RATE}]))'
            },
            stacked=True,
            width=12,
        ),
        traces(
            "Late first tokens",
            f"Turns whose first token took more than {late['first_token']}.",
            f'{{ {PART} && name = "first token" && duration > {late["first_token"]} }}',
        ),
        traces(
            "Late first clauses",
            f"Turns whose first clause took more than {late['first_clause']}.",
            f'{{ {PART} && name = "first clause" && duration > {late["first_clause"]} }}',
        ),
        traces(
            "Waited for others",
            "Generations that stood in the queue for more than 20 ms.",
            f'{{ {PART} && name = "queue" && duration > 20ms }}',
            spans=True,
        ),
        traces(
            "Prefilled while the caller waited",
            "Prompts of which more than 64 tokens had to be computed behind the committed turn.",
            f'{{ {PART} && name = "prefill" && span.firstword.ahead = false && span.firstword.prefill.tokens > 64 }}',
            spans=True,
        ),
        traces("Failed turns", "Turns that ended with an error.", f"{{ {TURN} && status = error }}"),
        traces(
            "Interrupted late",
            f"Replies that went on for more than {late['interruption']} after they had been spoken over.",
            f'{{ {PART} && name = "interruption" && duration > {late["interruption"]} }}',
        ),
    )


def _first() -> Sequence[Panel]:
    token, clause = names.TIME_TO_FIRST_TOKEN, names.TIME_TO_FIRST_CLAUSE
    return (
        lines(
            "First token",
            "Committed turn to first token. Dots are exemplars: one click to the trace.",
            "s",
            {f"p{q}": _quantile(q, token) for q in (50, 95, 99)},
            exemplars=True,
        ),
        heat("First token, all turns", "How many turns took how long.", f"sum by (le) ({_rate(token + '.bucket')})"),
        lines(
            "First clause",
            "Committed turn to the end of the first clause, which is when a synthesiser can start.",
            "s",
            {f"p{q}": _quantile(q, clause) for q in (50, 95, 99)},
            exemplars=True,
        ),
        lines(
            "First token by drafting mode, p95",
            "plain: nothing was drafted by the end of the turn.",
            "s",
            {"{{firstword_mode}}": _quantile(95, token, names.MODE)},
        ),
        lines(
            "First token, answered ahead or not, p95",
            "true: the reply was made before the turn was committed.",
            "s",
            {"ahead {{firstword_answer_ahead}}": _quantile(95, token, names.AHEAD)},
        ),
        lines(
            "First clause by drafting mode, p95",
            "Decoding is part of it, so drafting shows.",
            "s",
            {"{{firstword_mode}}": _quantile(95, clause, names.MODE)},
        ),
    )


def _turns() -> Sequence[Panel]:
    missed = f"sum ({_count(names.DEADLINES_MISSED)}) / sum ({_count(names.DEADLINES)})"
    return (
        lines(
            "Turns a second by end",
            "completed, interrupted, limit_reached or session_closed.",
            "reqps",
            {"{{gen_ai_agent_invocation_end_reason}}": _by(names.TURNS, names.END_REASON)},
            stacked=True,
        ),
        lines(
            "Errors a second by reason",
            "Turns that failed; the reason is the one that the client got.",
            "reqps",
            {"{{error_type}}": _by(names.TURNS, names.ERROR, 'error_type!=""')},
        ),
        lines(
            "Who answered",
            "The call's own model, a fallback model or a phrase.",
            "reqps",
            {"{{firstword_answer_source}}": _by(names.TURNS, names.SOURCE)},
            stacked=True,
        ),
        lines(
            "Waiting in the engine",
            "queue: asked for until the first step; prefill: until the first token.",
            "s",
            {
                "queue p95": _quantile(95, names.QUEUE_TIME),
                "queue p99": _quantile(99, names.QUEUE_TIME),
                "prefill p95": _quantile(95, names.PREFILL_TIME),
            },
        ),
        lines(
            "Time per token",
            "After the first. Speech plays three to four a second.",
            "s",
            {f"p{q}": _quantile(q, names.TIME_PER_OUTPUT_TOKEN) for q in (50, 95, 99)},
        ),
        lines(
            "Words that ran out",
            "Of the clauses, those before which the caller heard silence, by the rate at which words are spoken; and "
            "those that came behind the moment at which the scheduler had them due.",
            "percentunit",
            {
                "silence before": f"sum ({_count(names.UNDERRUNS)}) / sum ({_count(names.CLAUSES)})",
                "behind schedule": f"sum ({_count(names.CLAUSES_LATE)}) / sum ({_count(names.CLAUSES)})",
            },
        ),
        lines(
            "Seconds of silence a minute",
            "Between clauses, over all calls, by the rate at which words are spoken.",
            "s",
            {"{{firstword_mode}}": f"60 * {_by(names.UNDERRUN_TIME, names.MODE)}"},
        ),
        lines(
            "Deadlines missed",
            "Of the turns that had one for their first token.",
            "percentunit",
            {"missed": missed},
            max=1,
        ),
    )


def _tools() -> Sequence[Panel]:
    return (
        lines(
            "Interruptions a second",
            "generating: while it was being made; waiting: for tools; playback: it was whole already.",
            "reqps",
            {"{{firstword_interruption_during}}": _by(names.INTERRUPTIONS, names.DURING)},
            stacked=True,
        ),
        lines(
            "Spoken over to stopped",
            "How long a reply went on.",
            "s",
            {f"p{q}": _quantile(q, names.INTERRUPTION_TIME) for q in (50, 99)},
        ),
        lines(
            "Waiting for tools",
            "Tool call told to its result.",
            "s",
            {f"p{q}": _quantile(q, names.TOOL_WAIT) for q in (50, 95)},
        ),
        lines(
            "Tool calls a second by outcome",
            "abandoned: the turn went on without the result.",
            "reqps",
            {"{{firstword_tool_outcome}}": _by(names.TOOL_CALLS, names.OUTCOME)},
            stacked=True,
        ),
        lines(
            "Length of turns",
            "Committed to ended, tools included.",
            "s",
            {f"p{q}": _quantile(q, names.REQUEST_DURATION) for q in (50, 95)},
        ),
    )


def _drafting() -> Sequence[Panel]:
    accepted, drafted = names.ACCEPTED_TOKENS, names.DRAFTED_TOKENS
    at = f"{_by(names.ACCEPTED_AT, names.POSITION)} / {_by(names.DRAFTED_AT, names.POSITION)}"
    return (
        lines(
            "Tokens per forward",
            "The bonus token counted; 1 is plain decoding.",
            "none",
            {
                "{{gen_ai_request_model}}": f"{_by(names.REPLY_TOKENS, names.REQUEST_MODEL)} / "
                f"{_by(names.STEPS, names.REQUEST_MODEL)}"
            },
        ),
        lines(
            "Accepted of what was drafted, by drafter",
            "Of the nodes of its trees; a wide tree has many that are not meant to be.",
            "percentunit",
            {"{{firstword_drafter}}": f"{_by(accepted, names.DRAFTER)} / {_by(drafted, names.DRAFTER)}"},
            max=1,
        ),
        lines(
            "Accepted by position",
            "Of the drafts that reached it.",
            "percentunit",
            {"{{firstword_draft_position}}": at},
            max=1,
        ),
        lines(
            "Tokens a second by drafter",
            "Accepted ones, and the target's own.",
            "none",
            {
                "{{firstword_drafter}}": _by(accepted, names.DRAFTER),
                "replies": f"sum ({_count(names.REPLY_TOKENS)})",
            },
        ),
        lines(
            "Forwards that verified a draft",
            "The others were plain.",
            "percentunit",
            {"{{firstword_mode}}": f"{_by(names.DRAFTS, names.MODE)} / {_by(names.STEPS, names.MODE)}"},
            max=1,
        ),
        lines(
            "Tokens per forward of a turn",
            "Over turns.",
            "none",
            {f"p{q}": _quantile(q, names.TOKENS_PER_STEP) for q in (10, 50, 90)},
        ),
    )


def _prompts() -> Sequence[Panel]:
    found = _by(names.PROMPT_TOKENS, names.FOUND)
    ahead = _count(names.TURNS, f'{naming.label(names.AHEAD)}="true"')
    return (
        lines(
            "Prompt tokens by where they were found",
            "cached: from before the turn; ahead: computed while the caller spoke; computed: while they waited.",
            "percentunit",
            {
                "{{firstword_prompt_found}}": f"{found} / ignoring (firstword_prompt_found) group_left () "
                f"sum ({_count(names.PROMPT_TOKENS)})"
            },
            stacked=True,
            max=1,
        ),
        lines(
            "Turns answered ahead",
            "Share of turns whose reply was made before they were committed.",
            "percentunit",
            {"ahead": f"sum ({ahead}) / sum ({_count(names.TURNS)})"},
            max=1,
        ),
        lines(
            "Computed for nothing",
            "Tokens a second of replies made ahead and dropped, and of hypotheses that did not hold.",
            "none",
            {"replies": f"sum ({_count(names.WASTED_TOKENS)})", "hypotheses": f"sum ({_count(names.REWOUND_TOKENS)})"},
        ),
    )


def _capacity() -> Sequence[Panel]:
    used, free = naming.label(names.PAGES_IN_USE), naming.label(names.PAGES_FREE)
    own, backlog = f"{{{ENGINE}}}", f"{naming.label(names.ENGINE_BACKLOG)}_seconds"
    host = naming.label(names.HOST_BYTES)
    return (
        lines(
            "Calls and turns",
            "Streams that are open, and turns in progress.",
            "none",
            {
                "calls": f"sum ({naming.label(names.ACTIVE_CALLS)})",
                "turns": f"sum ({naming.label(names.TURNS_OPEN)}{own})",
                "engine sessions {{gen_ai_response_model}}": _of_engines(names.ENGINE_SESSIONS),
            },
        ),
        lines(
            "Pages in use",
            "Of the pool for keys and values.",
            "percentunit",
            {"{{gen_ai_response_model}}": f"{used}{own} / ({used}{own} + {free}{own})"},
            max=1,
        ),
        lines(
            "Pages",
            "In use and free.",
            "none",
            {
                "used {{gen_ai_response_model}}": _of_engines(names.PAGES_IN_USE),
                "free {{gen_ai_response_model}}": _of_engines(names.PAGES_FREE),
                "kept beginnings {{gen_ai_response_model}}": _of_engines(names.PAGES_KEPT),
            },
            stacked=True,
        ),
        lines(
            "Calls refused a second",
            "By reason, beside those that were taken.",
            "reqps",
            {
                "{{error_type}}": _by(names.REFUSED_CALLS, names.ERROR),
                "taken": f"sum ({_count(names.ADMITTED_CALLS)})",
            },
        ),
        lines(
            "Backlog",
            "How long all that is pending in the engine takes to compute.",
            "s",
            {"{{gen_ai_response_model}}": f"max by (gen_ai_response_model) ({backlog}{own})"},
        ),
        lines(
            "Load of speech",
            "The part of its time that the engine needs for what is being spoken; from 1 on voices fall silent.",
            "percentunit",
            {"{{gen_ai_response_model}}": f"max by (gen_ai_response_model) ({naming.label(names.SPEECH_LOAD)}{own})"},
        ),
        lines(
            "Quiet calls a second",
            "Moved to host memory, dropped to their tokens, and brought back from either.",
            "reqps",
            {
                "hibernated": _of_engines_rate(names.HIBERNATED),
                "dropped": _of_engines_rate(names.DROPPED),
                "woken from host": _of_engines_rate(names.WOKEN_FROM_HOST),
                "woken from log": _of_engines_rate(names.WOKEN_FROM_LOG),
            },
        ),
        lines(
            "Host memory of quiet calls",
            "Bytes of their pages.",
            "bytes",
            {"{{gen_ai_response_model}}": f"sum by (gen_ai_response_model) ({host}_bytes{own})"},
        ),
        lines(
            "Prompt tokens in the engine",
            "computed: here; shared: had from another call of the tenant.",
            "none",
            {
                "computed": _of_engines_rate(names.COMPUTED_TOKENS),
                "shared": _of_engines_rate(names.SHARED_TOKENS),
            },
        ),
        lines(
            "Held for slow readers",
            "Times a second that a call's replies waited for its client to read.",
            "reqps",
            {"held": f"sum ({_count(names.HELD_CALLS)})"},
        ),
        lines(
            "Clients that sent too much",
            "Streams a second that brought more events than call.max_events_per_s, and were read no faster.",
            "reqps",
            {"slowed": f"sum ({_count(names.SLOWED_CALLS)})"},
        ),
        lines(
            "Calls ended a second",
            "By what ended them; nothing is an orderly close.",
            "reqps",
            {"{{error_type}}": _by(names.CALLS, names.ERROR)},
        ),
        lines(
            "Engine processes",
            "How many are there, and how many were replaced in ten minutes.",
            "none",
            {
                "serving {{gen_ai_response_model}}": _of_engines(names.ENGINE_SERVING),
                "replaced {{gen_ai_response_model}}": "sum by (gen_ai_response_model) "
                f"(increase({naming.counter(names.ENGINE_RESTARTS)}{own}[10m]))",
            },
        ),
    )


def _store() -> Sequence[Panel]:
    append = f"rate({naming.histogram(names.STORE_APPEND_TIME)}_bucket[{RATE}])"
    used, limit = f"{naming.label(names.STORE_MEMORY)}_bytes", f"{naming.label(names.STORE_MEMORY_LIMIT)}_bytes"
    return (
        lines(
            "Append time",
            "A write of records to its answer. Nobody waits for it.",
            "s",
            {f"p{q}": f"histogram_quantile({q / 100:g}, sum by (le) ({append}))" for q in (50, 95, 99)},
        ),
        lines(
            "Waiting to be written",
            "How long the oldest record has waited, at the server where it waits longest.",
            "s",
            {"lag": f"max ({naming.label(names.STORE_LAG)}_seconds)"},
        ),
        lines(
            "Records and calls not safe yet",
            "unwritten: to be written; kept: those and what a failover may still lose (behind durable_seq).",
            "none",
            {
                "unwritten": f"sum ({naming.label(names.STORE_UNWRITTEN)})",
                "kept": f"sum ({naming.label(names.STORE_KEPT)})",
                "calls with records to be written": f"sum ({naming.label(names.STORE_PENDING)})",
                "calls that alone cannot be written": f"sum ({naming.label(names.STORE_PARKED)})",
            },
        ),
        lines(
            "Failures and returns",
            "A second: writes that failed, and times that the store answered again; and how many servers are behind.",
            "none",
            {
                "failures": f"sum (rate({naming.counter(names.STORE_FAILURES)}[{RATE}]))",
                "answered again": f"sum (rate({naming.counter(names.STORE_RECONNECTS)}[{RATE}]))",
                "servers behind": f"sum ({naming.label(names.STORE_BEHIND)})",
            },
        ),
        lines(
            "Memory of the store",
            "In use, and what may be; 0: no limit.",
            "bytes",
            {"used": f"max ({used})", "limit": f"max ({limit})"},
        ),
    )


def _takeovers() -> Sequence[Panel]:
    return (
        lines(
            "Coming back to calls",
            "A second. here: to the server that has the call; the others are takeovers.",
            "reqps",
            {"{{firstword_resume_kind}}": _by(names.RESUMED, names.RESUME)},
        ),
        lines(
            "Refused on coming back",
            "A second, by reason. WARM_ELSEWHERE sends the client to the server that has the call.",
            "reqps",
            {"{{error_type}}": _by(names.RESUME_REFUSED, names.ERROR)},
        ),
        lines(
            "Leases lost and writes refused",
            "A second: calls that turned out to be another server's, and writes that the store refused for it.",
            "reqps",
            {
                "leases lost": f"sum (rate({naming.counter(names.STORE_LEASES_LOST)}[{RATE}]))",
                "writes refused": f"sum (rate({naming.counter(names.STORE_FENCED)}[{RATE}]))",
            },
        ),
    )


def _security() -> Sequence[Panel]:
    def grown(counter: str, attribute: str, window: str) -> str:
        return f"sum by ({naming.label(attribute)}) (increase({naming.counter(counter)}[{window}]))"

    return (
        lines(
            "Streams let in",
            "In five minutes, by what their clients showed.",
            "none",
            {"{{firstword_auth_means}}": grown(names.ENTERED, names.MEANS, "5m")},
            stacked=True,
        ),
        lines(
            "Streams turned away",
            "In five minutes, by reason.",
            "none",
            {"{{error_type}}": grown(names.TURNED_AWAY, names.ERROR, "5m")},
            stacked=True,
        ),
        lines(
            "Certificate valid for",
            "That of the server where it ends first. At three days somebody is woken.",
            "s",
            {"at least": f"min ({naming.label(names.CERTIFICATE_EXPIRES)}_seconds)"},
        ),
        lines(
            "Certificates and keys replaced",
            "In an hour. failed: what came could not be used, and the old one stayed.",
            "none",
            {
                "{{firstword_security_file}}": grown(names.RELOADS, names.RELOADED, "1h"),
                "{{firstword_security_file}} failed": grown(names.RELOAD_FAILURES, names.RELOADED, "1h"),
            },
        ),
    )


def _quantile(percent: int, histogram: str, by: str = "") -> str:
    """A percentile of a histogram, perhaps by an attribute."""
    labels = ", ".join(filter(None, ("le", naming.label(by) if by else "")))
    return f"histogram_quantile({percent / 100:g}, sum by ({labels}) ({_rate(histogram + '.bucket')}))"


def _rate(histogram_part: str) -> str:
    histogram, _, part = histogram_part.rpartition(".")
    return f"rate({naming.histogram(histogram)}_{part}{{{MODEL}}}[{RATE}])"


def _count(counter: str, where: str = "") -> str:
    """A counter's growth a second."""
    return f"rate({naming.counter(counter)}{{{', '.join(filter(None, (MODEL, where)))}}}[{RATE}])"


def _by(counter: str, attribute: str, where: str = "") -> str:
    return f"sum by ({naming.label(attribute)}) ({_count(counter, where)})"


def _of_engines(gauge: str) -> str:
    return f"sum by (gen_ai_response_model) ({naming.label(gauge)}{{{ENGINE}}})"


def _of_engines_rate(counter: str) -> str:
    return f"sum (rate({naming.counter(counter)}{{{ENGINE}}}[{RATE}]))"


def _span_quantile(quantile: float, spans: str, *, ahead: bool) -> str:
    """Of span durations. ahead: of what was done before the turn was committed."""
    where = f'service_name="firstword", span_name=~"{spans}", firstword_ahead!="{str(not ahead).lower()}"'
    return f"histogram_quantile({quantile:g}, sum by (le, span_name) (rate({SPANS}{{{where}}}[{RATE}])))"
