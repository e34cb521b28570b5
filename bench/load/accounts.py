"""What came of a run: every turn by itself, and the run around them. Plain values, as they are written to disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.load.lines import Account
from bench.load.playback import Playback


@dataclass
class Spoken:
    """A turn while it goes on. Moments are ``time.perf_counter()`` seconds; None: not yet.

    due: when the final was to be sent; sent_at: when it was. after_tools: from the moment at which a tool's result was
    due to the next clause. comparable: whether the text can only be what a lone call would have been told: not where
    the caller has cut a reply, in this turn or before, that was still being made. gave_up: when nobody waited for an
    answer any more: the caller hung up, or the run was over.
    """

    call: str
    seed: int
    number: int
    due: float
    playback: Playback
    sent_at: float | None = None
    first_text: float | None = None
    first_tool: float | None = None
    first_clause: float | None = None
    after_tools: list[float] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    over: bool = False
    account: Account = field(default_factory=Account)
    interrupted: bool = False
    comparable: bool = True
    error: str = ""
    gave_up: float | None = None

    @property
    def answered(self) -> bool:
        """Whether it is known how long the caller has waited."""
        return self.over or self.first_tool is not None or self.first_clause is not None

    def close(self, now: float, gave_up: float) -> None:
        """Nothing that comes later counts. gave_up: until when it was waited for, though no speech counts by then."""
        if not self.over:
            self.playback.broke_off(now)
        if not self.answered and self.gave_up is None:
            self.gave_up = gave_up


@dataclass(frozen=True)
class TurnFigures:
    """One turn. at: seconds into the run at which its final was due; every other time counts from there.

    sent_late_s: how late the load generator was. first_token_s: by the service's clock, with ``sent_late_s``. waited_s:
    of a turn that was not answered, until nobody waited for it any more. said: digest of the text and tool calls.
    """

    call: str
    seed: int
    number: int
    at: float
    sent_late_s: float
    first_token_s: float | None
    first_text_s: float | None
    first_tool_s: float | None
    first_clause_s: float | None
    after_tools_s: list[float]
    waited_s: float | None
    speech_s: float
    gaps: list[list[float]]
    tokens: int
    modes: dict[str, int]
    answered_ahead: bool
    interrupted: bool
    comparable: bool
    said: str
    over: bool
    error: str

    @property
    def begins_with_tool(self) -> bool:
        """Whether a tool call is the first that came of it."""
        tool, clause = self.first_tool_s, self.first_clause_s
        return tool is not None and (clause is None or tool < clause)


def digest(said: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(said).encode()).hexdigest()[:16]


def figures(turn: Spoken, began: float, ended: float) -> TurnFigures:
    """The turn as it stands. ended: of the window; speech and gaps behind it do not count."""

    def since(moment: float | None) -> float | None:
        return None if moment is None else moment - turn.due

    late = 0.0 if turn.sent_at is None else turn.sent_at - turn.due
    first = turn.account.first_token_s
    gaps = [[gap.at - turn.due, min(gap.at + gap.seconds, ended) - gap.at] for gap in turn.playback.gaps]
    return TurnFigures(
        call=turn.call,
        seed=turn.seed,
        number=turn.number,
        at=turn.due - began,
        sent_late_s=late,
        first_token_s=None if first is None else first + late,
        first_text_s=since(turn.first_text),
        first_tool_s=since(turn.first_tool),
        first_clause_s=since(turn.first_clause),
        after_tools_s=turn.after_tools,
        waited_s=None if turn.answered else max(0.0, (turn.gave_up or ended) - turn.due),
        speech_s=turn.playback.spoken_seconds(ended),
        gaps=[gap for gap in gaps if gap[1] > 0],
        tokens=turn.account.tokens,
        modes=dict(turn.account.modes),
        answered_ahead=turn.account.answered_ahead,
        interrupted=turn.interrupted,
        comparable=turn.comparable,
        said=digest(turn.said),
        over=turn.over,
        error=turn.error,
    )


@dataclass(frozen=True)
class Run:
    """One contender under one load. calls: callers at a time, or None where they arrived at ``rate`` a second.

    mean_calls: in progress, over the window. cpu_share: of the load generator, of one core; where it talks to the
    engine's message boundary the service's own work is in it; others_cpu: of the service and the engine, where they are
    processes of their own. refused: calls that were not let in, in the warm-up or in
    the window: who is told to come back later than the window ends is missing in all of it.
    """

    contender: str
    driver: str
    calls: int | None
    rate: float | None
    repeat: int
    seconds: float
    mean_calls: float
    cpu_share: float
    refused: int
    errors: list[str]
    turns: list[TurnFigures]
    machine: str
    others_cpu: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def of(found: dict[str, object]) -> Run:
        """What ``dataclasses.asdict`` made."""
        turns = found["turns"]
        assert isinstance(turns, list)
        return Run(**{**found, "turns": [TurnFigures(**turn) for turn in turns]})  # type: ignore[arg-type]
