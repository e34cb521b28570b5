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


def found(calls: int, speeds: dict[str, float], mode: str) -> list[batching.Found]:
    """Two rounds, of which the second is twice as fast for all."""
    return [
        batching.Found(name, calls, speed * times, {mode: 3, "plain": 1})
        for times in (1.0, 2.0)
        for name, speed in speeds.items()
    ]


def test_the_band_of_self_speculation_is_where_it_is_ahead_of_all_and_chosen() -> None:
    names = [batching.OURS, batching.PLAIN, batching.SELF, "EAGLE-3, 4 nodes", "EAGLE-3, 8 nodes"]

    def speeds(*values: float) -> dict[str, float]:
        return dict(zip(names, values, strict=True))

    runs = found(1, speeds(5, 1, 2, 4, 5), "suffix+eagle3") + found(8, speeds(2, 1, 1.5, 1.4, 1.2), "suffix")
    runs += found(16, speeds(2, 1, 1.5, 1.4, 1.2), "plain") + found(32, speeds(2, 2, 1.5, 1.4, 1.2), "suffix")
    text = batching.band(runs, names, [1, 8, 16, 32])
    assert "by the median over rounds: at 8, 16 at a time; in every round: at 8, 16 at a time" in text
    assert "draft with it: at 8, 32 at a time" in text and "**Ahead and chosen: at 8 at a time.**" in text
    assert "**Ahead and chosen: nowhere.**" in batching.band(runs, names, [1, 16, 32])
    assert batching.band(runs, [batching.OURS, batching.PLAIN, batching.SELF], [8]) == ""


def test_a_lead_that_one_round_lacks_is_said_to_be_one_of_the_median() -> None:
    names = [batching.OURS, batching.PLAIN, batching.SELF, "EAGLE-3, 4 nodes"]
    rounds = [(3, 1, 2, 1), (3, 1, 2, 1.5), (3, 1, 0.9, 0.5)]
    runs = [
        batching.Found(name, 4, speed, {"suffix": 1})
        for each in rounds
        for name, speed in zip(names, each, strict=True)
    ]
    assert "rounds: at 4 at a time; in every round: nowhere." in batching.band(runs, names, [4])


def test_ratios_are_of_the_same_round() -> None:
    runs = [("ours", 30.0), ("plain", 10.0), ("ours", 8.0), ("plain", 8.0), ("ours", 40.0), ("plain", 20.0)]
    found = [batching.Found(name, 2, speed, {}) for name, speed in runs]
    assert batching.ratios(found, "ours", 2) == (2.0, 1.0, 3.0)
