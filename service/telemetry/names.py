"""Every name under which something is measured, and the bounds of the histograms. The one place to add one.

A name that the OpenTelemetry GenAI conventions have is theirs (semantic-conventions-genai, status Development); the
others begin with ``firstword.``. Prometheus has them with underscores, their unit and, for counters, ``_total`` behind:
``firstword.turn.queue_time`` in seconds is ``firstword_turn_queue_time_seconds``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

PROVIDER = "firstword"
SCOPE = "firstword.service"

# A turn, committed to ended. Histograms.
TIME_TO_FIRST_TOKEN = "gen_ai.server.time_to_first_token"
TIME_PER_OUTPUT_TOKEN = "gen_ai.server.time_per_output_token"
REQUEST_DURATION = "gen_ai.server.request.duration"
TIME_TO_FIRST_CLAUSE = "firstword.turn.time_to_first_clause"
QUEUE_TIME = "firstword.turn.queue_time"
PREFILL_TIME = "firstword.turn.prefill_time"
TOOL_WAIT = "firstword.turn.tool_wait"
INTERRUPTION_TIME = "firstword.turn.interruption_time"
TOKENS_PER_STEP = "firstword.turn.tokens_per_step"

# Turns and calls. Counters, but for what is open now.
TURNS = "firstword.turns"
TURNS_OPEN = "firstword.turns.open"
DEADLINES = "firstword.turn.deadlines"
DEADLINES_MISSED = "firstword.turn.deadlines_missed"
CLAUSES = "firstword.turn.clauses"
CLAUSES_LATE = "firstword.turn.clauses_late"
UNDERRUNS = "firstword.turn.underruns"
UNDERRUN_TIME = "firstword.turn.underrun_time"
INTERRUPTIONS = "firstword.interruptions"
TOOL_CALLS = "firstword.tool.calls"
CALLS = "firstword.calls"
ADMITTED_CALLS = "firstword.calls.admitted"
REFUSED_CALLS = "firstword.calls.refused"
HELD_CALLS = "firstword.calls.held"
SLOWED_CALLS = "firstword.calls.slowed"
ACTIVE_CALLS = "firstword.calls.active"

# Who is let in, and what they are let in by. Counters, but for the time that is left.
ENTERED = "firstword.auth.entered"
TURNED_AWAY = "firstword.auth.turned_away"
RELOADS = "firstword.security.reloads"
RELOAD_FAILURES = "firstword.security.reload_failures"
CERTIFICATE_EXPIRES = "firstword.tls.certificate.expires_in"

# Tokens: of prompts, by where they were found; of replies; what was computed ahead for nothing. Counters.
PROMPT_TOKENS = "firstword.prompt.tokens"
REPLY_TOKENS = "firstword.reply.tokens"
WASTED_TOKENS = "firstword.ahead.wasted"
REWOUND_TOKENS = "firstword.ahead.rewound"

# Drafting. Counters.
STEPS = "firstword.steps"
DRAFTS = "firstword.draft.drafts"
DRAFTED_TOKENS = "firstword.draft.drafted"
ACCEPTED_TOKENS = "firstword.draft.accepted"
DRAFTED_AT = "firstword.draft.position.drafted"
ACCEPTED_AT = "firstword.draft.position.accepted"

# The engine processes, by model. Read when metrics are collected.
PAGES_IN_USE = "firstword.engine.pages.used"
PAGES_FREE = "firstword.engine.pages.free"
PAGES_KEPT = "firstword.engine.pages.kept"
ENGINE_BACKLOG = "firstword.engine.backlog"
SPEECH_LOAD = "firstword.engine.speech_load"
ENGINE_SESSIONS = "firstword.engine.sessions"
HOST_BYTES = "firstword.engine.host.used"
HIBERNATED = "firstword.engine.sessions.hibernated"
DROPPED = "firstword.engine.sessions.dropped"
WOKEN_FROM_HOST = "firstword.engine.sessions.woken_from_host"
WOKEN_FROM_LOG = "firstword.engine.sessions.woken_from_log"
COMPUTED_TOKENS = "firstword.engine.prompt.computed"
SHARED_TOKENS = "firstword.engine.prompt.shared"
ENGINE_SERVING = "firstword.engine.serving"
ENGINE_RESTARTS = "firstword.engine.restarts"

# The store behind the calls. Read when metrics are collected.
STORE_PENDING = "firstword.store.calls_pending"
STORE_PARKED = "firstword.store.calls_parked"
STORE_BEHIND = "firstword.store.behind"
STORE_FAILURES = "firstword.store.failures"
STORE_UNWRITTEN = "firstword.store.records.unwritten"
STORE_KEPT = "firstword.store.records.kept"
STORE_LAG = "firstword.store.lag"
STORE_MEMORY = "firstword.store.memory.used"
STORE_MEMORY_LIMIT = "firstword.store.memory.limit"
STORE_RECONNECTS = "firstword.store.reconnects"
STORE_FENCED = "firstword.store.writes_fenced"
STORE_LEASES_LOST = "firstword.store.leases_lost"
STORE_APPEND_TIME = "firstword.store.append_time"

# Calls that a client came back to. Counters.
RESUMED = "firstword.calls.resumed"
RESUME_REFUSED = "firstword.calls.resume_refused"

# What they are told apart by.
OPERATION = "gen_ai.operation.name"
PROVIDER_NAME = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
END_REASON = "gen_ai.agent.invocation.end_reason"
ERROR = "error.type"
MODE = "firstword.mode"
SOURCE = "firstword.answer.source"
AHEAD = "firstword.answer.ahead"
DRAFTER = "firstword.drafter"
POSITION = "firstword.draft.position"
FOUND = "firstword.prompt.found"
DURING = "firstword.interruption.during"
OUTCOME = "firstword.tool.outcome"
MEANS = "firstword.auth.means"
RELOADED = "firstword.security.file"
TENANT = "firstword.tenant"
LINK = "firstword.link"
RESUME = "firstword.resume.kind"

_TO_FIRST_S = (0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2)
BUCKETS: Mapping[str, Sequence[float]] = {
    TIME_TO_FIRST_TOKEN: (*_TO_FIRST_S, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0),
    TIME_TO_FIRST_CLAUSE: (*_TO_FIRST_S, 0.25, 0.3, 0.35, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0),
    QUEUE_TIME: (0.0001, 0.00025, 0.0005, *_TO_FIRST_S, 0.25, 0.5, 1.0, 2.5, 5.0),
    PREFILL_TIME: (*_TO_FIRST_S, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0),
    INTERRUPTION_TIME: (
        0.001,
        0.002,
        0.004,
        0.006,
        0.01,
        0.015,
        0.02,
        0.03,
        0.05,
        0.075,
        0.1,
        0.15,
        0.25,
        0.5,
        1.0,
        2.5,
    ),
    STORE_APPEND_TIME: (0.0002, 0.0005, *_TO_FIRST_S, 0.25, 0.5, 1.0, 2.5),
    TOOL_WAIT: (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0),
    TIME_PER_OUTPUT_TOKEN: (
        *(0.0002, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1),
        *(0.15, 0.2, 0.3, 0.5, 1.0, 2.5),
    ),
    REQUEST_DURATION: (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
    TOKENS_PER_STEP: (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0),
}
"""Histogram bounds, in seconds (tokens for the last). Finer than the conventions' where a voice agent's targets lie:
their first bound for a token is 10 ms, and they have none between 100 and 250 ms to the first one."""
