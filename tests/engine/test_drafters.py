"""Every drafter says what the target alone says, and so does one that gives way to another inside a turn."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from engine import engine as engine_module
from engine.engine import Engine
from engine.interfaces import Draft
from engine.policy import FixedPolicy
from engine.proposers.cascade import Cascade
from engine.proposers.none import NoProposer
from engine.proposers.pairs.proposer import PairProposer
from engine.proposers.recycling import RecyclingProposer
from engine.proposers.suffix import SuffixProposer
from engine.proposers.table import PROPOSERS, parse
from engine.sampling import Sampling
from engine.text.call_form import HERMES
from engine.tree import DraftTree
from tests.engine import checkpoints, drafters, equal, small
from tests.engine.drafters import Switching
from tests.engine.equal import Ask, Count, Reply

SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.3, seed=1),
    Sampling(temperature=0.8, seed=2, top_p=0.9),
    Sampling(temperature=1.3, seed=3, repetition_penalty=1.2),
]


def head() -> PairProposer:
    return small.models()[1]


SMALL = {
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
@pytest.mark.parametrize("name", SMALL)
def test_replies_are_those_of_the_target_alone(name: str, coupled: bool) -> None:
    target, _ = small.models()
    proposer = SMALL[name]()
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
        assert set(proposer.asked) == {"none", "suffix", "recycling", "eagle3"}


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


Turns = dict[int, tuple[list[int], dict[Ask, Reply]]]
EXACT = torch.float64


@pytest.fixture(scope="module")
def turns() -> Iterator[Turns]:
    """By number, two held-out prompts and what the embedded model alone says to them. In one, drafters draft chains."""
    asked = {number: prompt.ids for number, prompt in zip((1, 4), equal.held_out(14)[12:], strict=True)}
    yield {
        number: (prompt, drafters.alone(EXACT, prompt, drafters.asks(number, 1)[:3]))
        for number, prompt in asked.items()
    }
    drafters.loaded.cache_clear()
    drafters.target_in.cache_clear()


def count_turns(name: str, turns: Turns) -> Count:
    counts = [
        drafters.compare(name, EXACT, number, prompt, wanted, drafters.drafter(name, EXACT, number))
        for number, (prompt, wanted) in turns.items()
    ]
    return drafters.merged([counts])[0]


@pytest.mark.parametrize("name", drafters.DRAFTERS)
def test_the_embedded_model_says_the_same_with_every_drafter(name: str, turns: Turns) -> None:
    """A slice of the equality suite, with the trained checkpoints."""
    count = count_turns(name, turns)
    assert count.differences == []
    assert drafters.idle([count]) == []
    assert count.replies == sum(len(wanted) for _, wanted in turns.values())
    assert drafters.target_in(EXACT).pool.pages_in_use == 0


def test_the_turns_of_the_slice_differ(turns: Turns) -> None:
    asked = [ask for _, wanted in turns.values() for ask in wanted]
    assert {ask.coupled for ask in asked} == {True, False}
    assert {ask.nodes for ask in asked} == {5, 16, 60}
    assert {drafters.is_chain(number) for number in turns} == {True, False}
    assert any(reply.text.startswith(HERMES.mark) for _, wanted in turns.values() for reply in wanted.values())


def test_every_drafter_of_the_table_is_in_the_suite() -> None:
    assert set(PROPOSERS) - {"none"} <= set(drafters.DRAFTERS)
    assert {name for name, _ in parse(drafters.DRAFTERS[drafters.SWITCHING])} == set(PROPOSERS)


def test_the_suite_finds_drafted_tokens_that_are_accepted_too_kindly(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "accept", equal.too_kind)
    for number in turns:
        assert count_turns("suffix+eagle3", {number: turns[number]}).differences


def test_a_row_in_which_nothing_was_drafted_or_accepted_is_missed() -> None:
    rows = [Count("x", "y"), Count("x", "y"), Count("x", "y"), Count("x", drafters.SWITCHING)]
    rows[1].lengths[0], rows[2].lengths[3], rows[3].lengths[1] = 5, 1, 1
    rows[3].asked.update(set(PROPOSERS) - {"mtp"})
    assert drafters.idle(rows) == [
        "x, y: nothing was drafted",
        "x, y: no drafted token was accepted",
        "x, switching: mtp was never asked",
    ]
