"""What is written down of a turn while it runs: moments, counts and causes. Whoever measures reads it when it is over.

Between a turn's commit and its first token nothing is done for telemetry but to set one of these fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from engine.sampling import Sampling
from engine.session import TurnStats


@dataclass
class ToolUse:
    """A tool call of a turn. asked, answered: ``time.monotonic()`` seconds; answered is 0 while nothing came.

    outcome: "answered", "failed" (the tool's own error), "timed_out", or "abandoned" where the turn went on without it.
    arguments, result: as JSON text; told only where content is.
    """

    name: str
    call_id: str
    asked: float
    arguments: str = ""
    answered: float = 0.0
    outcome: str = "abandoned"
    result: str = ""


@dataclass(frozen=True)
class Listened:
    """What was done before a turn was committed. since: when its first hypothesis came, 0 if none did; hypotheses: how
    many did; wasted: tokens of replies made ahead and dropped.
    """

    since: float = 0.0
    hypotheses: int = 0
    wasted: int = 0


@dataclass
class TurnRecord:
    """What is known of one reply when it is over. Times are ``time.monotonic()`` seconds; 0 where it did not happen.

    deadline: for the first token; 0: none. source: who answers, by ``service.server_events.AnswerSource``; model: which
    one does. end_reason: "completed", "interrupted", "limit_reached" or "session_closed". error: a reason of
    ``service.problems``, or "". interrupted: when the caller spoke over it. heard: the caller's text, and said: the
    reply's; told only where content is. late_reader: before the first clause the client was too far behind to be told
    of it. stats: one per generation; a reply that waited for tools has several.
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
    heard: str = ""
    said: str = ""
    first_text: float = 0.0
    first_clause: float = 0.0
    interrupted: float = 0.0
    ended: float = 0.0
    output_tokens: int = 0
    tool_calls: int = 0
    tool_wait_s: float = 0.0
    tools: list[ToolUse] = field(default_factory=list)
    finish: str = ""
    end_reason: str = "completed"
    error: str = ""
    listened: Listened = Listened()
    released: float = 0.0
    request_id: int = 0
    late_reader: bool = False
    stats: list[TurnStats] = field(default_factory=list)

    def first_token(self, stats: TurnStats) -> float:
        """When a generation's first token was there for this turn: what was made ahead, when it was released."""
        return max(stats.first_token, self.released) if stats.first_token else 0.0

    @property
    def first(self) -> float:
        """When the turn's first token was there; 0 if none was."""
        return next((self.first_token(stats) for stats in self.stats if stats.first_token), 0.0)

    @property
    def held_s(self) -> float:
        """Time that its generations stood still, for the client did not read."""
        return sum(stats.held_seconds for stats in self.stats)

    @property
    def wasted_ahead(self) -> int:
        """Tokens of replies that were made ahead of it and dropped."""
        return self.listened.wasted

    @property
    def mode(self) -> str:
        """How most of its steps were drafted; "none" where no model made it."""
        phases = [phase for stats in self.stats for phase in stats.phases]
        if not phases:
            return "plain" if self.stats else "none"
        return max(phases, key=lambda phase: phase.steps).mode

    @property
    def missed_deadline(self) -> bool:
        """Whether the first token was wanted earlier than it came, if it did; an interrupted turn owes none."""
        first = self.first or self.first_text
        if not self.deadline or (not first and self.end_reason != "completed"):
            return False
        return not 0.0 < first <= self.deadline

    def tool(self, call_id: str) -> ToolUse | None:
        """The tool call of this name, if the turn has made it."""
        return next((tool for tool in self.tools if tool.call_id == call_id), None)

    def begin_again(self, model: str) -> None:
        """Another model answers, or none for a phrase: what was done before is no part of the answer."""
        self.model, self.released = model, 0.0
        self.stats.clear()

    def snapshot(self) -> TurnRecord:
        """The account as it stands, which the turn's going on does not change."""
        return replace(self, stats=self.stats.copy(), tools=[replace(tool) for tool in self.tools])


def add_up(rows: Sequence[Sequence[int]]) -> list[int]:
    """Column sums of rows that may differ in length."""
    width = max(map(len, rows), default=0)
    return [sum(row[i] for row in rows if i < len(row)) for i in range(width)]
