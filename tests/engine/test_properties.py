"""Whatever was done to sessions before, what they hold is what a fresh session with the same tokens would hold."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.engine import Engine, Work
from engine.errors import EngineError, OutOfPages
from engine.interfaces import Target, Window
from engine.models.decoder import Decoder
from engine.policy import FixedPolicy
from engine.proposers.eagle3 import load_eagle3
from engine.proposers.eagle3.proposer import Eagle3Proposer
from engine.sampling import Sampling
from engine.session import Session
from engine.tree import DraftTree
from tests.engine import checkpoints
from tests.engine.loading import load
from tests.engine.proposers import heads

POOL_TOKENS = 640
TOKENS = st.lists(st.integers(0, checkpoints.VOCAB - 1), min_size=1, max_size=12)


@cache
def models() -> tuple[Decoder, Eagle3Proposer]:
    """A target and a head whose vocabulary overlaps its own, so that some drafts are accepted."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        checkpoints.write("llama-tied", directory)
        target = load(directory, torch.float64, pool_tokens=POOL_TOKENS)
        head = heads.write(directory / "head", heads.random_head(target.config), heads.head_config(target.config))
        return target, load_eagle3(head, target, pool_tokens=POOL_TOKENS, taps=(1, 2, 4))


def next_logits(target: Target, tokens: list[int]) -> torch.Tensor:
    """[V] after the tokens, from an empty cache."""
    fresh = target.new_cache()
    chain = DraftTree.chain(torch.tensor(tokens))
    fresh.reserve(len(chain))
    logits = target.forward([Window(fresh, chain, "last")])[0].logits
    fresh.close()
    assert logits is not None
    return logits[0]


class Sessions(RuleBasedStateMachine):
    """Random appends, replies of every sort, cancellations, rewinds, forks and closings over one engine."""

    def __init__(self) -> None:
        super().__init__()
        self.target, self.proposer = models()
        self.engine = Engine(self.target, self.proposer, FixedPolicy(8))
        self.counter = 0

    @initialize(tokens=TOKENS)
    def first(self, tokens: list[int]) -> None:
        self.open(tokens)

    @rule(tokens=TOKENS)
    def open(self, tokens: list[int]) -> None:
        if len(self.engine.sessions) < 4:
            self.counter += 1
            self.engine.open(f"s{self.counter}", tokens, seed=self.counter)

    def pick(self, data: st.DataObject) -> Session:
        return self.engine.sessions[data.draw(st.sampled_from(sorted(self.engine.sessions)))]

    @precondition(lambda self: self.engine.sessions)
    @rule(data=st.data(), tokens=TOKENS)
    def append(self, data: st.DataObject, tokens: list[int]) -> None:
        session = self.pick(data)
        if session.turn is None:
            self.engine.append(session, tokens)

    @precondition(lambda self: self.engine.sessions)
    @rule(
        data=st.data(), greedy=st.booleans(), tokens=st.integers(1, 20), forced=st.lists(st.integers(0, 9), max_size=3)
    )
    def submit(self, data: st.DataObject, greedy: bool, tokens: int, forced: list[int]) -> None:
        session = self.pick(data)
        if session.turn is None and session.tokens:
            self.engine.submit(session, Sampling(0.0 if greedy else 1.0), max_tokens=tokens, forced=forced)

    @precondition(lambda self: self.engine.sessions)
    @rule(data=st.data(), count=st.integers(1, 6), chunk=st.integers(1, 9))
    def step(self, data: st.DataObject, count: int, chunk: int) -> None:
        session = self.pick(data)
        for _ in range(count):
            if session.turn is None and session.num_pending <= 1:
                return
            (step,) = self.engine.step([Work(session, max_tokens=chunk)])
            assert step.error is None or isinstance(step.error, OutOfPages)
            if step.error is not None:
                return

    @precondition(lambda self: self.engine.sessions)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        turn = self.pick(data).turn
        if turn is not None:
            self.engine.cancel(turn)

    @precondition(lambda self: self.engine.sessions)
    @rule(data=st.data(), share=st.floats(0, 1))
    def truncate(self, data: st.DataObject, share: float) -> None:
        session = self.pick(data)
        if session.turn is None:
            self.engine.truncate(session, int(share * len(session.tokens)))

    @precondition(lambda self: 0 < len(self.engine.sessions) < 4)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        session = self.pick(data)
        if session.turn is None:
            self.counter += 1
            child = self.engine.fork(session, f"s{self.counter}")
            assert child.tokens == session.tokens

    @precondition(lambda self: self.engine.sessions)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        self.engine.close(self.pick(data))

    @precondition(lambda self: self.engine.sessions)
    @rule(data=st.data())
    def holds_what_a_fresh_session_would(self, data: st.DataObject) -> None:
        """The logits behind the cache, and the drafter's tree, against empty caches given the same tokens."""
        session = self.pick(data)
        if session.turn is not None or not session.tokens:
            return
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
        """After one more token, the warm drafter and a fresh one draft the same tree."""
        warm = self.engine.fork(session, "warm")
        fresh = self.engine.open("fresh", session.tokens, seed=session.seed)
        try:
            trees = []
            for other in (warm, fresh):
                self.engine.submit(other, Sampling(), max_tokens=9)
                (step,) = self.engine.step([Work(other, max_tokens=4096)])
                if step.error is not None:
                    raise step.error
                assert other.draft is not None
                with torch.inference_mode():
                    trees.append(self.proposer.propose([other.draft], [other.tokens[-1]], [None], 8)[0])
            assert warm.tokens == fresh.tokens
            if warm.draft.base == fresh.draft.base:  # type: ignore[union-attr]
                assert trees[0].tokens.tolist() == trees[1].tokens.tolist()
                torch.testing.assert_close(trees[0].score, trees[1].score, atol=1e-5, rtol=1e-4)
        finally:
            self.engine.close(warm)
            self.engine.close(fresh)

    @invariant()
    def caches_are_behind_their_logs(self) -> None:
        for session in self.engine.sessions.values():
            assert session.cache.length <= max(0, len(session.tokens) - 1)
            assert session.draft is not None
            assert session.draft.length == session.cache.length

    def teardown(self) -> None:
        for session in list(self.engine.sessions.values()):
            self.engine.close(session)
        assert self.target.pool.pages_in_use == 0
        assert self.proposer.pool.pages_in_use == 0


TestSessions = Sessions.TestCase
TestSessions.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
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
