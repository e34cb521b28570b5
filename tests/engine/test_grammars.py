"""Grammars in the one loop: what is said keeps to them, however it was drafted, and one that fails ends its own reply
only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.engine import Engine, Work
from engine.models.decoder import Decoder, load_target
from engine.policy import FixedPolicy
from engine.proposers.none import NoProposer
from engine.sampling import Sampling
from engine.session import Finish, Turn
from engine.tree import FORCED, DraftTree
from tests.engine import checkpoints
from tests.engine.oracle import OracleProposer

PROMPT = (5, 17, 3, 99, 42)
LENGTH = 24


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    directory: Path = tmp_path_factory.mktemp("target")
    checkpoints.write("llama-tied", directory)
    return load_target(directory, dtype=torch.float64, pool_tokens=2048)


@dataclass
class Every:
    """At reply index i only tokens of ``classes[i % len]`` may come. breaks_at: index at which asking it raises."""

    classes: Sequence[Sequence[int]]
    breaks_at: int = 10_000
    said: list[int] = field(default_factory=list)
    narrowed: int = 0

    def at(self, index: int) -> list[int]:
        return list(self.classes[index % len(self.classes)])

    def mask(self, tree: DraftTree) -> Tensor:
        if len(self.said) >= self.breaks_at:
            raise RuntimeError("a fault in a grammar")
        mask = torch.zeros(len(tree), checkpoints.VOCAB, dtype=torch.bool)
        for node, depth in enumerate(tree.depth.tolist()):
            mask[node, self.at(len(self.said) + depth)] = True
        return mask

    def narrow(self, tree: DraftTree, budget: int, room: int) -> DraftTree:
        keep = [
            node
            for node in range(1, len(tree))
            if all(
                int(tree.tokens[up]) in self.at(len(self.said) + int(tree.depth[up]) - 1)
                for up in tree.mask[node].nonzero().flatten().tolist()
                if up
            )
        ]
        self.narrowed += len(tree) - 1 - len(keep)
        kept = tree.subtree(keep)
        forced = self.at(len(self.said))
        if len(forced) > 1 or room < 1 or budget < 2 or any(int(t) == forced[0] for t in kept.tokens[1:]):
            return kept
        return DraftTree.of([int(tree.tokens[0]), forced[0]], [-1, 0], [1.0, 1.0], FORCED)

    def consume(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if token not in self.at(len(self.said)):
                raise ValueError("may not come")
            self.said.append(token)


def reply(engine: Engine, grammar: Every | None, sampling: Sampling, forced: Sequence[int] = ()) -> Turn:
    session = engine.open("call", PROMPT, seed=3)
    turn = engine.submit(session, sampling, max_tokens=LENGTH, grammar=grammar, forced=forced)
    while turn.finish is None:
        engine.step([Work(session)])
    turn.said = turn.tokens  # type: ignore[attr-defined]
    engine.close(session)
    return turn


CLASSES = [list(range(60)), [7], list(range(30, 128, 3)), [11], [12]]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_reply_keeps_to_its_grammar_and_to_what_it_would_be_without_a_draft(target, temperature):
    sampling = Sampling(temperature)
    plain = reply(Engine(target, NoProposer(), FixedPolicy(1)), Every(CLASSES), sampling)
    assert all(token in Every(CLASSES).at(index) for index, token in enumerate(plain.said))
    free = reply(Engine(target, NoProposer(), FixedPolicy(1)), None, sampling)
    assert free.said != plain.said
    assert plain.stats.steps < LENGTH, "what had to come was drafted"
    for nodes in (3, 16, 60):
        oracle = OracleProposer(checkpoints.VOCAB, nodes)
        oracle.reference = [*PROMPT, *plain.said]
        grammar = Every(CLASSES)
        drafted = reply(Engine(target, oracle, FixedPolicy(nodes)), grammar, sampling)
        assert drafted.said == plain.said and grammar.said == plain.said[: len(grammar.said)]
        assert drafted.stats.accepted > 0 and (nodes < 16 or grammar.narrowed > 0)


def test_forced_tokens_are_the_grammars_too(target):
    engine = Engine(target, NoProposer(), FixedPolicy(1))
    plain = reply(engine, Every(CLASSES), Sampling())
    resumed = reply(engine, Every(CLASSES), Sampling(), forced=plain.said[:7])
    assert resumed.said == plain.said
    session = engine.open("call", PROMPT)
    failed = engine.submit(session, Sampling(), max_tokens=9, grammar=Every(CLASSES), forced=[127, 7])
    assert failed.finish is Finish.FAILED and "may not come" in str(failed.error)
    assert session.turn is None and failed.tokens == [127, 7], "they may have been told"
    engine.close(session)


@pytest.mark.parametrize("nodes", [1, 16])
def test_what_a_grammar_raises_ends_its_own_reply_only(target, nodes):
    oracle = OracleProposer(checkpoints.VOCAB, 1)
    oracle.reference = [*PROMPT, *reply(Engine(target, NoProposer(), FixedPolicy(1)), Every(CLASSES), Sampling()).said]
    engine = Engine(target, oracle, FixedPolicy(nodes))
    good, bad = engine.open("good", PROMPT, seed=3), engine.open("bad", PROMPT, seed=3)
    turns = [
        engine.submit(good, Sampling(), max_tokens=LENGTH, grammar=Every(CLASSES)),
        engine.submit(bad, Sampling(), max_tokens=LENGTH, grammar=Every(CLASSES, breaks_at=4)),
    ]
    errors = []
    while any(turn.finish is None for turn in turns):
        errors += [step.error for step in engine.step([Work(good), Work(bad)]) if step.error is not None]
    assert [turn.finish for turn in turns] == [Finish.LENGTH, Finish.FAILED]
    (error,) = errors
    assert "a fault in a grammar" in str(error)
    assert turns[0].tokens == oracle.reference[len(PROMPT) :] and bad.turn is None
    engine.append(bad, PROMPT)  # it can be talked to all the same
    engine.close(good)
    engine.close(bad)
    assert target.pool.pages_in_use == 0
