"""Whatever was done to sessions before, what they hold is what a fresh session with the same tokens would hold."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.cache import ABSENT, KVCache
from engine.engine import Engine, Work
from engine.errors import EngineError, OutOfPages
from engine.interfaces import Window
from engine.policy import FixedPolicy
from engine.proposers.pairs.draft import PairDraft
from engine.sampling import Sampling
from engine.session import Finish, Session
from engine.tree import DraftTree
from tests.engine import checkpoints
from tests.engine.rounding import next_logits
from tests.engine.small import Accepted, models

TOKENS = st.lists(st.integers(0, checkpoints.VOCAB - 1), min_size=1, max_size=12)


class Sessions(RuleBasedStateMachine):
    """Random appends, replies of every sort, cancellations, rewinds, forks and closings over one engine.

    logs: what every session's tokens must be, kept apart from the engine.
    """

    def __init__(self) -> None:
        super().__init__()
        self.target, self.drafter = models()
        self.proposer = Accepted(self.drafter)
        self.engine = Engine(self.target, self.proposer, FixedPolicy(8))
        self.logs: dict[str, list[int]] = {}
        self.wanted: dict[str, list[int]] = {}
        self.counter = 0

    @initialize(tokens=TOKENS)
    def first(self, tokens: list[int]) -> None:
        self.open(tokens)

    @precondition(lambda self: len(self.logs) < 4)
    @rule(tokens=TOKENS)
    def open(self, tokens: list[int]) -> None:
        self.counter += 1
        self.engine.open(f"s{self.counter}", tokens, seed=self.counter)
        self.logs[f"s{self.counter}"] = list(tokens)

    def pick(self, data: st.DataObject, *, idle: bool = True) -> Session | None:
        sessions = [s for _, s in sorted(self.engine.sessions.items()) if (s.turn is None) == idle]
        return data.draw(st.sampled_from(sessions)) if sessions else None

    @rule(data=st.data(), tokens=TOKENS)
    def append(self, data: st.DataObject, tokens: list[int]) -> None:
        if (session := self.pick(data)) is not None:
            self.engine.append(session, tokens)
            self.logs[session.name] += tokens

    @rule(
        data=st.data(),
        temperature=st.sampled_from([0.0, 1.0]),
        tokens=st.integers(1, 30),
        forced=st.lists(st.integers(0, 9), max_size=3),
        stop_at=st.none() | st.integers(0, 30),
        steps=st.integers(0, 12),
    )
    def submit(
        self,
        data: st.DataObject,
        temperature: float,
        tokens: int,
        forced: list[int],
        stop_at: int | None,
        steps: int,
    ) -> None:
        """Begin a reply, knowing what a fresh session says without a drafter."""
        session = self.pick(data)
        if session is None or not session.tokens:
            return
        sampling = Sampling(temperature, seed=self.counter)
        wanted = self.plain(session, sampling, tokens, forced)
        if wanted is None:
            return
        stop = frozenset(wanted[stop_at : stop_at + 1]) if stop_at is not None else frozenset[int]()
        if stop:
            wanted = wanted[: 1 + next(i for i, token in enumerate(wanted) if token in stop)]
        self.wanted[session.name] = self.logs[session.name] + wanted
        self.proposer.replies[id(session.draft)] = self.wanted[session.name]
        turn = self.engine.submit(session, sampling, max_tokens=tokens, forced=forced, stop_tokens=stop)
        self.logs[session.name] += turn.tokens
        if turn.finish is None:
            self.advance(session, steps, 512)

    def plain(self, session: Session, sampling: Sampling, tokens: int, forced: list[int]) -> list[int] | None:
        fresh = self.engine.open("plain", session.tokens)
        turn = self.engine.submit(fresh, sampling, max_tokens=tokens, forced=forced, drafting=False)
        while turn.finish is None:
            self.engine.step([Work(fresh)])
        said = turn.tokens
        self.engine.close(fresh)
        return None if turn.finish is Finish.OUT_OF_PAGES else said

    @rule(data=st.data(), steps=st.integers(1, 6), chunk=st.integers(1, 9))
    def generate(self, data: st.DataObject, steps: int, chunk: int) -> None:
        if (session := self.pick(data, idle=False)) is not None:
            self.advance(session, steps, chunk)

    def advance(self, session: Session, steps: int, chunk: int) -> None:
        """Some steps of a reply: it begins as the reply without a drafter does, and ends as that one."""
        turn = session.turn
        assert turn is not None
        for _ in range(steps):
            if turn.finish is not None:
                break
            (step,) = self.engine.step([Work(session, max_tokens=chunk)])
            assert step.error is None or isinstance(step.error, OutOfPages)
            self.logs[session.name] += step.tokens
        wanted = self.wanted[session.name]
        assert session.tokens == wanted[: len(session.tokens)]
        if turn.finish not in (None, Finish.OUT_OF_PAGES):
            assert session.tokens == wanted

    @rule(data=st.data(), chunk=st.integers(1, 9))
    def prefill(self, data: st.DataObject, chunk: int) -> None:
        if (session := self.pick(data)) is not None:
            self.fill(session, chunk)

    def fill(self, session: Session, chunk: int) -> None:
        """Prefill all but the last token, or as far as the pages go; then let the drafter catch up."""
        while session.num_pending > 1 and self.engine.step([Work(session, max_tokens=chunk)])[0].prefilled:
            pass
        self.engine.catch_up(session)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if (session := self.pick(data, idle=False)) is not None:
            turn = session.turn
            assert turn is not None
            self.engine.cancel(turn)
            assert turn.finish is Finish.CANCELLED
            assert session.turn is None
            self.check(session)

    @rule(data=st.data(), share=st.floats(0, 1), few=st.booleans())
    def truncate(self, data: st.DataObject, share: float, few: bool) -> None:
        if (session := self.pick(data)) is not None:
            length = len(session.tokens)
            keep = length - min(length, int(share * 4)) if few else int(share * length)
            self.engine.truncate(session, keep)
            del self.logs[session.name][keep:]
            self.check(session)

    @precondition(lambda self: len(self.logs) < 4)
    @rule(data=st.data(), filled=st.booleans(), back=st.integers(0, 9), tokens=TOKENS)
    def fork(self, data: st.DataObject, filled: bool, back: int, tokens: list[int]) -> None:
        """And write to the child, over what the two share, which the parent must not see."""
        if (session := self.pick(data)) is not None:
            if filled:
                self.fill(session, 512)
            self.counter += 1
            child = self.engine.fork(session, f"s{self.counter}", seed=self.counter)
            keep = max(0, len(child.tokens) - back)
            self.engine.truncate(child, keep)
            self.engine.append(child, tokens)
            self.logs[child.name] = self.logs[session.name][:keep] + tokens
            self.fill(child, 512)
            self.check(child)
            self.check(session)

    @rule(data=st.data(), idle=st.booleans(), how=st.sampled_from(["offload", "restore", "drop"]))
    def move(self, data: st.DataObject, idle: bool, how: str) -> None:
        """To host memory, back, or out of all memory but the log: between the steps of a reply as well."""
        if (session := self.pick(data, idle=idle)) is not None:
            if how == "offload":
                session.offload()
                assert all(cache.resident or cache.movable_pages == 0 for cache in session.caches)
            elif how == "drop":
                session.drop()
            else:
                with contextlib.suppress(OutOfPages):
                    session.restore()
                    assert session.resident

    @precondition(lambda self: self.logs)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        session = self.engine.sessions[data.draw(st.sampled_from(sorted(self.logs)))]
        self.engine.close(session)
        self.engine.close(session)
        del self.logs[session.name]

    @rule()
    def every_idle_session_holds_what_a_fresh_one_would(self) -> None:
        for session in list(self.engine.sessions.values()):
            if session.turn is None:
                self.check(session)

    def check(self, session: Session) -> None:
        """The logits behind the cache, and the drafter's tree, against empty caches given the same tokens."""
        assert session.tokens == self.logs[session.name]
        if session.tokens:
            try:
                self.check_logits(session)
                self.check_draft(session)
            except OutOfPages:
                return

    def check_logits(self, session: Session) -> None:
        pending = DraftTree.chain(torch.tensor(session.tokens[session.cache.length :]))
        session.cache.reserve(len(pending))
        with torch.inference_mode():
            warm = self.target.forward([Window(session.cache, pending, "last")])[0].logits
        assert warm is not None
        torch.testing.assert_close(warm[0], next_logits(self.target, session.tokens), atol=1e-9, rtol=0)

    def check_draft(self, session: Session) -> None:
        """The warm drafter and a fresh one draft the same trees: one and two tokens further, and rewound."""
        warm = self.engine.fork(session, "warm")
        fresh = self.engine.open("fresh", session.tokens)
        try:
            self.same_drafts(warm, fresh)
            self.same_drafts(warm, fresh)
            for other in (warm, fresh):
                self.engine.truncate(other, len(other.tokens) - 2)
                self.engine.append(other, [7])
            self.same_drafts(warm, fresh)
        finally:
            self.engine.close(warm)
            self.engine.close(fresh)

    def same_drafts(self, warm: Session, fresh: Session) -> None:
        """One more token, and the trees from it. Before and after, the warm one drafts from a token never chosen."""
        for other in (warm, fresh):
            turn = self.engine.submit(other, Sampling(), max_tokens=1, drafting=False)
            while turn.finish is None:
                (step,) = self.engine.step([Work(other, max_tokens=4096)])
                if step.error is not None:
                    raise step.error
        assert warm.tokens == fresh.tokens
        root = warm.tokens[-1]
        self.drafted(warm, (root + 1) % checkpoints.VOCAB)
        one, two = self.drafted(warm, root), self.drafted(fresh, root)
        self.drafted(warm, (root + 1) % checkpoints.VOCAB)
        assert one.tokens.tolist() == two.tokens.tolist()
        torch.testing.assert_close(one.score, two.score, atol=1e-5, rtol=1e-4)

    def drafted(self, session: Session, root: int) -> DraftTree:
        assert session.draft is not None
        with torch.inference_mode():
            return self.drafter.propose([session.draft], [root], [None], 8)[0]

    @invariant()
    def caches_are_behind_their_logs(self) -> None:
        assert set(self.engine.sessions) == set(self.logs)
        for name, session in self.engine.sessions.items():
            assert session.tokens == self.logs[name]
            assert session.cache.length <= max(0, len(session.tokens) - 1)
            assert session.draft is not None
            assert session.draft.length == session.cache.length

    @invariant()
    def every_page_in_use_is_a_sessions(self) -> None:
        sessions = self.engine.sessions.values()
        drafts = [session.draft.cache for session in sessions if isinstance(session.draft, PairDraft)]
        assert self.target.pool.pages_in_use == num_pages([session.cache for session in sessions])
        assert self.drafter.pool.pages_in_use == num_pages(drafts)

    def teardown(self) -> None:
        for session in list(self.engine.sessions.values()):
            self.engine.close(session)
        assert self.target.pool.pages_in_use == self.target.pool.mover.bytes_held == 0
        assert self.drafter.pool.pages_in_use == self.drafter.pool.mover.bytes_held == 0


def num_pages(caches: Sequence[KVCache]) -> int:
    return len({page for cache_ in caches for page in cache_._pages} - {ABSENT})


TestSessions = Sessions.TestCase
TestSessions.settings = settings(
    max_examples=50, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_running_out_of_pages_is_an_error_that_harms_nobody() -> None:
    target, proposer = models()
    engine = Engine(target, proposer, FixedPolicy(1))
    small = engine.open("small", [1, 2, 3])
    big = engine.open("big", list(range(200)) * 2)
    hog = engine.open("hog", list(range(200)) * 2)
    errors: list[EngineError] = []
    for session in (big, hog):
        turn = engine.submit(session, Sampling(), max_tokens=4)
        while turn.finish is None:
            errors += [step.error for step in engine.step([Work(session)]) if step.error is not None]
    assert [type(error) for error in errors] == [OutOfPages]
    engine.close(hog)
    turn = engine.submit(small, Sampling(), max_tokens=4)
    while turn.finish is None:
        engine.step([Work(small)])
    assert turn.tokens == [int(next_logits(target, [1, 2, 3, *turn.tokens[:i]]).argmax()) for i in range(4)]
    for session in (small, big):
        engine.close(session)
    assert target.pool.pages_in_use == 0
