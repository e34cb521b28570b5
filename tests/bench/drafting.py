"""What is compared of a small model and the one that was grown of it: the target's choices and the drafter's trees."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.engine import Engine, Work
from engine.interfaces import Proposer
from engine.models.decoder import Decoder, load_target
from engine.policy import FixedPolicy
from engine.proposers.setup import Setup
from engine.proposers.table import load_drafters
from engine.sampling import Sampling
from engine.tree import DraftTree


def load(directory: Path) -> Decoder:
    return load_target(directory, dtype=torch.float32, pool_tokens=1024)


@dataclass(frozen=True)
class Drafted:
    """replies: the target's choices after each prompt. trees: drafted at every step of them but the last."""

    target: Decoder
    proposer: Proposer
    replies: list[list[int]]
    trees: list[DraftTree]


def drafted(directory: Path, kind: str, drafter: Path | None = None) -> Drafted:
    """What a drafter, by default the one in ``directory/kind``, drafts for the target in ``directory``, in float32."""
    target = load(directory)
    proposer = load_drafters(f"{kind}:{drafter or directory / kind}", Setup(target, directory, pool_tokens=1024))
    engine, rng = Engine(target, proposer, FixedPolicy(1)), random.Random(1)
    replies, trees = [], []
    for _ in range(5):
        prompt = [rng.randrange(target.vocab_size) for _ in range(rng.randint(2, 40))]
        session = engine.open("call", prompt)
        turn = engine.submit(session, Sampling(), max_tokens=4)
        while turn.finish is None:
            engine.step([Work(session)])
            if turn.finish is None:
                with torch.inference_mode():
                    trees += proposer.propose([session.draft], [session.tokens[-1]], [None], 16)
        replies.append(session.tokens[len(prompt) :])
        engine.close(session)
    return Drafted(target, proposer, replies, trees)


def assert_drafts_are_the_same(small: Drafted, grown: Drafted) -> None:
    assert small.replies == grown.replies
    assert len(small.trees) == 15
    for one, other in zip(small.trees, grown.trees, strict=True):
        assert len(one) > 3, "a tree was drafted"
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.parents.tolist() == other.parents.tolist()
        torch.testing.assert_close(one.score, other.score, atol=1e-6, rtol=1e-4)
