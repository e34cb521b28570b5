"""Replies that share steps say what they say alone, whoever drafts; and each is counted once."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import batching, harness
from bench.drafters.counts import HELD_OUT, prompts_of
from bench.drafters.methods import Method
from engine.sampling import Sampling

MODEL = Path("models/receptionist")


@pytest.fixture(scope="module")
def made() -> list[batching.Contender]:
    return batching.contenders(MODEL, ["EAGLE-3, 4 nodes", batching.PLAIN], calls=3)


def test_contenders_say_the_same_at_every_load(made: list[batching.Contender]) -> None:
    prompts = prompts_of(HELD_OUT, Method("", "", MODEL), 2)
    replies = batching.Replies(prompts, Sampling(temperature=0.7), harness.stop_tokens(MODEL))
    found = [batching.run(one, replies, calls, 1.0, first=0) for one, calls in zip(made, (3, 1), strict=True)]
    different, compared = batching.differing(made)
    assert (different, compared > 0) == (0, True)
    assert all(not one.engine.sessions for one in made)
    drafted, plain = found
    assert set(plain.modes) == {"plain"}
    assert drafted.modes["eagle3"] > 0


def test_a_reply_said_otherwise_is_found(made: list[batching.Contender]) -> None:
    one, other = (batching.Contender(c.name, c.engine) for c in made)
    one.texts, other.texts = {0: (1, 2), 1: (3,), 2: (4,)}, {0: (1, 2), 1: (5,)}
    assert batching.differing([one, other]) == (1, 2)


def test_ratios_are_of_the_same_round() -> None:
    runs = [("ours", 30.0), ("plain", 10.0), ("ours", 8.0), ("plain", 8.0), ("ours", 40.0), ("plain", 20.0)]
    found = [batching.Found(name, 2, speed, {}) for name, speed in runs]
    assert batching.ratios(found, "ours", 2) == (2.0, 1.0, 3.0)
