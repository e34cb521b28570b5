"""Windows that share a pass: each one's output, and every call's text, is what it would be alone."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.engine import Engine, Work
from engine.interfaces import Output, Proposer, Tap, Window
from engine.models.decoder import Decoder
from engine.policy import FixedPolicy
from engine.proposers.none import NoProposer
from engine.sampling import Sampling
from engine.session import Session, Turn
from engine.tree import DraftTree
from tests.engine import checkpoints
from tests.engine.loading import load
from tests.engine.rounding import differ_by_rounding
from tests.engine.small import models

SHAPES = ("llama-tied", "qwen2-biases", "qwen3-qk-norm")


@cache
def target(shape: str) -> Decoder:
    with tempfile.TemporaryDirectory() as name:
        checkpoints.write(shape, Path(name))
        return load(Path(name), torch.float64, pool_tokens=2048, page_tokens=4)


def random_tree(rng: random.Random) -> DraftTree:
    """A single node, a chain or a tree."""
    n = rng.choice([1, 1, 2, 5, 9])
    parents = [-1, *(rng.randrange(node) if rng.random() < 0.7 else node - 1 for node in range(1, n))]
    tokens, taken = [], set()
    for parent in parents:
        tokens.append(next(t for t in iter(lambda: rng.randrange(checkpoints.VOCAB), -1) if (parent, t) not in taken))
        taken.add((parent, tokens[-1]))
    return DraftTree.of(tokens, parents, [1.0] * n, 0)


@given(st.sampled_from(SHAPES), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_outputs_are_those_of_each_window_alone(shape: str, seed: int) -> None:
    rng, model = random.Random(seed), target(shape)
    taps = rng.choice([(), (0, 2), (1, model.num_layers, "norm"), ("norm",)])
    windows = []
    for _ in range(rng.randrange(1, 6)):
        cache = model.new_cache()
        if rng.random() < 0.8:
            known = DraftTree.chain(torch.randint(checkpoints.VOCAB, (rng.randrange(1, 30),)))
            cache.reserve(len(known))
            model.forward([Window(cache, known, "none")])
            cache.commit(list(range(len(known))))
        tree = random_tree(rng)
        cache.reserve(len(tree))
        windows.append(Window(cache, tree, rng.choice(["all", "last", "none"])))
    try:
        alone = [model.forward([window], taps)[0] for window in windows]
        written = model.pool.kv.clone()
        for window in windows:  # what is written there is written by the shared pass
            length = window.cache.length
            model.pool.kv[:, :, window.cache.slots(length, length + len(window.tree))] = 0.0
        together = model.forward(windows, taps)
        torch.testing.assert_close(model.pool.kv, written, rtol=0, atol=1e-9)
        for one, other, window in zip(alone, together, windows, strict=True):
            assert (one.logits is None) == (other.logits is None) == (window.logits == "none")
            for mine, theirs in ((one.logits, other.logits), (one.features, other.features)):
                if mine is not None:
                    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)
    finally:
        for window in windows:
            window.cache.close()


def said_alone_and_beside(
    rng: random.Random, dtype: torch.dtype, drafted: bool
) -> list[tuple[list[int], Sampling, list[int], list[int]]]:
    """(prompt, sampling, reply alone, reply beside the others) of a few calls."""
    model, drafter = models(dtype)
    proposer: Proposer = drafter if drafted else NoProposer()
    calls = [
        [rng.randrange(checkpoints.VOCAB) for _ in range(rng.randrange(2, 25))] for _ in range(rng.randrange(2, 5))
    ]
    asked = [Sampling(rng.choice([0.0, 0.9]), seed=rng.randrange(1 << 30)) for _ in calls]
    limits = [rng.randrange(1, 12) for _ in calls]

    def begun(engine: Engine, number: int) -> tuple[Session, Turn]:
        session = engine.open(f"{number}", calls[number], seed=number)
        return session, engine.submit(session, asked[number], max_tokens=limits[number])

    engine = Engine(model, proposer, FixedPolicy(rng.choice([4, 9]) if drafted else 1))
    alone = []
    for number in range(len(calls)):
        session, turn = begun(engine, number)
        while turn.finish is None:
            engine.step([Work(session)])
        alone.append(turn.tokens)
        engine.close(session)
    running = [begun(engine, number) for number in range(len(calls))]
    while any(turn.finish is None for _, turn in running):
        engine.step([Work(session, max_tokens=rng.choice([3, 64])) for session, turn in running if rng.random() < 0.7])
    beside = [turn.tokens for _, turn in running]
    for session, _ in running:
        engine.close(session)
    assert model.pool.pages_in_use == 0
    return list(zip(calls, asked, alone, beside, strict=True))


@pytest.mark.parametrize("drafted", [False, True], ids=["plain", "eagle3"])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_text_does_not_depend_on_who_shares_the_step(drafted: bool, seed: int) -> None:
    for _, _, alone, beside in said_alone_and_beside(random.Random(seed), torch.float64, drafted):
        assert beside == alone


@pytest.mark.parametrize("drafted", [False, True], ids=["plain", "eagle3"])
def test_in_float32_only_what_rounding_decides_depends_on_who_shares_the_step(drafted: bool) -> None:
    """Random weights are unsure of every token, so that there are many decisions that could go another way."""
    rng, replies, close = random.Random(7), 0, 0
    for _ in range(40):
        for prompt, sampling, alone, beside in said_alone_and_beside(rng, torch.float32, drafted):
            replies += 1
            if beside != alone:
                close += 1
                assert differ_by_rounding(models()[0], prompt, alone, beside, sampling), (prompt, alone, beside)
    assert replies > 80 and close < replies / 20


def test_the_comparison_in_float32_finds_calls_that_hear_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = models(torch.float32)
    forward = model.forward

    def leaking(windows: Sequence[Window], taps: Sequence[Tap] = ()) -> list[Output]:
        outputs = forward(windows, taps)
        for one, other in pairwise(output.logits for output in outputs):
            if one is not None and other is not None:
                one += 0.01 * other[-1]
        return outputs

    monkeypatch.setattr(model, "forward", leaking)
    rng = random.Random(7)
    found = [said for _ in range(40) for said in said_alone_and_beside(rng, torch.float32, False)]
    different = [(*said, prompt, sampling) for prompt, sampling, *said in found if said[0] != said[1]]
    monkeypatch.undo()
    assert any(
        not differ_by_rounding(models()[0], prompt, alone, beside, sampling)
        for alone, beside, prompt, sampling in different
    )
