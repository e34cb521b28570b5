"""The engine: sessions, turns and the one loop.

Every step of every variant is propose, forward, choose, accept, commit, observe. Plain decoding is a tree of one node
and prefill is a chain of given tokens, so there is one loop and no mode. This is the only file that knows the order of
things. It knows tokens; it knows no text, no socket and no clock but the one it measures with.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.drafting import Drafting, as_reply_failed, catch_up
from engine.errors import ContextFull, EngineError, OutOfPages, ReplyFailed, UnknownSession
from engine.interfaces import Grammar, Output, Proposer, Target, TextWatcher, Window
from engine.pace import Pace
from engine.policy import DraftPolicy
from engine.sampling import Sampler, Sampling
from engine.session import Finish, Session, Turn
from engine.shares import Fail, Share, given_in, with_room
from engine.tree import FORCED, DraftTree, accept

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """One session's share of a step. ``max_tokens`` bounds how much of a prefill is done at once. urgent: whether
    somebody waits for what it gains, or will in a moment; for a reply with a lead nobody does.
    """

    session: Session
    max_tokens: int = 512
    urgent: bool = True


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
    finish: Finish | None = None
    error: EngineError | None = None


class Engine:
    """Sessions over one target and one proposer. Not thread-safe: one loop owns it.

    coupled: above temperature 0 drafters are given the turn's noise. cheaper: other ways to draft from the same drafts,
    for when many calls share a step. pace: learns what steps take.
    """

    def __init__(
        self,
        target: Target,
        proposer: Proposer,
        policy: DraftPolicy,
        *,
        coupled: bool = False,
        cheaper: Sequence[Proposer] = (),
        pace: Pace | None = None,
    ) -> None:
        self.target = target
        self.proposer = proposer
        self.pace = pace or Pace()
        self.sampler = Sampler(target.vocab_size, target.device)
        ways, longest = [proposer, *cheaper], target.max_context_tokens
        self.drafting = Drafting(ways, policy, self.sampler, self.pace, longest, coupled=coupled)
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
        aside: bool = False,
    ) -> Turn:
        """Ask for a reply to the log as it stands. ``forced`` tokens are its beginning, already decided.

        first_index: tokens of the reply before this part of it, where it goes on behind tool results. hold: tokens
        after which it stands still until its ``hold`` is taken away. aside: no caller waits for any of it, and where
        pages are short those that one waits for come first.
        Raises ContextFull where not even one more token fits. Where ``forced`` tokens end the reply, or cannot be read,
        it is over already.
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
            aside=aside,
        )
        turn.stats.prompt_tokens = len(session.tokens)
        turn.stats.cached_tokens = session.cache.length
        session.turn = turn
        session.failures = 0
        session.retry()
        self._begin(turn)
        return turn

    def _begin(self, turn: Turn) -> None:
        """Put what is decided of a reply into the log: all of it also where what reads it fails, for it may have been
        told before.
        """
        log, forced, finish = turn.session.tokens, turn.forced, None
        for at, token in enumerate(forced, start=1):
            log.append(token)
            try:
                with as_reply_failed():
                    finish = turn.push(token)
            except ReplyFailed as error:
                log += forced[at:]
                turn.num_tokens, turn.error, finish = len(forced), error, Finish.FAILED
            if finish is not None:
                self._end(turn, finish)
                return

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
        return catch_up(self.proposer, session.draft)

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
        runs out of pages only waits, as does a reply that no caller waits for where others have pages in the step. An
        item with nothing to do has no Step.
        """
        started = time.monotonic()
        steps: list[Step] = []

        def fail(session: Session, error: EngineError) -> None:
            steps.append(self._failed(session, error))

        shares = with_room(self._shares(plan, fail), self.sessions.values(), fail)
        if not shares:
            return steps
        drafted = time.monotonic() - started
        windows = [Window(share.session.cache, share.tree, share.wanted_logits) for share in shares]
        forward_started = time.monotonic()
        outputs = self.target.forward(windows, self.proposer.taps)
        forward_seconds = time.monotonic() - forward_started
        for share, output in zip(shares, outputs, strict=True):
            if share.session.turn is not None:
                share.session.turn.stats.forward_seconds += forward_seconds / len(shares)
            steps.append(self._settled(share, output))
        self.pace.observe(len(shares), sum(len(s.tree) for s in shares), time.monotonic() - started - drafted)
        return steps

    def _shares(self, plan: Sequence[Work], fail: Fail) -> list[Share]:
        """The tree that each item forwards: given tokens, or a draft. ``fail`` is told of those that have none."""
        shares: list[Share] = []
        drafting: list[tuple[Work, Turn]] = []
        for work in plan:
            session, turn = work.session, work.session.turn
            if turn.waits if turn is not None else session.num_unread <= 0:
                continue
            if turn is not None and session.num_unread <= 1 and turn.num_tokens and turn.drafting:
                drafting.append((work, turn))
                continue
            count, start = min(session.num_unread, work.max_tokens), session.cache.length
            if turn is not None:
                turn.choice = None
            shares.append(Share(session, DraftTree.chain(torch.tensor(session.tokens[start : start + count])), count))
        if drafting:
            turns, urgent = [turn for _, turn in drafting], [work.urgent for work, _ in drafting]
            trees = self.drafting.trees(turns, urgent, given_in(shares))
            for turn, tree in zip(turns, trees, strict=True):
                if isinstance(tree, EngineError):
                    fail(turn.session, tree)
                else:
                    shares.append(Share(turn.session, tree, 1))
        return shares

    def _settled(self, share: Share, output: Output) -> Step:
        """What came of one share. Whatever goes wrong in it is its own affair: the others have their outputs."""
        session, turn, told = share.session, share.session.turn, len(share.session.tokens)
        try:
            step = self._settle(share, output)
        except Exception as error:
            return self._broken(session, turn, told, error)
        if session.num_unread <= 0:
            session.failures = 0
        return step

    def _broken(self, session: Session, turn: Turn | None, told: int, error: Exception) -> Step:
        """A share failed half-way. ``told`` tokens of the log had been said before."""
        log.error("a session's step failed", exc_info=error)
        session.failures += 1
        session.forget()
        del session.tokens[told:]
        if turn is None:
            session.stall()
            return Step(session.name, None)
        turn.num_tokens = told - turn.start
        self._end(turn, Finish.FAILED)
        failed = ReplyFailed(f"{type(error).__name__}: {error}")
        return Step(session.name, turn, finish=Finish.FAILED, error=failed)

    def _settle(self, share: Share, output: Output) -> Step:
        """Choose, accept, commit and observe for one session, and say what it gained."""
        session, tree, given = share.session, share.tree, share.given
        turn = session.turn
        if output.logits is None or turn is None:
            path = list(range(given))
            self._commit(session, tree, path, output)
            return Step(session.name, turn, prefilled=given)
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
        if turn.stats.first_token == 0.0:
            turn.stats.first_token = time.monotonic()
        turn.stats.step()
        if FORCED not in tree.source:  # a token that had to come says nothing about drafting
            if drafted:
                self._count(turn, tree, path[1 : accepted + 1])
            if turn.choice is not None and (drafted or turn.choice.drafts):  # nothing may have been left to verify
                self.drafting.observe(turn, tree, path)
        if finish is not None:
            self._end(turn, finish)
        return Step(
            session.name,
            turn,
            tokens=tuple(kept),
            accepted=accepted,
            drafted=len(tree) - 1 if drafted else 0,
            prefilled=0 if drafted else given,
            finish=finish,
            error=error,
        )

    def _count(self, turn: Turn, tree: DraftTree, accepted: Sequence[int]) -> None:
        """Account for what was drafted. accepted: the nodes that were kept, without the root."""
        names, whole = self.proposer.name.split("+"), self.proposer.name
        drafters = [names[source] if 0 <= source < len(names) else whole for source in tree.source.tolist()]
        turn.stats.count(int(tree.depth.max()), drafters[1:], [drafters[node] for node in accepted])

    def _choose(self, turn: Turn, tree: DraftTree | None, output: Output) -> torch.Tensor:
        assert output.logits is not None
        sampling = turn.sampling
        levels = 1 if tree is None else int(tree.depth.max()) + 1
        noise = None if sampling.greedy else turn.noise(self.sampler, levels)
        allowed = None
        if turn.grammar is not None:
            root = DraftTree.chain(torch.tensor(turn.session.tokens[-1:]))
            with as_reply_failed():
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
                with as_reply_failed():
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
        elif features is not None and features.untyped_storage().nbytes() > 2 * features.nbytes:
            features = features.clone()  # kept by whoever drafts, and the whole step's with them otherwise
        tokens = tree.tokens if len(path) == len(tree) else tree.tokens[path]
        # Whoever waits for a first token does not wait for this.
        first = session.turn is not None and session.turn.stats.first_token == 0.0
        top_ids = None if first else self._top_ids(tree, path, output)
        try:
            self.proposer.observe(session.draft, tokens, features, top_ids)
        except Exception:
            if session.turn is None or session.turn.recomputed:
                raise
            log.exception("a drafter could not read on: the session is computed anew")
            session.turn.recomputed = True
            session.forget()

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
        turn.stats.end()
        if turn.session.turn is turn:
            turn.session.turn = None
