"""Every drafter says what the target alone says, and so does one that gives way to another inside a turn."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from engine.engine import Engine
from engine.interfaces import Draft, Proposer
from engine.policy import FixedPolicy
from engine.proposers.cascade import Cascade, CascadeDraft
from engine.proposers.none import NoProposer
from engine.proposers.pairs.proposer import PairProposer
from engine.proposers.recycling import RecyclingProposer
from engine.proposers.suffix import SuffixProposer
from engine.sampling import Sampling
from engine.tree import DraftTree
from tests.engine import checkpoints, equal, small

SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.3, seed=1),
    Sampling(temperature=0.8, seed=2, top_p=0.9),
    Sampling(temperature=1.3, seed=3, repetition_penalty=1.2),
]


class Switching(Cascade):
    """Asks one part a step, drawn at random; the others go on observing."""

    def __init__(self, parts: Sequence[Proposer]) -> None:
        super().__init__(parts)
        self._random = random.Random(0)
        self.asked: set[str] = set()

    def _propose(self, draft: Draft, root: int, noise: Tensor | None, budget: int) -> DraftTree:
        assert isinstance(draft, CascadeDraft)
        at = self._random.randrange(len(self.parts))
        self.asked.add(self.parts[at].name)
        return self.parts[at].propose([draft.parts[at]], [root], [noise], budget)[0]


def head() -> PairProposer:
    return small.models()[1]


DRAFTERS = {
    "suffix": lambda: SuffixProposer(),
    "recycling": lambda: RecyclingProposer(),
    "suffix+recycling": lambda: Cascade([SuffixProposer(0), RecyclingProposer(1)]),
    "suffix+eagle3": lambda: Cascade([SuffixProposer(0), head()]),
    "switching": lambda: Switching([NoProposer(), SuffixProposer(1), RecyclingProposer(2), head()]),
}


def prompts(count: int) -> list[list[int]]:
    """Some that repeat themselves, so that something is drafted from the first step on."""
    rng = random.Random(4)
    tunes = [[rng.randrange(checkpoints.VOCAB) for _ in range(rng.randint(3, 9))] for _ in range(count)]
    return [(tune * 6)[: rng.randint(12, 40)] for tune in tunes]


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("name", DRAFTERS)
def test_replies_are_those_of_the_target_alone(name: str, coupled: bool) -> None:
    target, _ = small.models()
    proposer = DRAFTERS[name]()
    alone = Engine(target, NoProposer(), FixedPolicy(1))
    drafting = Engine(target, proposer, FixedPolicy(12), coupled=coupled)
    drafted = 0
    for prompt in prompts(3):
        bases = [equal.warm(engine, prompt) for engine in (alone, drafting)]
        for sampling in SAMPLINGS:
            count = equal.Count("small", name)
            said = equal.reply(drafting, bases[1], sampling, max_tokens=32, count=count)
            assert said == equal.reply(alone, bases[0], sampling, max_tokens=32)
            drafted += count.lengths.total()
        for engine, base in zip((alone, drafting), bases, strict=True):
            engine.close(base)
    assert drafted > 20
    assert target.pool.pages_in_use == 0 and head().pool.pages_in_use == 0
    if isinstance(proposer, Switching):
        assert proposer.asked == {"none", "suffix", "recycling", "eagle3"}


def test_the_noise_that_a_drafter_is_given_is_the_targets_own() -> None:
    """Row 0 belongs to the root's children, scaled by the temperature. (That a drafter which is the target itself
    is then always right is tested with the draft model.)
    """
    target, _ = small.models()
    seen: list[Tensor] = []

    class Listening(SuffixProposer):
        noise_levels = 3

        def propose(
            self, drafts: Sequence[Draft], roots: Sequence[int], noise: Sequence[Tensor | None], budget: int
        ) -> list[DraftTree]:
            assert noise[0] is not None
            seen.append(noise[0].clone())
            return super().propose(drafts, roots, noise, budget)

    engine = Engine(target, Listening(), FixedPolicy(4), coupled=True)
    session = engine.open("call", [1, 2, 3, 1, 2])
    turn = engine.submit(session, Sampling(temperature=0.7, seed=5), max_tokens=12)
    at = []
    while turn.finish is None:
        at.append(turn.num_tokens)
        engine.step([equal.Work(session)])
    asked = at[1:]  # the first token comes before drafting begins
    assert len(seen) == len([index for index in asked if turn.max_tokens - index > 1])
    for index, noise in zip(asked, seen, strict=False):
        assert noise.shape == (3, target.vocab_size)
        torch.testing.assert_close(noise, 0.7 * engine.sampler.noise(5, index, 3))
    engine.close(session)
