"""Where tokens come from, and how much room there is."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.generate import naming
from deploy.generate.dashboards.queries import count, count_by, of_engines, of_engines_rate, quantile
from deploy.generate.panels import ENGINE, Panel, lines
from service.telemetry import names


def drafting() -> Sequence[Panel]:
    accepted, drafted = names.ACCEPTED_TOKENS, names.DRAFTED_TOKENS
    at = f"{count_by(names.ACCEPTED_AT, names.POSITION)} / {count_by(names.DRAFTED_AT, names.POSITION)}"
    return (
        lines(
            "Tokens per forward",
            "The bonus token counted; 1 is plain decoding.",
            "none",
            {
                "{{gen_ai_request_model}}": f"{count_by(names.REPLY_TOKENS, names.REQUEST_MODEL)} / "
                f"{count_by(names.STEPS, names.REQUEST_MODEL)}"
            },
        ),
        lines(
            "Accepted of what was drafted, by drafter",
            "Of the nodes of its trees; a wide tree has many that are not meant to be.",
            "percentunit",
            {"{{firstword_drafter}}": f"{count_by(accepted, names.DRAFTER)} / {count_by(drafted, names.DRAFTER)}"},
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
                "{{firstword_drafter}}": count_by(accepted, names.DRAFTER),
                "replies": f"sum ({count(names.REPLY_TOKENS)})",
            },
        ),
        lines(
            "Forwards that verified a draft",
            "The others were plain.",
            "percentunit",
            {"{{firstword_mode}}": f"{count_by(names.DRAFTS, names.MODE)} / {count_by(names.STEPS, names.MODE)}"},
            max=1,
        ),
        lines(
            "Tokens per forward of a turn",
            "Over turns.",
            "none",
            {f"p{q}": quantile(q, names.TOKENS_PER_STEP) for q in (10, 50, 90)},
        ),
    )


def prompts() -> Sequence[Panel]:
    found = count_by(names.PROMPT_TOKENS, names.FOUND)
    ahead = count(names.TURNS, f'{naming.label(names.AHEAD)}="true"')
    return (
        lines(
            "Prompt tokens by where they were found",
            "cached: from before the turn; ahead: computed while the caller spoke; computed: while they waited.",
            "percentunit",
            {
                "{{firstword_prompt_found}}": f"{found} / ignoring (firstword_prompt_found) group_left () "
                f"sum ({count(names.PROMPT_TOKENS)})"
            },
            stacked=True,
            max=1,
        ),
        lines(
            "Turns answered ahead",
            "Share of turns whose reply was made before they were committed.",
            "percentunit",
            {"ahead": f"sum ({ahead}) / sum ({count(names.TURNS)})"},
            max=1,
        ),
        lines(
            "Computed for nothing",
            "Tokens a second of replies made ahead and dropped, and of hypotheses that did not hold.",
            "none",
            {"replies": f"sum ({count(names.WASTED_TOKENS)})", "hypotheses": f"sum ({count(names.REWOUND_TOKENS)})"},
        ),
    )


def capacity() -> Sequence[Panel]:
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
                "engine sessions {{gen_ai_response_model}}": of_engines(names.ENGINE_SESSIONS),
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
                "used {{gen_ai_response_model}}": of_engines(names.PAGES_IN_USE),
                "free {{gen_ai_response_model}}": of_engines(names.PAGES_FREE),
                "kept beginnings {{gen_ai_response_model}}": of_engines(names.PAGES_KEPT),
            },
            stacked=True,
        ),
        lines(
            "Calls refused a second",
            "By reason, beside those that were taken.",
            "reqps",
            {
                "{{error_type}}": count_by(names.REFUSED_CALLS, names.ERROR),
                "taken": f"sum ({count(names.ADMITTED_CALLS)})",
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
                "hibernated": of_engines_rate(names.HIBERNATED),
                "dropped": of_engines_rate(names.DROPPED),
                "woken from host": of_engines_rate(names.WOKEN_FROM_HOST),
                "woken from log": of_engines_rate(names.WOKEN_FROM_LOG),
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
                "computed": of_engines_rate(names.COMPUTED_TOKENS),
                "shared": of_engines_rate(names.SHARED_TOKENS),
            },
        ),
        lines(
            "Held for slow readers",
            "Times a second that a call's replies waited for its client to read.",
            "reqps",
            {"held": f"sum ({count(names.HELD_CALLS)})"},
        ),
        lines(
            "Clients that sent too much",
            "Streams a second that brought more events than call.max_events_per_s, and were read no faster.",
            "reqps",
            {"slowed": f"sum ({count(names.SLOWED_CALLS)})"},
        ),
        lines(
            "Calls ended a second",
            "By what ended them; nothing is an orderly close.",
            "reqps",
            {"{{error_type}}": count_by(names.CALLS, names.ERROR)},
        ),
        lines(
            "Engine processes",
            "How many are there, and how many were replaced in ten minutes.",
            "none",
            {
                "serving {{gen_ai_response_model}}": of_engines(names.ENGINE_SERVING),
                "replaced {{gen_ai_response_model}}": "sum by (gen_ai_response_model) "
                f"(increase({naming.counter(names.ENGINE_RESTARTS)}{own}[10m]))",
            },
        ),
    )
