"""The instruments, and what each turn and call adds to them. Knows the OpenTelemetry API only.

A turn is counted when it is over, from its record: nothing is recorded between its commit and its first token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Observation

from service.config import TelemetryConfig
from service.telemetry import names
from service.telemetry.record import TurnRecord, add_up
from service.telemetry.tracing import CallRecorder

Labels = dict[str, str | bool | int]

RESUMES = ("here", "taken_over", "insisted", "without_store")
"""A call goes on at the server that has it; at another one, which the store gave it to; there because the client would
not go where it is warm; or from what the client holds, while the store does not answer.
"""


class Telemetry:
    """Every instrument, made once per process. Whether anything is exported is decided by who installed the SDK.

    model: the one that calls are to. turns_open: turns in progress now.
    """

    def __init__(self, model: str, config: TelemetryConfig | None = None) -> None:
        self.model = model
        self.config = config or TelemetryConfig()
        self.tracer = trace.get_tracer(names.SCOPE)
        self.turns_open = 0
        self._meter = meter = metrics.get_meter(names.SCOPE)
        self._turn = _TurnInstruments(meter)
        self._drafting = _DraftingInstruments(meter)
        self._calls = meter.create_counter(names.CALLS, "{call}", "Calls that have ended")
        self._admitted = meter.create_counter(names.ADMITTED_CALLS, "{call}", "Calls that were taken")
        self._refused = meter.create_counter(names.REFUSED_CALLS, "{call}", "Calls that there was no room for")
        self._resumed = meter.create_counter(names.RESUMED, "{call}", "Calls that a client came back to")
        self._resume_refused = meter.create_counter(names.RESUME_REFUSED, "{call}", "Calls not gone on with here")
        self._held = meter.create_counter(names.HELD_CALLS, "{hold}", "Times that replies waited for a client to read")
        self._slowed = meter.create_counter(names.SLOWED_CALLS, "{call}", "Streams that sent more than they may")
        self._interruptions = meter.create_counter(names.INTERRUPTIONS, "{interruption}", "Turns that were spoken over")
        self._active = meter.create_up_down_counter(names.ACTIVE_CALLS, "{call}", "Calls whose stream is open")
        self._active.add(0)  # a service without calls says 0, or whoever scales by calls would take it for missing
        for counter in (self._held, self._slowed):
            counter.add(0, {names.REQUEST_MODEL: model})
        for kind in RESUMES:  # the first of a kind is an increase
            self._resumed.add(0, {names.REQUEST_MODEL: model, names.RESUME: kind})
        for reason in ("FORGED", "STORE_UNAVAILABLE", "SUPERSEDED", "TOKEN_EXPIRED", "UNKNOWN_CALL", "WARM_ELSEWHERE"):
            self._resume_refused.add(0, {names.REQUEST_MODEL: model, names.ERROR: reason})
        self.watch_models(names.TURNS_OPEN, "{turn}", "Turns in progress", {model: lambda: self.turns_open})

    def watch(self, name: str, unit: str, description: str, read: Callable[[], float], *, grows: bool = False) -> None:
        """Observe a figure that somebody else keeps, whenever metrics are collected. grows: it only ever does, so it is
        a counter.
        """
        self._observe(name, unit, description, lambda: [Observation(float(read()))], grows=grows)

    def watch_models(
        self, name: str, unit: str, description: str, read: Mapping[str, Callable[[], float]], *, grows: bool = False
    ) -> None:
        """As ``watch``, of several models, by their names."""

        def observations() -> list[Observation]:
            return [Observation(float(value()), {names.RESPONSE_MODEL: model}) for model, value in read.items()]

        self._observe(name, unit, description, observations, grows=grows)

    def _observe(
        self, name: str, unit: str, description: str, read: Callable[[], list[Observation]], *, grows: bool
    ) -> None:
        def observe(options: CallbackOptions) -> Iterable[Observation]:
            return read()

        if grows:
            self._meter.create_observable_counter(name, [observe], unit, description)
        else:
            self._meter.create_observable_gauge(name, [observe], unit, description)

    def call(self, session: str, metadata: Mapping[str, str], tenant: str = "", earlier: str = "") -> CallRecorder:
        """Begin the span of a call, under the trace that the stream's metadata names, if any. tenant: "" for none.
        earlier: trace context of its span at the server that it was taken over from.
        """
        self._active.add(1)
        return CallRecorder(self, session, metadata, tenant, earlier)

    def admitted(self) -> None:
        """A call was taken."""
        self._admitted.add(1, {names.REQUEST_MODEL: self.model})

    def held(self) -> None:
        """A call's replies wait for its client to read."""
        self._held.add(1, {names.REQUEST_MODEL: self.model})

    def slowed(self) -> None:
        """A client sends more events than it may, and is read no faster."""
        self._slowed.add(1, {names.REQUEST_MODEL: self.model})

    def refused(self, reason: str) -> None:
        """There was no room for a call. reason: of ``service.problems``."""
        self._refused.add(1, {names.REQUEST_MODEL: self.model, names.ERROR: reason})

    def resumed(self, kind: str) -> None:
        """A client came back to its call. kind: of ``RESUMES``."""
        self._resumed.add(1, {names.REQUEST_MODEL: self.model, names.RESUME: kind})

    def resume_refused(self, reason: str) -> None:
        """A call is not gone on with, or not here. reason: of ``service.problems``."""
        self._resume_refused.add(1, {names.REQUEST_MODEL: self.model, names.ERROR: reason})

    def append_time(self) -> Callable[[float], None]:
        """To be told of each write of the store, in seconds."""
        histogram = self._meter.create_histogram(names.STORE_APPEND_TIME, "s", "A write of records to its answer")
        return lambda seconds: histogram.record(seconds)

    def ended(self, error: str) -> None:
        """A call is over; ``error``: the reason it ended with, or empty."""
        self._active.add(-1)
        labels = {names.REQUEST_MODEL: self.model}
        self._calls.add(1, {**labels, names.ERROR: error} if error else labels)

    def interruptions(self, during: Mapping[str, int]) -> None:
        """So many turns were spoken over, by what they were at."""
        for what, number in during.items():
            self._interruptions.add(number, {names.REQUEST_MODEL: self.model, names.DURING: what})

    def count(self, turn: TurnRecord, context: Context) -> None:
        """Add one turn to the metrics. context: of its span, whose trace the histograms' exemplars name."""
        labels: Labels = {
            names.OPERATION: "chat",
            names.PROVIDER_NAME: names.PROVIDER,
            names.REQUEST_MODEL: self.model,
            names.RESPONSE_MODEL: turn.model or self.model,
        }
        self._turn.count(turn, labels, context)
        self._drafting.count(turn, labels, context)


class _TurnInstruments:
    """How turns feel to a caller, and how they end."""

    def __init__(self, meter: metrics.Meter) -> None:
        histogram, counter = meter.create_histogram, meter.create_counter
        self._first_token = histogram(names.TIME_TO_FIRST_TOKEN, "s", "Turn committed to first token")
        self._per_token = histogram(names.TIME_PER_OUTPUT_TOKEN, "s", "Per token after the first")
        self._duration = histogram(names.REQUEST_DURATION, "s", "Turn committed to turn ended")
        self._first_clause = histogram(names.TIME_TO_FIRST_CLAUSE, "s", "Turn committed to end of first clause")
        self._queue = histogram(names.QUEUE_TIME, "s", "A generation asked for to its first step")
        self._prefill = histogram(names.PREFILL_TIME, "s", "A generation's first step to its first token")
        self._interruption = histogram(names.INTERRUPTION_TIME, "s", "Caller spoke over a reply to generation stopped")
        self._tool_wait = histogram(names.TOOL_WAIT, "s", "Tool call told to its result")
        self._turns = counter(names.TURNS, "{turn}", "Turns, by how they ended")
        self._deadlines = counter(names.DEADLINES, "{turn}", "Turns with a deadline for their first token")
        self._missed = counter(names.DEADLINES_MISSED, "{turn}", "Turns whose first token came late, or never")
        self._clauses = counter(names.CLAUSES, "{clause}", "Clauses that callers were given")
        self._late = counter(
            names.CLAUSES_LATE, "{clause}", "Clauses that came behind the scheduler's deadline for them"
        )
        self._underruns = counter(names.UNDERRUNS, "{underrun}", "Silences between clauses, by the speaking rate")
        self._silence = counter(names.UNDERRUN_TIME, "s", "How long those silences were")
        self._tool_calls = counter(names.TOOL_CALLS, "{call}", "Tool calls, by what came of them")

    def count(self, turn: TurnRecord, labels: Labels, context: Context) -> None:
        failed: Labels = {**labels, names.ERROR: turn.error} if turn.error else labels
        source: Labels = {names.SOURCE: turn.source}
        self._turns.add(1, {**failed, **source, names.END_REASON: turn.end_reason, names.AHEAD: bool(turn.released)})
        if turn.deadline:
            self._deadlines.add(1, {**labels, **source})
            if turn.missed_deadline:
                self._missed.add(1, {**labels, **source})
        self._duration.record(max(0.0, turn.ended - turn.committed - turn.held_s), failed, context)
        self._count_first(turn, {**labels, names.MODE: turn.mode}, context)
        for stats in turn.stats:
            if stats.started and stats.submitted >= turn.committed:  # what was made ahead kept nobody waiting
                self._queue.record(stats.started - stats.submitted, labels, context)
                if stats.first_token:
                    self._prefill.record(stats.first_token - stats.started, labels, context)
        self._count_clauses(turn, {**labels, names.MODE: turn.mode})
        if turn.interrupted:
            self._interruption.record(max(0.0, turn.ended - turn.interrupted), labels, context)
        for tool in turn.tools:
            self._tool_calls.add(1, {**labels, names.OUTCOME: tool.outcome})
            if tool.answered:
                self._tool_wait.record(tool.answered - tool.asked, labels, context)

    def _count_clauses(self, turn: TurnRecord, labels: Labels) -> None:
        """Whether the words ran out while they were spoken."""
        self._clauses.add(sum(stats.clauses for stats in turn.stats), labels)
        self._late.add(sum(stats.clauses_late for stats in turn.stats), labels)
        self._underruns.add(sum(stats.underruns for stats in turn.stats), labels)
        self._silence.add(sum(stats.underrun_seconds for stats in turn.stats), labels)

    def _count_first(self, turn: TurnRecord, labels: Labels, context: Context) -> None:
        """The first token, the first clause, and the pace of what follows."""
        if turn.first:
            ahead: Labels = {**labels, names.AHEAD: bool(turn.released)}
            self._first_token.record(turn.first - turn.committed, ahead, context)
            seconds = _decode_seconds(turn)
            if turn.output_tokens > 1 and seconds > 0:  # a reply that was whole when it was asked for has no pace
                self._per_token.record(seconds / (turn.output_tokens - 1), labels, context)
        if turn.first_clause and not turn.late_reader:  # else it says nothing about the engine
            self._first_clause.record(turn.first_clause - turn.committed, labels, context)


class _DraftingInstruments:
    """Where tokens come from: the cache, what was computed ahead, the drafter."""

    def __init__(self, meter: metrics.Meter) -> None:
        counter = meter.create_counter
        self._per_step = meter.create_histogram(names.TOKENS_PER_STEP, "{token}", "Tokens emitted per target forward")
        self._prompt = counter(names.PROMPT_TOKENS, "{token}", "Prompt tokens, by where they were found")
        self._reply = counter(names.REPLY_TOKENS, "{token}", "Tokens of replies")
        self._wasted = counter(names.WASTED_TOKENS, "{token}", "Tokens of replies made ahead and dropped")
        self._rewound = counter(names.REWOUND_TOKENS, "{token}", "Tokens prefilled of hypotheses that did not hold")
        self._steps = counter(names.STEPS, "{step}", "Forwards that replies took")
        self._drafts = counter(names.DRAFTS, "{step}", "Forwards that verified a draft")
        self._drafted = counter(names.DRAFTED_TOKENS, "{token}", "Tokens proposed, by drafter")
        self._accepted = counter(names.ACCEPTED_TOKENS, "{token}", "Drafted tokens that the target chose too")
        self._drafted_at = counter(names.DRAFTED_AT, "{step}", "Drafts that reached a position")
        self._accepted_at = counter(names.ACCEPTED_AT, "{step}", "Drafts accepted at a position")

    def count(self, turn: TurnRecord, labels: Labels, context: Context) -> None:
        self._wasted.add(turn.listened.wasted, labels)
        if not turn.stats:
            return
        for found, tokens in _prompt_tokens(turn).items():
            if tokens:
                self._prompt.add(tokens, {**labels, names.FOUND: found})
        self._rewound.add(turn.stats[0].rewound, labels)
        self._reply.add(turn.output_tokens, labels)
        steps = sum(stats.steps for stats in turn.stats)
        if steps:
            self._per_step.record(turn.output_tokens / steps, {**labels, names.MODE: turn.mode}, context)
        for phase in (phase for stats in turn.stats for phase in stats.phases):
            mode: Labels = {**labels, names.MODE: phase.mode}
            self._steps.add(phase.steps, mode)
            self._drafts.add(phase.drafts, mode)
        self._count_drafts(turn, labels)

    def _count_drafts(self, turn: TurnRecord, labels: Labels) -> None:
        drafted_at = add_up([stats.drafted_at for stats in turn.stats])
        accepted_at = add_up([stats.accepted_at for stats in turn.stats])
        for position, (drafted, accepted) in enumerate(zip(drafted_at, accepted_at, strict=True), 1):
            at: Labels = {**labels, names.POSITION: position}
            self._drafted_at.add(drafted, at)
            self._accepted_at.add(accepted, at)
        for stats in turn.stats:
            for drafter, tokens in stats.drafted_by.items():
                by: Labels = {**labels, names.DRAFTER: drafter}
                self._drafted.add(tokens, by)
                self._accepted.add(stats.accepted_by.get(drafter, 0), by)


def _prompt_tokens(turn: TurnRecord) -> dict[str, int]:
    """cached: known from before the turn; ahead: computed while the caller spoke; computed: while they waited."""
    ahead = sum(stats.prefilled_ahead for stats in turn.stats)
    cached = sum(stats.cached_tokens for stats in turn.stats) - ahead
    waited = [stats for stats in turn.stats if stats.submitted >= turn.committed]
    made_ahead = [stats for stats in turn.stats if stats.submitted < turn.committed]
    ahead += sum(stats.prompt_tokens - stats.cached_tokens for stats in made_ahead)
    computed = sum(stats.prompt_tokens - stats.cached_tokens for stats in waited)
    return {"cached": cached, "ahead": ahead, "computed": computed}


def _decode_seconds(turn: TurnRecord) -> float:
    begun = [stats for stats in turn.stats if stats.first_token]
    return sum(max(0.0, stats.ended - turn.first_token(stats) - stats.held_seconds) for stats in begun)
