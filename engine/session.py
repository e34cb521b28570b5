"""What lives across turns (Session) and one reply (Turn).

A session's token log is the truth. Its caches hold a prefix of it, always at least one token short while a reply may
be asked for: the tokens behind ``cache.length`` are pending and head the next window.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor

from engine.cache import KVCache
from engine.errors import EngineError
from engine.interfaces import Draft, Grammar, TextWatcher
from engine.playback import Clause
from engine.policy import Choice
from engine.sampling import Sampler, Sampling, derive_seed


class Finish(Enum):
    """Why a reply ended."""

    STOP_TOKEN = "stop_token"
    STOP_STRING = "stop_string"
    LENGTH = "length"
    CONTEXT = "context"
    CANCELLED = "cancelled"
    OUT_OF_PAGES = "out_of_pages"
    FAILED = "failed"


@dataclass
class Phase:
    """A run of steps that were drafted in one way, and why in that one. drafts: steps that verified a draft."""

    mode: str
    reason: str
    steps: int = 0
    drafts: int = 0
    drafted: int = 0
    accepted: int = 0


MOST_FAILURES = 3
"""In a row, of steps that no caller waits for: what fails so often fails whenever it is tried."""
MOST_PHASES = 32
"""What comes behind is counted to the last one."""


@dataclass
class TurnStats:
    """A reply's own account of its time and its drafting. Times are ``time.monotonic()`` seconds."""

    submitted: float = field(default_factory=time.monotonic)
    started: float = 0.0
    first_token: float = 0.0
    ended: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    accepted_at: list[int] = field(default_factory=list)
    """``accepted_at[d]``: steps in which the draft at depth d + 1 was accepted."""
    drafted_at: list[int] = field(default_factory=list)
    """``drafted_at[d]``: steps whose tree reached depth d + 1."""
    drafted_by: dict[str, int] = field(default_factory=dict)
    """Of ``drafted``, what each drafter has guessed; ``accepted_by``: likewise of ``accepted``."""
    accepted_by: dict[str, int] = field(default_factory=dict)
    draft_seconds: float = 0.0
    forward_seconds: float = 0.0
    phases: list[Phase] = field(default_factory=list)
    """What comes before the first decision, the first token above all, is counted to the first of them."""
    prefilled_ahead: int = 0
    """Of the prompt's tokens in the cache, those that were computed of hypotheses of it."""
    rewound: int = 0
    """Tokens that were computed of hypotheses, and of none that held."""
    held_seconds: float = 0.0
    """Time that it stood still after its first token because whoever reads it did not keep up."""
    clauses: int = 0
    """That have ended while somebody listened, those that came at once as one; ``clauses_late``: behind the moment at
    which the scheduler had them due.
    """
    clauses_late: int = 0
    underruns: int = 0
    """Clauses before which, by the rate at which words are spoken, the caller had heard all there was, and then
    silence: ``underrun_seconds``.
    """
    underrun_seconds: float = 0.0

    @property
    def mode(self) -> str:
        """How most of its steps were drafted."""
        return max(self.phases, key=lambda phase: phase.steps).mode if self.phases else "plain"

    @property
    def reason(self) -> str:
        """Why so."""
        return max(self.phases, key=lambda phase: phase.steps).reason if self.phases else ""

    def drafting(self, mode: str, reason: str, *, passing: bool = False) -> None:
        """The next step drafts in this way. passing: it says nothing of those behind it, so that no phase begins."""
        known = passing or (self.phases and (self.phases[-1].mode == mode or len(self.phases) == MOST_PHASES))
        if not known:
            self.phases.append(Phase(mode, reason, 0 if self.phases else self.steps))

    def step(self) -> None:
        """Account for one step."""
        self.steps += 1
        if self.phases:
            self.phases[-1].steps += 1

    def end(self) -> None:
        """The reply is over."""
        self.ended = time.monotonic()
        if self.steps and not self.phases:
            self.phases.append(Phase("plain", "too short to draft", self.steps))

    def heard(self, clause: Clause) -> None:
        """Account for a clause that somebody listens to."""
        self.clauses += 1
        self.clauses_late += clause.late
        self.underruns += clause.silence_s > 0.0
        self.underrun_seconds += clause.silence_s

    def count(self, tree_depth: int, drafted: Sequence[str], accepted: Sequence[str]) -> None:
        """Account for what one step drafted. drafted: who has guessed each node; accepted: those that were kept."""
        num_accepted = len(accepted)
        self.drafted += len(drafted)
        self.accepted += num_accepted
        if self.phases:
            self.phases[-1].drafts += 1
            self.phases[-1].drafted += len(drafted)
            self.phases[-1].accepted += num_accepted
        for names, counts in ((drafted, self.drafted_by), (accepted, self.accepted_by)):
            for name in names:
                counts[name] = counts.get(name, 0) + 1
        while len(self.drafted_at) < tree_depth:
            self.drafted_at.append(0)
            self.accepted_at.append(0)
        for depth in range(tree_depth):
            self.drafted_at[depth] += 1
            self.accepted_at[depth] += depth < num_accepted


class Turn:
    """One reply being made. A cancelled turn stays cancelled: late work on it is dropped by this object."""

    def __init__(
        self,
        session: Session,
        sampling: Sampling,
        *,
        max_tokens: int,
        stop_tokens: frozenset[int],
        forced: Sequence[int] = (),
        watcher: TextWatcher | None = None,
        grammar: Grammar | None = None,
        request: int = 0,
        first_index: int = 0,
        drafting: bool = True,
        hold: int | None = None,
        aside: bool = False,
    ) -> None:
        """first_index: index of the first token in the reply that the noise is keyed by, above 0 where the reply goes
        on behind tool results. hold: tokens after which it waits to be released; None waits for nobody. aside: no
        caller will hear it.
        """
        self.session = session
        self.sampling = sampling
        self.max_tokens = max_tokens
        self.stop_tokens = stop_tokens
        self.watcher = watcher
        self.grammar = grammar
        self.drafting = drafting
        self.hold = hold
        self.aside = aside
        self.start = len(session.tokens)
        self.first_index = first_index
        self.seed = derive_seed(session.seed, self.start, request) if sampling.seed is None else sampling.seed
        self.forced = list(forced)
        self.num_tokens = 0
        self.finish: Finish | None = None
        self.error: EngineError | None = None
        """Why it has failed at what it was to begin with."""
        self.stats = TurnStats()
        self.choice: Choice | None = None
        """What the tree that is verified now was asked of; None where it is given."""
        self.probe: Choice | None = None
        """A probe that was put off until the drafter has read what it missed."""
        self.recomputed = False
        """Whether its session was computed anew because a drafter failed; it is not a second time."""
        self._seen: Tensor | None = None
        self._noise: tuple[int, Tensor] | None = None

    @property
    def tokens(self) -> list[int]:
        """The reply so far, forced tokens and the stop token included."""
        return self.session.tokens[self.start : self.start + self.num_tokens]

    @property
    def waits(self) -> bool:
        """Whether it has said all that it may before it is released."""
        return self.hold is not None and self.num_tokens >= self.hold

    @property
    def awaited(self) -> bool:
        """Whether a caller has asked for it and hears it as it is made: it is neither aside nor ahead of that."""
        return self.hold is None and not self.aside

    def push(self, token: int) -> Finish | None:
        """Account for one more token of the reply: limits, grammar, stop matcher. Says whether the reply ends here."""
        self.num_tokens += 1
        if self._seen is not None:
            self._seen[token] = True
        if token in self.stop_tokens:
            return Finish.STOP_TOKEN
        if self.grammar is not None:
            self.grammar.consume([token])
        if self.watcher is not None:
            self.watcher.push(token)
            if self.watcher.stopped:
                return Finish.STOP_STRING
        if self.num_tokens >= self.max_tokens:
            return Finish.LENGTH
        return None

    def noise(self, sampler: Sampler, levels: int) -> Tensor:
        """float [at least ``levels``, V]: Gumbel noise for the next tokens of the reply. The drafter and the target
        share it, so it is made once.
        """
        index = self.first_index + self.num_tokens
        if self._noise is None or self._noise[0] != index or self._noise[1].shape[0] < levels:
            self._noise = (index, sampler.noise(self.seed, index, levels))
        return self._noise[1]

    def seen(self, vocab_size: int, device: torch.device) -> Tensor | None:
        """bool [V]: tokens of the whole context, kept up as the reply grows; None when no penalty asks for it."""
        if self.sampling.repetition_penalty == 1.0:
            return None
        if self._seen is None:
            self._seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
            self._seen[torch.tensor(self.session.tokens, device=device)] = True
        return self._seen


class Session:
    """One warm conversation: the token log, the target's cache, the drafter's state and the reply in progress."""

    def __init__(self, name: str, seed: int, cache: KVCache, draft: Draft) -> None:
        self.name = name
        self.seed = seed
        self.cache = cache
        self.draft = draft
        self.tokens: list[int] = []
        self.turn: Turn | None = None
        self.asleep = False
        """Its caches were dropped, and nobody has asked anything of it since: its tokens are left uncomputed."""
        self.held = False
        """Somebody else computes what it begins with."""
        self.failures = 0
        """Steps that have failed since all of it was computed, or a reply was asked for."""
        self._stalled_at: int | None = None

    @property
    def waits_for_pages(self) -> bool:
        """Whether prefill gave up its pages, ran out of them or has failed too often, and nothing has changed since
        that would help.
        """
        return self.asleep or self.held or self.stalled or self.has_given_up

    @property
    def has_given_up(self) -> bool:
        """Whether steps have failed so often that it is computed no more before a reply is asked for."""
        return self.failures >= MOST_FAILURES

    @property
    def stalled(self) -> bool:
        """Whether it found no pages, and nothing has changed since that would help."""
        return self._stalled_at == self.cache.pool.releases

    def stall(self) -> None:
        """What no caller waits for found no pages: it is tried again when some are released."""
        self._stalled_at = self.cache.pool.releases

    def retry(self) -> None:
        """Somebody's pages may move by now: if it found none, it tries again."""
        self._stalled_at = None

    @property
    def awaited(self) -> bool:
        """Whether a caller waits for what it says."""
        return self.turn is not None and self.turn.awaited

    @property
    def num_pending(self) -> int:
        """Tokens of the log that are not in the cache."""
        return len(self.tokens) - self.cache.length

    @property
    def caches(self) -> Sequence[KVCache]:
        """Its own and its drafter's."""
        return (self.cache, *self.draft.caches())

    @property
    def resident(self) -> bool:
        """Whether nothing of it is in host memory."""
        return all(cache.resident for cache in self.caches)

    def offload(self) -> None:
        """Move its pages to host memory. The next step brings back what it needs."""
        for cache in self.caches:
            cache.offload()

    def restore(self) -> None:
        """Bring back what is in host memory. Raises OutOfPages; what was brought back by then stays."""
        for cache in self.caches:
            cache.restore()

    def drop(self) -> None:
        """Give up all that was computed: the log stays, and is prefilled again when it is wanted."""
        self.draft.truncate(0)
        for cache in self.caches:
            cache.close()

    def adopt(self, other: Session, positions: int) -> None:
        """Have the first ``positions`` of another's caches, whose tokens are the same, in place of its own. Pages are
        shared until one of the two writes.
        """
        self.close()
        self.cache, self.draft = other.cache.fork(), other.draft.fork()
        self.cache.truncate(positions)
        self.draft.truncate(positions)

    @property
    def num_unread(self) -> int:
        """Given tokens that steps have still to read. Without a reply to make, the last of the log stays pending: it
        will head the window that the reply needs.
        """
        return self.num_pending - (self.turn is None)

    def rewind(self, num_tokens: int) -> None:
        """Keep the first ``num_tokens`` tokens of the log, and at most one position fewer in every cache.

        The token at the end heads the next window again, so the feature that a drafter needs there is recomputed.
        """
        if not 0 <= num_tokens <= len(self.tokens):
            raise ValueError(f"cannot rewind {len(self.tokens)} tokens to {num_tokens}")
        del self.tokens[num_tokens:]
        positions = max(0, num_tokens - 1)
        if positions < self.cache.length:
            self.cache.truncate(positions)
            self.draft.truncate(positions)

    def forget(self) -> None:
        """Nothing of the log is computed any more: for when a step has failed half-way and nobody knows what it did."""
        self.cache.truncate(0)
        self.draft.truncate(0)

    def close(self) -> None:
        """Give back all pages. Idempotent."""
        self.cache.close()
        self.draft.close()
