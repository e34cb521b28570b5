"""What is to be shown, worked out of a snapshot: the figures of the dashboards, for one instance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from firstword.top.scrape import Snapshot

LATENCIES = {
    "first token": "gen_ai_server_time_to_first_token_seconds",
    "first clause": "firstword_turn_time_to_first_clause_seconds",
    "queue": "firstword_turn_queue_time_seconds",
    "prefill": "firstword_turn_prefill_time_seconds",
    "per token": "gen_ai_server_time_per_output_token_seconds",
    "interruption": "firstword_turn_interruption_time_seconds",
    "tool": "firstword_turn_tool_wait_seconds",
}
QUANTILES = (0.5, 0.95, 0.99)
SENT_ON = "WARM_ELSEWHERE"


@dataclass(frozen=True)
class Latency:
    """A histogram's percentiles in seconds; None where there is nothing yet. count: of what was measured."""

    count: int
    percentiles: tuple[float | None, ...]


@dataclass(frozen=True)
class Share:
    """So many of so many."""

    part: float
    whole: float

    def __str__(self) -> str:
        return f"{self.part / self.whole:.0%}" if self.whole else "-"


@dataclass(frozen=True)
class Engine:
    """One model's process."""

    serving: bool
    sessions: int
    pages: Share
    restarts: int


@dataclass(frozen=True)
class Store:
    """The store behind the calls. unwritten, kept: records that are to be written, and that a failover may still lose.
    memory: bytes in use of those that there may be, whole 0 where there is no limit or none is told.
    """

    behind: bool
    unwritten: int
    kept: int
    lag_s: float
    append: Latency
    memory: Share
    failures: int
    fenced: int
    leases_lost: int


@dataclass(frozen=True)
class Figures:
    """late_clauses: behind the scheduler's deadline; underruns: before which the caller heard silence; of all clauses.
    modes: first-token latency and tokens per forward, by drafting mode. positions: accepted of what reached each.
    resumed, sent_back: clients that came back to a call, by how it went on and by why it did not. sent_on: to the
    server that is warm for their call. store: None without one.
    """

    calls: int
    turns_open: int
    turns: int
    ends: Mapping[str, int]
    errors: Mapping[str, int]
    refused: Mapping[str, int]
    ahead: Share
    interruptions: int
    late_clauses: Share
    underruns: Share
    latencies: Mapping[str, Latency]
    modes: Mapping[str, tuple[Latency, float | None]]
    drafters: Mapping[str, Share]
    positions: Sequence[Share]
    prompt: Mapping[str, Share]
    engines: Mapping[str, Engine]
    resumed: Mapping[str, int]
    sent_on: int
    sent_back: Mapping[str, int]
    store: Store | None


def figures(snapshot: Snapshot) -> Figures:
    """All of them."""
    turns = _by(snapshot, "firstword_turns_total", "firstword_answer_ahead")
    whole = sum(turns.values())
    found = _by(snapshot, "firstword_prompt_tokens_total", "firstword_prompt_found")
    drafted = _by(snapshot, "firstword_draft_drafted_total", "firstword_drafter")
    accepted = _by(snapshot, "firstword_draft_accepted_total", "firstword_drafter")
    steps, tokens = "firstword_turn_tokens_per_step_count", "firstword_turn_tokens_per_step_sum"
    modes = _by(snapshot, steps, "firstword_mode")
    sent_back = _whole(_by(snapshot, "firstword_calls_resume_refused_total", "error_type"))
    first, clauses = LATENCIES["first token"], _sum(snapshot, "firstword_turn_clauses_total")
    return Figures(
        calls=int(_sum(snapshot, "firstword_calls_active")),
        turns_open=int(_sum(snapshot, "firstword_turns_open")),
        turns=int(whole),
        ends=_whole(_by(snapshot, "firstword_turns_total", "gen_ai_agent_invocation_end_reason")),
        errors=_whole(_by(snapshot, "firstword_turns_total", "error_type")),
        refused=_whole(_by(snapshot, "firstword_calls_refused_total", "error_type")),
        ahead=Share(turns.get("true", 0.0), whole),
        interruptions=int(_sum(snapshot, "firstword_interruptions_total")),
        late_clauses=Share(_sum(snapshot, "firstword_turn_clauses_late_total"), clauses),
        underruns=Share(_sum(snapshot, "firstword_turn_underruns_total"), clauses),
        latencies={name: latency(snapshot, metric) for name, metric in LATENCIES.items()},
        modes={
            mode: (latency(snapshot, first, mode), _sum(snapshot, tokens, firstword_mode=mode) / count)
            for mode, count in modes.items()
            if count
        },
        drafters={name: Share(accepted.get(name, 0.0), count) for name, count in drafted.items() if count},
        positions=_positions(snapshot),
        prompt={name: Share(count, sum(found.values())) for name, count in found.items()},
        engines=_engines(snapshot),
        resumed=_whole(_by(snapshot, "firstword_calls_resumed_total", "firstword_resume_kind")),
        sent_on=sent_back.get(SENT_ON, 0),
        sent_back={reason: count for reason, count in sent_back.items() if reason != SENT_ON},
        store=_store(snapshot),
    )


def latency(snapshot: Snapshot, histogram: str, mode: str = "") -> Latency:
    """A histogram's percentiles, as PromQL's ``histogram_quantile`` has them: linear within a bucket."""
    where = {"firstword_mode": mode} if mode else {}
    buckets: dict[float, float] = {}
    for labels, value in snapshot.of(f"{histogram}_bucket", **where):
        bound = float(labels["le"])
        buckets[bound] = buckets.get(bound, 0.0) + value
    ordered = sorted(buckets.items())
    count = ordered[-1][1] if ordered else 0.0
    return Latency(int(count), tuple(_quantile(ordered, count, q) for q in QUANTILES))


def _quantile(buckets: Sequence[tuple[float, float]], count: float, q: float) -> float | None:
    if not count:
        return None
    rank, below, lower = q * count, 0.0, 0.0
    for bound, reached in buckets:
        if reached >= rank:
            if bound == float("inf"):
                return lower
            inside = reached - below
            return lower + (bound - lower) * ((rank - below) / inside if inside else 0.0)
        below, lower = reached, bound
    return lower


def _positions(snapshot: Snapshot) -> list[Share]:
    drafted = _by(snapshot, "firstword_draft_position_drafted_total", "firstword_draft_position")
    accepted = _by(snapshot, "firstword_draft_position_accepted_total", "firstword_draft_position")
    return [Share(accepted.get(at, 0.0), drafted[at]) for at in sorted(drafted, key=int) if drafted[at]]


def _engines(snapshot: Snapshot) -> dict[str, Engine]:
    by = "gen_ai_response_model"
    used, free = (_by(snapshot, f"firstword_engine_pages_{what}", by) for what in ("used", "free"))
    sessions, restarts = (_by(snapshot, f"firstword_engine_{what}", by) for what in ("sessions", "restarts_total"))
    return {
        model: Engine(
            bool(serving),
            int(sessions.get(model, 0)),
            Share(used.get(model, 0.0), used.get(model, 0.0) + free.get(model, 0.0)),
            int(restarts.get(model, 0)),
        )
        for model, serving in _by(snapshot, "firstword_engine_serving", by).items()
    }


def _store(snapshot: Snapshot) -> Store | None:
    if not any(snapshot.of("firstword_store_behind")):
        return None

    def of(what: str) -> float:
        return _sum(snapshot, f"firstword_store_{what}")

    return Store(
        behind=bool(of("behind")),
        unwritten=int(of("records_unwritten")),
        kept=int(of("records_kept")),
        lag_s=of("lag_seconds"),
        append=latency(snapshot, "firstword_store_append_time_seconds"),
        memory=Share(of("memory_used_bytes"), of("memory_limit_bytes")),
        failures=int(of("failures_total")),
        fenced=int(of("writes_fenced_total")),
        leases_lost=int(of("leases_lost_total")),
    )


def _sum(snapshot: Snapshot, name: str, **where: str) -> float:
    return sum(value for _, value in snapshot.of(name, **where))


def _by(snapshot: Snapshot, name: str, label: str) -> dict[str, float]:
    """The sums of a metric by one of its labels, without those that do not have it."""
    found: dict[str, float] = {}
    for labels, value in snapshot.of(name):
        if labels.get(label):
            found[labels[label]] = found.get(labels[label], 0.0) + value
    return found


def _whole(counts: Mapping[str, float]) -> dict[str, int]:
    return {name: int(count) for name, count in counts.items() if count}
