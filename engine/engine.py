"""The engine: sessions, turns and the one loop.

Every step of every variant is propose, forward, choose, accept, commit, observe. Plain decoding is a tree of one node
and prefill is a chain of given tokens, so there is one loop and no mode. This is the only file that knows the order of
things. It knows tokens; it knows no text, no socket and no clock but the one it measures with.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from engine.errors import ContextFull, EngineError, OutOfPages, ReplyFailed, UnknownSession
from engine.interfaces import Grammar, Output, Proposer, Target, TextWatcher, Window
from engine.policy import DraftPolicy
from engine.sampling import Sampler, Sampling
from engine.session import Finish, Session, Turn
from engine.tree import FORCED, DraftTree, accept

FORCED_NODES = 16
"""Nodes of a step that drafts nothing, where a grammar leaves no choice: they are all kept."""


@dataclass(frozen=True)
class Work:
    """One session's share of a step. ``max_tokens`` bounds how much of a prefill is done at once."""

    session: Session
    deadline: float = 0.0
    max_tokens: int = 512


@dataclass(frozen=True)
class Step:
    """What one session gained in one step. Plain numbers and ids; whoever runs the engine names them."""

    session: str
    turn: Turn | None
    tokens: tuple[int, ...] = ()
    accepted: int = 0
    """How many of ``tokens`` came from the draft (the others are the target's own next choice)."""
    drafted: int = 0
    prefilled: int = 0
    seconds: float = 0.0
    finish: Finish | None = None
    error: EngineError | None = None


class Engine:
    """Sessions over one target and one proposer. Not thread-safe: one loop owns it.

    coupled: above temperature 0 drafters are given the turn's noise.
    """

    def __init__(self, target: Target, proposer: Proposer, policy: DraftPolicy, *, coupled: bool = False) -> None:
        self.coupled = coupled
        self.target = target
        self.proposer = proposer
        self.policy = policy
        self.sampler = Sampler(target.vocab_size, target.device)
        self.sessions: dict[str, Session] = {}

    def open(self, name: str, tokens: Sequence[int] = (), *, seed: int = 0) -> Session:
        """A new session whose log starts with ``tokens`` (pending until steps prefill them)."""
        if name in self.sessions:
            raise ValueError(f"session {name} is open already")
        session = Session(name, seed, self.target.new_cache(), self.proposer.start())
        self.append(session, tokens)
        self.sessions[name] = session
        return session

    def session(self, name: str) -> Session:
        if name not in self.sessions:
            raise UnknownSession(name)
        return self.sessions[name]

    def append(self, session: Session, tokens: Sequence[int]) -> None:
        """Add given tokens to the log. Raises ContextFull, and ValueError while a reply is being made."""
        if session.turn is not None:
            raise ValueError(f"session {session.name} is replying; cancel first")
        self.check(len(session.tokens), tokens)
        session.tokens.extend(tokens)

    def check(self, num_tokens: int, tokens: Sequence[int]) -> None:
        """Raises ContextFull where ``tokens`` do not fit behind ``num_tokens``, ValueError for unknown ids."""
        limit, vocab = self.target.max_context_tokens, self.target.vocab_size
        if num_tokens + len(tokens) > limit:
            raise ContextFull(f"{num_tokens} tokens and {len(tokens)} more do not fit {limit}")
        if tokens and not 0 <= min(tokens) <= max(tokens) < vocab:
            raise ValueError(f"token ids {min(tokens)} to {max(tokens)} are not all in the vocabulary of {vocab}")

    def truncate(self, session: Session, num_tokens: int) -> None:
        """Rewind the log to its first ``num_tokens`` tokens. The reply in progress must have been cancelled."""
        if session.turn is not None:
            raise ValueError(f"session {session.name} is replying; cancel first")
        session.rewind(num_tokens)

    def submit(
        self,
        session: Session,
        sampling: Sampling,
        *,
        max_tokens: int,
        stop_tokens: frozenset[int] = frozenset(),
        forced: Sequence[int] = (),
        watcher: TextWatcher | None = None,
        grammar: Grammar | None = None,
        request: int = 0,
        first_index: int = 0,
        drafting: bool = True,
        hold: int | None = None,
    ) -> Turn:
        """Ask for a reply to the log as it stands. ``forced`` tokens are its beginning, already decided.

        first_index: tokens of the reply before this part of it, where it goes on behind tool results. hold: tokens
        after which it stands still until its ``hold`` is taken away.
        Raises ContextFull where not even one more token fits.
        """
        if max_tokens < 1 or (hold is not None and hold < 1):
            raise ValueError("a reply has at least one token")
        if session.turn is not None:
            raise ValueError(f"session {session.name} is replying already")
        if not session.tokens:
            raise ValueError("a reply needs at least one token before it")
        self.check(len(session.tokens) + 1, forced)
        turn = Turn(
            session,
            sampling,
            max_tokens=max_tokens,
            stop_tokens=stop_tokens,
            forced=forced,
            watcher=watcher,
            grammar=grammar,
            request=request,
            first_index=first_index,
            drafting=drafting,
            hold=hold,
        )
        turn.stats.prompt_tokens = len(session.tokens)
        turn.stats.cached_tokens = session.cache.length
        session.turn = turn
        try:
            for token in forced:
                session.tokens.append(token)
                finish = turn.push(token)
                if finish is not None:
                    self._end(turn, finish)
                    break
        except Exception:
            self._end(turn, Finish.FAILED)
            raise
        return turn

    def cancel(self, turn: Turn, finish: Finish = Finish.CANCELLED) -> None:
        """End a reply where it stands; what it has said stays in the log. Idempotent."""
        if turn.finish is None:
            self._end(turn, finish)

    def fork(self, session: Session, name: str, *, seed: int | None = None) -> Session:
        """A session with the same log and caches that shares every page until one of the two writes there."""
        if name in self.sessions:
            raise ValueError(f"session {name} is open already")
        child = Session(name, session.seed if seed is None else seed, session.cache.fork(), session.draft.fork())
        child.tokens = session.tokens.copy()
        self.sessions[name] = child
        return child

    @torch.inference_mode()
    def catch_up(self, session: Session) -> bool:
        """Nobody waits: let the session's drafter do a piece of what it would otherwise do in the next reply. Says
        whether there is more.
        """
        with contextlib.suppress(OutOfPages):  # the drafter kept its queue; ``propose`` tries again
            return self.proposer.catch_up(session.draft)
        return False

    def close(self, session: Session) -> None:
        """End the session and return its pages. Idempotent."""
        if session.turn is not None:
            self.cancel(session.turn)
        session.close()
        self.sessions.pop(session.name, None)

    @torch.inference_mode()
    def step(self, plan: Sequence[Work]) -> list[Step]:
        """Do each work item's share of one step: one forward for all of them.

        An item that fails (out of pages, context full) is reported in its own Step and harms no other. Prefill that
        runs out of pages only waits, and an item with nothing to do has no Step.
        """
        started = time.monotonic()
        ready: list[tuple[Session, DraftTree, int]] = []
        steps: list[Step] = []
        for work in plan:
            turn = work.session.turn
            if turn.waits if turn is not None else work.session.num_pending <= 1:
                continue
            try:
                ready.append(self._window(work))
            except EngineError as error:
                steps.append(self._failed(work.session, error))
        if not ready:
            return steps
        windows = [Window(s.cache, tree, self._wanted_logits(s, tree, given)) for s, tree, given in ready]
        forward_started = time.monotonic()
        outputs = self.target.forward(windows, self.proposer.taps)
        forward_seconds = time.monotonic() - forward_started
        for (session, tree, given), output in zip(ready, outputs, strict=True):
            if session.turn is not None:
                session.turn.stats.forward_seconds += forward_seconds / len(ready)
            steps.append(self._settle(session, tree, given, output, started))
        return steps

    def _window(self, work: Work) -> tuple[Session, DraftTree, int]:
        """The tree that a session forwards next, and how many of its nodes are given rather than guessed."""
        session, turn = work.session, work.session.turn
        pending = session.num_pending
        if turn is None or pending > 1 or turn.num_tokens == 0 or not turn.drafting:
            # Without a reply to make, the last token stays pending: it will head the window that the reply needs.
            given = min(pending if turn is not None else pending - 1, work.max_tokens)
            start = session.cache.length
            tree = DraftTree.chain(torch.tensor(session.tokens[start : start + given]))
        else:
            given, tree = 1, self._draft(session, turn)
        if turn is not None and turn.stats.started == 0.0:
            turn.stats.started = time.monotonic()
        try:
            session.cache.reserve(len(tree))
        except OutOfPages:
            if len(tree) == given:
                raise
            tree = DraftTree.chain(tree.tokens[:1])  # a draft that finds no room must not end a reply that does
            session.cache.reserve(1)
        return session, tree, given

    def _draft(self, session: Session, turn: Turn) -> DraftTree:
        """A tree behind the session's last token, no deeper than the context has room for."""
        root = session.tokens[-1]
        context_room = self.target.max_context_tokens - len(session.tokens)
        most = turn.max_tokens if turn.hold is None else min(turn.hold, turn.max_tokens)
        room = min(context_room, most - turn.num_tokens - 1)
        budget = min(self.policy.budget(session.cache.length, room), context_room + 1)  # n nodes are at most n - 1 deep
        turn.stats.mode = self.proposer.name if budget > 1 else "plain"
        turn.stats.reason = self.policy.reason
        tree = DraftTree.chain(torch.tensor([root]))
        if budget <= 1 and turn.grammar is None:
            return tree
        started = time.monotonic()
        turn.asked_drafter = budget > 1
        if budget > 1:
            with contextlib.suppress(OutOfPages):  # drafting is a luxury: the reply goes on without it
                noise = self._drafting_noise(turn, budget)
                tree = self.policy.prune(self.proposer.propose([session.draft], [root], [noise], budget)[0])
        if turn.grammar is not None and room > 0:
            with _as_reply_failed():
                tree = turn.grammar.narrow(tree, max(budget, FORCED_NODES), room)
        turn.stats.draft_seconds += time.monotonic() - started
        return tree

    def _drafting_noise(self, turn: Turn, budget: int) -> torch.Tensor | None:
        """What the target's choices will be perturbed by, for a drafter that perturbs its own alike (coupling, Daliri
        et al. 2024, arXiv 2408.07978).
        """
        levels = min(self.proposer.noise_levels, budget)
        if not self.coupled or turn.sampling.greedy or levels == 0:
            return None
        return turn.noise(self.sampler, levels)[:levels] * turn.sampling.temperature

    @staticmethod
    def _wanted_logits(session: Session, tree: DraftTree, given: int) -> Literal["all", "last", "none"]:
        if len(tree) > given:
            return "all"
        reaches_end = session.cache.length + given == len(session.tokens)
        return "last" if session.turn is not None and reaches_end else "none"

    def _settle(self, session: Session, tree: DraftTree, given: int, output: Output, started: float) -> Step:
        """Choose, accept, commit and observe for one session, and say what it gained."""
        turn = session.turn
        if output.logits is None or turn is None:
            path = list(range(given))
            self._commit(session, tree, path, output)
            return Step(session.name, turn, prefilled=given, seconds=time.monotonic() - started)
        drafted = len(tree) > 1 and given == 1 and output.logits.shape[0] == len(tree)
        try:
            chosen = self._choose(turn, tree if drafted else None, output)
        except ReplyFailed as failed:
            return self._failed(session, failed)
        path = accept(tree, chosen) if drafted else list(range(given))
        candidates = tree.tokens[path[1:]].tolist() if drafted else []
        candidates.append(int(chosen[path[-1] if drafted else 0]))
        kept, finish, error = self._emit(turn, candidates)
        self._commit(session, tree, path[: len(kept)] if drafted else path, output)
        accepted = min(len(path) - 1, len(kept)) if drafted else 0
        now = time.monotonic()
        if turn.stats.first_token == 0.0:
            turn.stats.first_token = now
        turn.stats.steps += 1
        if FORCED not in tree.source:  # a token that had to come says nothing about drafting
            if drafted:
                turn.stats.count(int(tree.depth.max()), len(tree), accepted)
            if drafted or (turn.asked_drafter and given == 1):  # nothing of the draft may have been left to verify
                self.policy.observe(tree, path)
        if finish is not None:
            self._end(turn, finish)
        return Step(
            session.name,
            turn,
            tokens=tuple(kept),
            accepted=accepted,
            drafted=len(tree) - 1 if drafted else 0,
            prefilled=0 if drafted else given,
            seconds=now - started,
            finish=finish,
            error=error,
        )

    def _choose(self, turn: Turn, tree: DraftTree | None, output: Output) -> torch.Tensor:
        assert output.logits is not None
        sampling = turn.sampling
        levels = 1 if tree is None else int(tree.depth.max()) + 1
        noise = None if sampling.greedy else turn.noise(self.sampler, levels)
        allowed = None
        if turn.grammar is not None:
            root = DraftTree.chain(torch.tensor(turn.session.tokens[-1:]))
            with _as_reply_failed():
                allowed = turn.grammar.mask(tree or root)
        seen = turn.seen(self.target.vocab_size, self.target.device)
        return self.sampler.choose(output.logits, sampling, tree=tree, noise=noise, seen=seen, allowed=allowed)

    def _emit(self, turn: Turn, candidates: list[int]) -> tuple[list[int], Finish | None, EngineError | None]:
        """Append the target's choices to the log up to whatever ends the reply; nothing behind that is kept.

        A grammar or a watcher is injected: what it raises ends its own reply and no other.
        """
        log = turn.session.tokens
        kept: list[int] = []
        for token in candidates:
            log.append(token)
            kept.append(token)
            try:
                with _as_reply_failed():
                    finish = turn.push(token)
            except ReplyFailed as error:
                return kept, Finish.FAILED, error
            if finish is None and len(log) >= self.target.max_context_tokens:
                finish = Finish.CONTEXT
            if finish is not None:
                return kept, finish, None
        return kept, None, None

    def _commit(self, session: Session, tree: DraftTree, path: list[int], output: Output) -> None:
        session.cache.commit(path)
        features = output.features
        if features is not None and len(path) != features.shape[0]:
            features = features[path]
        tokens = tree.tokens if len(path) == len(tree) else tree.tokens[path]
        # Whoever waits for a first token does not wait for this.
        first = session.turn is not None and session.turn.stats.first_token == 0.0
        top_ids = None if first else self._top_ids(tree, path, output)
        self.proposer.observe(session.draft, tokens, features, top_ids)

    def _top_ids(self, tree: DraftTree, path: list[int], output: Output) -> torch.Tensor | None:
        """The target's most likely tokens behind each kept node, where the proposer asks and all were computed."""
        wanted = min(self.proposer.top_k, self.target.vocab_size)
        logits = output.logits
        if wanted == 0 or logits is None or logits.shape[0] != len(tree):
            return None
        return logits[path].topk(wanted, dim=-1).indices

    def _failed(self, session: Session, error: EngineError) -> Step:
        finish = Finish.OUT_OF_PAGES if isinstance(error, OutOfPages) else Finish.FAILED
        turn = session.turn
        if turn is None:
            session.stall()
            return Step(session.name, None)
        self._end(turn, finish)
        return Step(session.name, turn, finish=finish, error=error)

    def _end(self, turn: Turn, finish: Finish) -> None:
        turn.finish = finish
        turn.stats.ended = time.monotonic()
        if turn.session.turn is turn:
            turn.session.turn = None


@contextlib.contextmanager
def _as_reply_failed() -> Iterator[None]:
    """What is injected into a reply may raise anything: it ends that reply and no other."""
    try:
        yield
    except Exception as error:
        raise ReplyFailed(f"{type(error).__name__}: {error}") from error
