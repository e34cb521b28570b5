"""The message boundary of an engine process: plain picklable records, commands in and events out.

Commands of one session are carried out in the order sent. The same records drive an engine in-process for tests and
benchmarks. Knows no transport.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.constraint import Constraint
from engine.sampling import Sampling
from engine.session import TurnStats


@dataclass(frozen=True)
class Preamble:
    """What a log begins with, and calls of the same tenant with it: instructions and tools, ``length`` tokens."""

    tenant: str
    length: int


@dataclass(frozen=True)
class Open:
    """Open a session whose token log is ``tokens``. Prefill of it starts when nothing more urgent is there to do.

    constraint: that its replies will probably have. preamble: computed once for all sessions of its tenant; None shares
    nothing.
    """

    session: str
    tokens: tuple[int, ...] = ()
    seed: int = 0
    constraint: Constraint | None = None
    preamble: Preamble | None = None


@dataclass(frozen=True)
class Pin:
    """Compute ``tokens`` and keep them for the sessions of a tenant that begin so; None: of every tenant."""

    tokens: tuple[int, ...]
    tenant: str | None


@dataclass(frozen=True)
class Sync:
    """Make the log equal to its first ``keep`` tokens followed by ``tokens``.

    Appends, and rewinds to the longest common prefix when ``tokens`` agree with what is there. Cancels the reply in
    progress, if any. ahead: how many of the tokens, at the end, are a hypothesis that the next command may replace.
    number: above 0, answered by a ``Prefilled`` once all is computed, unless another command comes first.
    """

    session: str
    keep: int
    tokens: tuple[int, ...] = ()
    ahead: int = 0
    number: int = 0


@dataclass(frozen=True)
class Submit:
    """Reply to the log as it stands after a ``Sync`` with the same arguments.

    turn: the caller's name for the reply. deadline: ``time.monotonic()`` (one clock for the whole machine) by which the
    first token is wanted. stop_tokens end a reply and stay in the log; stop_strings end it and are not emitted.
    forced: tokens that the reply begins with, already decided. first_index: tokens of the reply before this part of it,
    where it goes on behind tool results. constraint: what form it must have, and so which tool calls it may hold.
    aside: nobody in a conversation waits for it. hold: tokens after which the reply waits for its ``Release`` at the
    latest, or sooner with enough to be spoken; made ahead, it yields to everybody who waits for theirs. ahead: as in
    ``Sync``. speaking_rate: tokens of the reply that are spoken in a second; 0 where nobody has measured it.
    """

    session: str
    turn: int
    keep: int
    tokens: tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    stop_tokens: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    forced: tuple[int, ...] = ()
    request: int = 0
    first_index: int = 0
    deadline: float = 0.0
    drafting: bool = True
    constraint: Constraint | None = None
    aside: bool = False
    hold: int | None = None
    ahead: int = 0
    speaking_rate: float = 0.0


@dataclass(frozen=True)
class Release:
    """A reply that was made ahead, or that was held, is wanted now, by ``deadline``. One that is over has said all it
    will.
    """

    session: str
    turn: int
    deadline: float = 0.0
    speaking_rate: float = 0.0


@dataclass(frozen=True)
class Hold:
    """Whoever reads the reply does not keep up: it stands where it is until its ``Release``, and nobody else's does.
    Ignored when the reply is over, or was made ahead and not released.
    """

    session: str
    turn: int


@dataclass(frozen=True)
class Cancel:
    """End a reply where it stands. Answered by its ``Ended``; ignored when the reply is over or unknown."""

    session: str
    turn: int


@dataclass(frozen=True)
class Fork:
    """Open ``child`` with the log and caches of ``session``, sharing pages until one of the two writes."""

    session: str
    child: str


@dataclass(frozen=True)
class Close:
    """End a session and return its pages. Ignored when it is not open."""

    session: str


@dataclass(frozen=True)
class Wake:
    """The session will be asked for something in a moment: what of it was moved or dropped comes back. Ignored when it
    is awake.
    """

    session: str


@dataclass(frozen=True)
class Prepare:
    """Replies of the session will probably have this constraint from now on."""

    session: str
    constraint: Constraint


@dataclass(frozen=True)
class Ping:
    """Ask for a ``Beat``."""


@dataclass(frozen=True)
class Shutdown:
    """Leave the loop."""


Command = Open | Pin | Sync | Submit | Release | Hold | Cancel | Fork | Wake | Prepare | Close | Ping | Shutdown


@dataclass(frozen=True)
class Ready:
    """The model is loaded and measured. Sent once, first."""

    model: str
    max_context_tokens: int
    pages: int
    page_tokens: int
    costs: str
    """One line for people: what a step costs and whether drafting is expected to pay."""


@dataclass(frozen=True)
class Prefilled:
    """The hypothesis of the ``Sync`` with this number is computed.

    tokens: of the hypothesis. rewound: of the hypothesis before it, computed in vain. computed: for this one.
    """

    session: str
    number: int
    tokens: int
    rewound: int
    computed: int


@dataclass(frozen=True)
class Expected:
    """A reply with a deadline was taken on: its first token will probably be there ``at`` (``time.monotonic()``)."""

    session: str
    turn: int
    at: float


@dataclass(frozen=True)
class ToolCall:
    """A tool call that the reply makes. ``arguments`` is the JSON text of an object."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Progress:
    """One step of a reply.

    tokens: the ids it gained. text: what became safe to emit. clause_ends: code point offsets into the whole reply's
    text where a clause ends, known since the last record. accepted: how many of ``tokens``, from the front, the drafter
    had guessed. at: ``time.monotonic()`` when the step was done. calls: tool calls that became complete.
    malformed_calls: how many more were written that are no JSON call. drafting: (how it is drafted from this step on,
    why), where that has changed.
    """

    session: str
    turn: int
    tokens: tuple[int, ...]
    text: str
    clause_ends: tuple[int, ...]
    accepted: int
    at: float
    calls: tuple[ToolCall, ...] = ()
    malformed_calls: int = 0
    drafting: tuple[str, str] | None = None


@dataclass(frozen=True)
class Ended:
    """A reply is over.

    finish: value of ``engine.session.Finish``. log_tokens: length of the session's log now. reply_tokens: tokens of the
    reply that the log holds.
    """

    session: str
    turn: int
    finish: str
    log_tokens: int
    reply_tokens: int
    stats: TurnStats
    error: str = ""


@dataclass(frozen=True)
class Failed:
    """A command could not be carried out. ``reason``: name of the class in ``engine.errors``. The engine goes on."""

    session: str
    turn: int | None
    reason: str
    message: str


@dataclass(frozen=True)
class Closed:
    """A ``Close`` was carried out: what comes next under this name is of another session."""

    session: str


@dataclass(frozen=True)
class Dying:
    """The process ends now, for this reason, in words. Sent last."""

    cause: str


@dataclass(frozen=True)
class Beat:
    """A sign of life with a few figures: after a ``Ping``, at the end of each burst of work, and now and then within.

    at: ``time.monotonic()``; what was sent before is part of it. pages_total: that all sessions together may have;
    host_pages: that idle ones may have in host memory besides. kept_pages: of those in use, what holds beginnings for
    calls to come.
    backlog_s: how long all that is pending takes: prompts not computed yet, and one step of the replies in progress.
    token_s: what one more token of a long prompt adds to that.
    speech_load: the part of its time that the engine needs to go on with all that is being spoken, of the last seconds
    (``engine.demand``); from 1 on it does not keep up. voice_load: what one more voice adds to that.
    silent: sessions that were opened lately and have not been asked for a reply.
    host_bytes: of pages in host memory. hibernated, dropped: times that a session's pages were moved there, or given up
    for its token log; woken_from_host, woken_from_log: times that one came back. prefilled_tokens: computed of prompts;
    shared_tokens: not computed, because another session's were at hand. All since the process began.
    """

    at: float
    sessions: int
    pages_in_use: int
    steps: int
    pages_total: int
    backlog_s: float
    token_s: float
    host_bytes: int = 0
    hibernated: int = 0
    dropped: int = 0
    woken_from_host: int = 0
    woken_from_log: int = 0
    prefilled_tokens: int = 0
    shared_tokens: int = 0
    host_pages: int = 0
    kept_pages: int = 0
    speech_load: float = 0.0
    voice_load: float = 0.0
    silent: int = 0


Event = Ready | Prefilled | Expected | Progress | Ended | Failed | Closed | Beat | Dying
