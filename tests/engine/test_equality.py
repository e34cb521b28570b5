"""Text equality with transformers, greedy and over whole replies, whatever tree the proposer draws.

In float64 throughout, where logits of different window widths agree far below any gap that decides a token; our float64
mode rounds where transformers rounds (norms and rotary tables in float32).
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from engine.engine import Engine, Work
from engine.interfaces import Target
from engine.policy import FixedPolicy
from engine.sampling import Sampling
from tests.engine import checkpoints
from tests.engine.loading import load
from tests.engine.oracle import OracleProposer

REPLY = 40
TREES = [(1, False), (5, True), (16, False), (60, False)]
"""(nodes, chain): plain decoding, a chain of four drafted tokens, trees of 16 and 60 nodes."""


@pytest.fixture(scope="module", params=list(checkpoints.CONFIGS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Target, PreTrainedModel]:
    directory: Path = tmp_path_factory.mktemp(request.param)
    reference = checkpoints.write(request.param, directory)
    return load(directory, torch.float64), reference


def greedy(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    """transformers' own greedy reply, without an end token so that its length is known."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=REPLY,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return output[0, len(prompt) :].tolist()


def reply(engine: Engine, prompt: list[int], sampling: Sampling, chunk: int = 512) -> tuple[list[int], Counter[int]]:
    """(the reply, how often each number of accepted tokens occurred)."""
    session = engine.open("call", prompt)
    turn = engine.submit(session, sampling, max_tokens=REPLY)
    lengths: Counter[int] = Counter()
    while turn.finish is None:
        (step,) = engine.step([Work(session, max_tokens=chunk)])
        if step.drafted:
            lengths[step.accepted] += 1
    tokens = turn.tokens
    engine.close(session)
    return tokens, lengths


def test_greedy_text_is_that_of_transformers(pair: tuple[Target, PreTrainedModel]) -> None:
    target, reference = pair
    rng = random.Random(5)
    lengths: Counter[int] = Counter()
    for number in range(40):
        prompt = [rng.randrange(checkpoints.VOCAB) for _ in range(rng.randint(1, 90))]
        wanted = greedy(reference, prompt)
        for nodes, chain in TREES:
            oracle = OracleProposer(checkpoints.VOCAB, number, chain=chain)
            oracle.reference = prompt + wanted
            engine = Engine(target, oracle, FixedPolicy(nodes))
            got, accepted = reply(engine, prompt, Sampling(), chunk=rng.choice([7, 512]))
            assert got == wanted, f"prompt {number}, {nodes} nodes"
            if (nodes, chain) == (16, False):
                lengths += accepted
    assert set(range(12)) <= set(lengths), "the oracle must make every accepted length occur"


def test_sampled_text_does_not_depend_on_the_tree(pair: tuple[Target, PreTrainedModel]) -> None:
    target, _ = pair
    rng = random.Random(9)
    filters = [
        Sampling(0.7, seed=1),
        Sampling(1.0, top_p=0.9, seed=2),
        Sampling(1.3, top_k=20, repetition_penalty=1.2, seed=3),
        Sampling(0.9, min_p=0.05, seed=4),
    ]
    for number, sampling in enumerate(filters * 3):
        prompt = [rng.randrange(checkpoints.VOCAB) for _ in range(rng.randint(1, 60))]
        oracle = OracleProposer(checkpoints.VOCAB, number)
        wanted, _ = reply(Engine(target, oracle, FixedPolicy(1)), prompt, sampling)
        oracle.reference = prompt + wanted
        accepted: Counter[int] = Counter()
        for nodes in (5, 16, 60):
            got, lengths = reply(Engine(target, oracle, FixedPolicy(nodes)), prompt, sampling)
            accepted += lengths
            assert got == wanted, f"{sampling}, {nodes} nodes"
        assert max(accepted) >= 3
