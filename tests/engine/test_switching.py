"""Drafters of every kind that take turns inside a reply, while replies are cancelled, rewound and forked: what is said
next is what a fresh session of the same tokens says without one.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import pytest
import torch

from engine.engine import Engine, Work
from engine.policy import FixedPolicy
from engine.proposers.none import NoProposer
from engine.proposers.table import PROPOSERS
from engine.sampling import Sampling
from engine.session import Session, Turn
from tests.engine import drafters, equal
from tests.engine.embedded import codec

EXACT = torch.float64
SEEDS, ROUNDS = 6, 8
MOST = 24
SAMPLINGS = (Sampling(), Sampling(temperature=0.7), Sampling(temperature=1.0, top_p=0.9))


class Run:
    """One session's life, by chance. prompts: what it is given is cut out of them."""

    def __init__(self, seed: int, prompts: Sequence[Sequence[int]]) -> None:
        self.random = random.Random(seed)
        proposer = drafters.drafter(drafters.SWITCHING, EXACT, seed)
        assert isinstance(proposer, drafters.Switching)
        self.proposer = proposer
        self.engine = Engine(drafters.target_in(EXACT), self.proposer, FixedPolicy(16), coupled=bool(seed % 2))
        self.plain = Engine(drafters.target_in(EXACT), NoProposer(), FixedPolicy())
        self.prompts = prompts
        self.names = itertools.count()
        self.session = self.engine.open("call", self.random.choice(prompts), seed=seed)
        self.accepted = 0

    def live(self) -> None:
        """A reply, perhaps cut short, and what became of it."""
        turn = self.say(self.session, until=self.random.randrange(2, MOST + 8))
        self.engine.cancel(turn)
        event = self.random.choice(("rewind", "fork", "hear", "nothing"))
        if event == "rewind":
            self.engine.truncate(self.session, self.random.randrange(turn.start // 2, len(self.session.tokens)))
        elif event == "fork":
            self.fork()
        elif event == "hear":
            prompt = self.random.choice(self.prompts)
            start = self.random.randrange(len(prompt) - 8)
            self.engine.append(self.session, prompt[start : start + self.random.randrange(1, 8)])

    def fork(self) -> None:
        """Go on with a copy that shares the pages; the other says something else first, and is closed."""
        other, self.session = self.session, self.engine.fork(self.session, f"fork {next(self.names)}")
        self.say(other, until=4)
        self.engine.close(other)

    def say(self, session: Session, until: int = MOST) -> Turn:
        """A reply of so many tokens at most, checked as far as it came."""
        sampling, seed, tokens = self.random.choice(SAMPLINGS), session.seed, list(session.tokens)
        turn = self.engine.submit(session, sampling, max_tokens=MOST, stop_tokens=codec().stop_tokens)
        while turn.finish is None and turn.num_tokens < until:
            self.engine.step([Work(session)])
        self.accepted += turn.stats.accepted
        fresh = self.plain.open("fresh", tokens, seed=seed)
        wanted = self.plain.submit(fresh, sampling, max_tokens=MOST, stop_tokens=codec().stop_tokens)
        while wanted.finish is None and wanted.num_tokens < turn.num_tokens:
            self.plain.step([Work(fresh)])
        assert wanted.tokens[: turn.num_tokens] == turn.tokens
        self.plain.close(fresh)
        return turn

    def end(self) -> None:
        for engine in (self.engine, self.plain):
            for session in list(engine.sessions.values()):
                engine.close(session)


@pytest.fixture(scope="module")
def prompts() -> Iterator[list[list[int]]]:
    yield [prompt.ids[-200:] for prompt in equal.held_out(20)[::5]]
    drafters.loaded.cache_clear()
    drafters.target_in.cache_clear()


def test_replies_are_the_targets_own_whatever_happens_between_and_in_them(prompts: list[list[int]]) -> None:
    asked: set[str] = set()
    for seed in range(SEEDS):
        run = Run(seed, prompts)
        for _ in range(ROUNDS):
            run.live()
        run.end()
        assert run.accepted > 0
        asked |= set(run.proposer.asked)
    assert asked == set(PROPOSERS), "every drafter had its turn"
    assert drafters.target_in(EXACT).pool.pages_in_use == 0
