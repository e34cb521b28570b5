"""Coupled drafters are given the noise of the very tokens that they guess: the target as its own drafter is always
right, wherever in a reply it drafts and whatever became of the replies before."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from engine.engine import Engine, Work
from engine.interfaces import Target, Window
from engine.models.decoder import Decoder
from engine.policy import FixedPolicy
from engine.proposers.draft_model import DraftModelProposer
from engine.sampling import Sampling, gumbel_noise
from engine.session import Session, Turn
from engine.tree import DraftTree
from tests.engine import checkpoints
from tests.engine.small import models

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
NODES = 5


def engine_of(target: Decoder, *, coupled: bool = True) -> Engine:
    """The target drafts chains for itself."""
    proposer = DraftModelProposer(target, target.vocab_size, chain=True)
    return Engine(target, proposer, FixedPolicy(NODES), coupled=coupled)


def chosen(target: Target, before: Sequence[int], turn: Turn) -> list[int]:
    """What the target alone says at each place of a reply, behind the tokens before it. Every token there is counts
    for the index that its noise is keyed by, chosen or forced, and those of earlier parts do.
    """
    reply = turn.tokens
    cache, chain = target.new_cache(), DraftTree.chain(torch.tensor([*before, *reply]))
    cache.reserve(len(chain))
    with torch.inference_mode():
        logits = target.forward([Window(cache, chain)])[0].logits
    cache.close()
    assert logits is not None
    noise = gumbel_noise(turn.seed, turn.first_index, len(reply), target.vocab_size, target.device)
    return (logits[len(before) - 1 : -1] / turn.sampling.temperature + noise).argmax(-1).tolist()


def all_accepted(
    engine: Engine,
    session: Session,
    sampling: Sampling,
    *,
    count: int,
    forced: Sequence[int] = (),
    first_index: int = 0,
    cancelled_after: int | None = None,
) -> None:
    """A reply whose drafts are all accepted, but for what the end of the reply cuts off, and that says what it must."""
    before = session.tokens.copy()
    turn = engine.submit(session, sampling, max_tokens=count, forced=forced, first_index=first_index)
    drafted = steps = 0
    while turn.finish is None and steps != cancelled_after:
        (step,) = engine.step([Work(session)])
        assert step.error is None
        assert step.accepted == min(step.drafted, len(step.tokens))
        drafted += step.drafted
        steps += 1
    engine.cancel(turn)
    assert drafted > 0
    assert turn.tokens[: len(forced)] == list(forced)
    assert turn.tokens[len(forced) :] == chosen(engine.target, before, turn)[len(forced) :]


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("seed", [None, 5])
def test_behind_forced_tokens_and_earlier_parts_of_the_reply(temperature: float, seed: int | None) -> None:
    target, _ = models()
    engine = engine_of(target)
    for forced, first_index in (([], 0), ([7], 0), ([7, 200, 31], 0), ([], 4), ([8, 8], 9)):
        session = engine.open("call", PROMPT, seed=11)
        all_accepted(
            engine, session, Sampling(temperature, seed=seed), count=12, forced=forced, first_index=first_index
        )
        engine.close(session)
    assert target.pool.pages_in_use == 0


@pytest.mark.parametrize("number", range(6))
def test_in_every_turn_of_a_call(number: int) -> None:
    """Turns that end, are spoken over, rewound to any length and followed by more text; a fork has its own noise."""
    target, _ = models()
    engine, rng = engine_of(target), random.Random(number)
    session = engine.open("call", PROMPT, seed=number)
    for turn in range(4):
        seed = rng.choice([None, None, 3])
        all_accepted(
            engine,
            session,
            Sampling(rng.choice([0.7, 1.3]), seed=seed),
            count=rng.randint(8, 14),
            forced=[rng.randrange(checkpoints.VOCAB) for _ in range(rng.choice([0, 0, 1, 4]))],
            first_index=rng.choice([0, 0, 1, 6]),
            cancelled_after=rng.choice([None, 2, 3]),
        )
        if rng.random() < 0.7:
            engine.truncate(session, len(session.tokens) - rng.randint(1, 9))
        if rng.random() < 0.7:
            engine.append(session, [rng.randrange(checkpoints.VOCAB) for _ in range(rng.randint(1, 5))])
        if rng.random() < 0.3:
            parent, session = session, engine.fork(session, f"fork {turn}", seed=turn)
            engine.close(parent)
    engine.close(session)
    assert target.pool.pages_in_use == 0


def test_it_is_the_noise_that_makes_the_drafts_right() -> None:
    """Without it the same drafter is often wrong, so nothing else can have made the others pass."""
    target, _ = models()
    engine = engine_of(target, coupled=False)
    session = engine.open("call", PROMPT)
    turn = engine.submit(session, Sampling(1.3, seed=5), max_tokens=20)
    accepted = drafted = 0
    while turn.finish is None:
        (step,) = engine.step([Work(session)])
        accepted, drafted = accepted + step.accepted, drafted + step.drafted
    assert accepted < drafted / 2
    assert turn.tokens == chosen(target, PROMPT, turn)
    engine.close(session)
