"""What is measured of a call and its turns, and under which names. Knows the OpenTelemetry API only.

Spans of a turn are built when it is over, from the times that crossed the engine boundary as data: nothing is
recorded between a turn's commit and its first token. Names are those of the GenAI conventions where these have one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from engine.sampling import Sampling
from engine.session import TurnStats

PROVIDER = "firstword"
SCOPE = "firstword.service"

TIME_TO_FIRST_TOKEN = "gen_ai.server.time_to_first_token"
TIME_PER_OUTPUT_TOKEN = "gen_ai.server.time_per_output_token"
REQUEST_DURATION = "gen_ai.server.request.duration"
TIME_TO_FIRST_CLAUSE = "firstword.turn.time_to_first_clause"
TOKENS_PER_STEP = "firstword.turn.tokens_per_step"
DRAFTED_TOKENS = "firstword.draft.drafted"
ACCEPTED_TOKENS = "firstword.draft.accepted"
TURNS = "firstword.turns"
DEADLINES_MISSED = "firstword.turn.deadlines_missed"
ACTIVE_CALLS = "firstword.calls.active"
ADMITTED_CALLS = "firstword.calls.admitted"
REFUSED_CALLS = "firstword.calls.refused"
HELD_CALLS = "firstword.calls.held"
PAGES_IN_USE = "firstword.engine.pages.used"
ENGINE_RESTARTS = "firstword.engine.restarts"
HOST_BYTES = "firstword.engine.host.used"
HIBERNATED = "firstword.engine.sessions.hibernated"
DROPPED = "firstword.engine.sessions.dropped"
WOKEN_FROM_HOST = "firstword.engine.sessions.woken_from_host"
PREFILLED_TOKENS = "firstword.engine.prompt.computed"
SHARED_TOKENS = "firstword.engine.prompt.shared"
WOKEN_FROM_LOG = "firstword.engine.sessions.woken_from_log"

_TO_FIRST_S = (0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2)
BUCKETS: Mapping[str, Sequence[float]] = {
    TIME_TO_FIRST_TOKEN: (*_TO_FIRST_S, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0),
    TIME_TO_FIRST_CLAUSE: (*_TO_FIRST_S, 0.25, 0.3, 0.35, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0),
    TIME_PER_OUTPUT_TOKEN: (
        *(0.0002, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1),
        *(0.15, 0.2, 0.3, 0.5, 1.0, 2.5),
    ),
    REQUEST_DURATION: (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
    TOKENS_PER_STEP: (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0),
}
"""Histogram bounds, in seconds (tokens for the last). Finer than the conventions' where a voice agent's targets lie:
their first bound for a token is 10 ms, and they have none between 100 and 250 ms to the first one."""

_propagator = TraceContextTextMapPropagator()


@dataclass
class TurnRecord:
    """What is known of one reply when it is over. Times are ``time.monotonic()`` seconds; 0 where it did not happen.

    deadline: for the first token; 0: none. source: who answers, by ``service.server_events.AnswerSource``; model: which
    one does. end_reason: "completed", "interrupted" or "session_closed". error: a reason of ``service.errors``, or "".
    late_reader: before the first clause the client was too far behind to be told of it. stats: one per generation; a
    reply that waited for tools has several.
    """

    turn_id: int
    committed: float
    traceparent: str = ""
    tracestate: str = ""
    deadline: float = 0.0
    source: str = "model"
    model: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 0
    first_text: float = 0.0
    first_clause: float = 0.0
    ended: float = 0.0
    output_tokens: int = 0
    tool_calls: int = 0
    tool_wait_s: float = 0.0
    finish: str = ""
    end_reason: str = "completed"
    error: str = ""
    released: float = 0.0
    wasted_ahead: int = 0
    request_id: int = 0
    late_reader: bool = False
    stats: list[TurnStats] = field(default_factory=list)

    @property
    def held_s(self) -> float:
        """Time that its generations stood still, for the client did not read."""
        return sum(stats.held_seconds for stats in self.stats)

    def first_token(self, stats: TurnStats) -> float:
        """When a generation's first token was there for this turn: what was made ahead, when it was released."""
        return max(stats.first_token, self.released) if stats.first_token else 0.0

    @property
    def missed_deadline(self) -> bool:
        """Whether the first token was wanted earlier than it came, if it did; an interrupted turn owes none."""
        first = next((self.first_token(stats) for stats in self.stats if stats.first_token), self.first_text)
        if not self.deadline or (not first and self.end_reason != "completed"):
            return False
        return not 0.0 < first <= self.deadline

    def begin_again(self, model: str) -> None:
        """Another model answers, or none for a phrase: what was done before is no part of the answer."""
        self.model, self.released = model, 0.0
        self.stats.clear()

    def snapshot(self) -> TurnRecord:
        """The account as it stands, which the turn's going on does not change."""
        return replace(self, stats=self.stats.copy())


class Telemetry:
    """Every instrument, made once per process. Whether anything is exported is decided by who installed the SDK."""

    def __init__(self, model: str) -> None:
        self.model = model
        self._tracer = trace.get_tracer(SCOPE)
        meter = metrics.get_meter(SCOPE)
        self._first_token = meter.create_histogram(TIME_TO_FIRST_TOKEN, "s", "Turn committed to first token")
        self._per_token = meter.create_histogram(TIME_PER_OUTPUT_TOKEN, "s", "Per token after the first")
        self._duration = meter.create_histogram(REQUEST_DURATION, "s", "Turn committed to turn ended")
        self._first_clause = meter.create_histogram(TIME_TO_FIRST_CLAUSE, "s", "Turn committed to end of first clause")
        self._per_step = meter.create_histogram(TOKENS_PER_STEP, "{token}", "Tokens emitted per target forward")
        self._drafted = meter.create_counter(DRAFTED_TOKENS, "{token}", "Tokens proposed by the drafter")
        self._accepted = meter.create_counter(ACCEPTED_TOKENS, "{token}", "Drafted tokens that the target chose too")
        self._turns = meter.create_counter(TURNS, "{turn}", "Turns, by how they ended")
        self._missed = meter.create_counter(DEADLINES_MISSED, "{turn}", "Turns whose first token came late, or never")
        self._admitted = meter.create_counter(ADMITTED_CALLS, "{call}", "Calls that were taken")
        self._refused = meter.create_counter(REFUSED_CALLS, "{call}", "Calls that there was no room for, by reason")
        self._held = meter.create_counter(HELD_CALLS, "{hold}", "Times that replies waited for a client to read")
        self._active = meter.create_up_down_counter(ACTIVE_CALLS, "{call}", "Calls whose stream is open")
        self._active.add(0)  # a service without calls says 0, or whoever scales by calls would take it for missing
        self._meter = meter

    def watch(self, name: str, unit: str, description: str, read: Callable[[], float], *, counts: bool = False) -> None:
        """Observe a figure that somebody else keeps, whenever metrics are collected. counts: it only grows, but for
        restarts.
        """

        def observe(options: CallbackOptions) -> Iterable[Observation]:
            return [Observation(read())]

        make = self._meter.create_observable_counter if counts else self._meter.create_observable_gauge
        make(name, [observe], unit, description)

    def call(self, session: str, metadata: Mapping[str, str]) -> CallRecorder:
        """Begin the span of a call, under the trace that the stream's metadata names, if any."""
        parent = _propagator.extract(metadata, otel_context.Context())
        attributes: dict[str, AttributeValue] = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": self.model,
            "gen_ai.conversation.id": session,
        }
        span = self._tracer.start_span("call", parent, SpanKind.SERVER, attributes)
        self._active.add(1)
        return CallRecorder(self, session, span)

    def count(self, turn: TurnRecord) -> None:
        """Add one turn to the metrics."""
        labels = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": self.model,
            "gen_ai.response.model": turn.model or self.model,
        }
        failed = {**labels, "error.type": turn.error} if turn.error else labels
        how = {"gen_ai.agent.invocation.end_reason": turn.end_reason, "firstword.answer.source": turn.source}
        self._turns.add(1, {**failed, **how})
        if turn.missed_deadline:
            self._missed.add(1, {**labels, "firstword.answer.source": turn.source})
        self._duration.record(max(0.0, turn.ended - turn.committed - turn.held_s), failed)
        first = next((turn.first_token(s) for s in turn.stats if s.first_token), 0.0)
        if first:
            self._first_token.record(first - turn.committed, labels)
            if turn.output_tokens > 1:
                self._per_token.record(_decode_seconds(turn) / (turn.output_tokens - 1), labels)
        if turn.first_clause and not turn.late_reader:
            self._first_clause.record(turn.first_clause - turn.committed, labels)
        steps = sum(s.steps for s in turn.stats)
        if steps:
            mode = {**labels, "firstword.mode": turn.stats[-1].mode}
            self._per_step.record(turn.output_tokens / steps, mode)
            self._drafted.add(sum(s.drafted for s in turn.stats), mode)
            self._accepted.add(sum(s.accepted for s in turn.stats), mode)

    def admitted(self) -> None:
        self._admitted.add(1)

    def refused(self, reason: str) -> None:
        self._refused.add(1, {"error.type": reason})

    def held(self) -> None:
        self._held.add(1)

    def end_call(self) -> None:
        self._active.add(-1)

    @property
    def tracer(self) -> trace.Tracer:
        return self._tracer


class CallRecorder:
    """The span of one call and the spans of its turns."""

    def __init__(self, telemetry: Telemetry, session: str, span: Span) -> None:
        self._telemetry = telemetry
        self._session = session
        self._span = span
        self._epoch_ns = time.time_ns() - time.monotonic_ns()
        self._turns = 0

    def turn(self, turn: TurnRecord) -> None:
        """Record a turn that is over: its span, children for each part of it, and its share of the metrics."""
        self._turns += 1
        self._telemetry.count(turn)
        self._trace(turn)

    def held(self) -> None:
        """The client is too far behind: its replies wait."""
        self._telemetry.held()

    def question(self, question: TurnRecord) -> None:
        """Record a side question that is over. Nobody has waited for its first token: it is in no metric of turns."""
        self._trace(question)

    def _trace(self, turn: TurnRecord) -> None:
        tracer = self._telemetry.tracer
        parent, links = self._parent(turn)
        span = tracer.start_span(
            f"chat {self._telemetry.model}",
            parent,
            SpanKind.INTERNAL,
            self._attributes(turn),
            links,
            start_time=self._ns(turn.committed),
        )
        if turn.error:
            span.set_status(Status(StatusCode.ERROR, turn.error))
        inside = trace.set_span_in_context(span, otel_context.Context())
        for stats in turn.stats:
            for name, start, end in _parts(stats):
                tracer.start_span(name, inside, start_time=self._ns(start)).end(self._ns(end))
        if turn.first_text:
            span.add_event("first text", timestamp=self._ns(turn.first_text))
        if turn.first_clause:
            span.add_event("first clause", timestamp=self._ns(turn.first_clause))
        span.end(self._ns(turn.ended))

    def end(self, error: str = "") -> None:
        """The stream is over; ``error``: the reason it ended with, if it did not simply close."""
        self._telemetry.end_call()
        self._span.set_attribute("firstword.turns", self._turns)
        if error:
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end()

    def _parent(self, turn: TurnRecord) -> tuple[otel_context.Context, list[Link]]:
        """A turn belongs to the trace its event named, linked to the call's span; else it is a child of that."""
        carrier = {"traceparent": turn.traceparent, "tracestate": turn.tracestate}
        named = _propagator.extract(carrier, otel_context.Context())
        if trace.get_current_span(named).get_span_context().is_valid:
            return named, [Link(self._span.get_span_context())]
        return trace.set_span_in_context(self._span, otel_context.Context()), []

    def _attributes(self, turn: TurnRecord) -> dict[str, AttributeValue]:
        attributes: dict[str, AttributeValue] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": self._telemetry.model,
            "gen_ai.response.model": turn.model or self._telemetry.model,
            "gen_ai.conversation.id": self._session,
            "gen_ai.request.stream": True,
            "gen_ai.request.max_tokens": turn.max_tokens,
            "gen_ai.request.temperature": turn.sampling.temperature,
            "gen_ai.request.top_p": turn.sampling.top_p,
            "gen_ai.request.top_k": turn.sampling.top_k,
            "gen_ai.usage.output_tokens": turn.output_tokens,
            "gen_ai.agent.invocation.end_reason": turn.end_reason,
        }
        if turn.request_id:
            attributes["firstword.request.id"] = turn.request_id
        else:
            attributes |= {"firstword.turn.id": turn.turn_id, "firstword.turn.tool_calls": turn.tool_calls}
            attributes["firstword.answer.source"] = turn.source
        if turn.deadline:
            attributes["firstword.turn.deadline"] = turn.deadline - turn.committed
            attributes["firstword.turn.deadline.missed"] = turn.missed_deadline
        if turn.sampling.seed is not None:
            attributes["gen_ai.request.seed"] = turn.sampling.seed
        if turn.finish:
            attributes["gen_ai.response.finish_reasons"] = [turn.finish]
        if turn.first_text:
            attributes["gen_ai.response.time_to_first_chunk"] = turn.first_text - turn.committed
        if turn.held_s:
            attributes["firstword.turn.held"] = turn.held_s
        if turn.error:
            attributes["error.type"] = turn.error
        if turn.stats:
            attributes |= _drafting(turn.stats)
        return attributes

    def _ns(self, monotonic: float) -> int:
        return int(monotonic * 1e9) + self._epoch_ns


def _drafting(stats: Sequence[TurnStats]) -> dict[str, AttributeValue]:
    """Usage of the cache and of the drafter, over all generations of a reply."""
    drafted_at = _add_up([s.drafted_at for s in stats])
    accepted_at = _add_up([s.accepted_at for s in stats])
    return {
        "gen_ai.usage.input_tokens": stats[-1].prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": stats[-1].cached_tokens,
        "firstword.mode": stats[-1].mode,
        "firstword.mode.reason": stats[-1].reason,
        "firstword.steps": sum(s.steps for s in stats),
        "firstword.draft.drafted": sum(s.drafted for s in stats),
        "firstword.draft.accepted": sum(s.accepted for s in stats),
        "firstword.draft.drafted_at": drafted_at,
        "firstword.draft.accepted_at": accepted_at,
        "firstword.draft.seconds": sum(s.draft_seconds for s in stats),
        "firstword.forward.seconds": sum(s.forward_seconds for s in stats),
    }


def _add_up(rows: Sequence[Sequence[int]]) -> list[int]:
    width = max(map(len, rows), default=0)
    return [sum(row[i] for row in rows if i < len(row)) for i in range(width)]


def _parts(stats: TurnStats) -> list[tuple[str, float, float]]:
    """(name, start, end) of the parts that a generation had. What it prefilled ends with its first token."""
    parts = []
    if stats.started:
        parts.append(("queue", stats.submitted, stats.started))
    if stats.started and stats.first_token:
        parts.append(("prefill", stats.started, stats.first_token))
    if stats.first_token:
        parts.append(("first token", stats.submitted, stats.first_token))
        parts.append(("decode", stats.first_token, max(stats.ended, stats.first_token)))
    return parts


def _decode_seconds(turn: TurnRecord) -> float:
    return sum(max(0.0, s.ended - turn.first_token(s) - s.held_seconds) for s in turn.stats if s.first_token)
