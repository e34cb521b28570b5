"""Medusa heads against slow ones, their alignment with the text, and replies with and without them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.engine import Engine, Work
from engine.interfaces import Draft, Window
from engine.models.decoder import Decoder
from engine.policy import FixedPolicy
from engine.proposers.medusa.choices import best_first
from engine.proposers.medusa.load import load
from engine.proposers.medusa.proposer import MedusaDraft, MedusaProposer
from engine.proposers.none import NoProposer
from engine.proposers.setup import Setup
from engine.sampling import Sampling
from engine.session import Session
from engine.tree import DraftTree
from tests.engine import checkpoints, equal, small
from tests.engine.proposers.medusa_heads import WIDTH, random_heads, slow_log_probs, write
from tests.engine.proposers.test_eagle3 import path_to

ROOT = 9


@pytest.fixture(scope="module")
def target() -> Decoder:
    return small.models()[0]


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return random_heads(3)


@pytest.fixture(scope="module")
def proposer(target: Decoder, tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> MedusaProposer:
    directory = write(tmp_path_factory.mktemp("heads"), tensors)
    return load(directory, Setup(target, directory, 64, source=2))


def states(count: int, seed: int = 7) -> Tensor:
    """[count, 1, H]"""
    return torch.randn(count, 1, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draft_tree(proposer: MedusaProposer, features: Tensor, budget: int, noise: Tensor | None = None) -> DraftTree:
    draft = proposer.start()
    proposer.observe(draft, torch.arange(features.shape[0]), features, None)
    tree = proposer.propose([draft], [ROOT], [noise], budget)[0]
    tree.check()
    assert len(tree) <= budget and int(tree.tokens[0]) == ROOT
    return tree


def assert_scored(tree: DraftTree, log_probs: Sequence[Tensor]) -> None:
    """Every node's score is the product of what the heads say along its path."""
    for node in range(1, len(tree)):
        path = path_to(tree, node)
        wanted = sum(float(row[token]) for row, token in zip(log_probs, path, strict=False))
        assert float(tree.score[node].log()) == pytest.approx(wanted, abs=1e-4)


def best_paths(log_probs: Sequence[Tensor], count: int) -> set[tuple[int, ...]]:
    """By brute force: all paths of each head's ``count`` best tokens, of which a tree can hold no others."""
    tops = [row.topk(count).indices.tolist() for row in log_probs]
    paths = [path for depth in range(1, len(tops) + 1) for path in itertools.product(*tops[:depth])]

    def score(path: tuple[int, ...]) -> float:
        return sum(float(row[token]) for row, token in zip(log_probs, path, strict=False))

    return set(sorted(paths, key=score, reverse=True)[:count])


def test_head_i_guesses_the_token_i_plus_2_behind_the_state(target: Decoder, tmp_path: Path) -> None:
    """Worked by hand: positions 0, 1, 2 hold tokens, and from the state at 2 the target chose the root, at 3. So head 0
    guesses position 4, the root's child, and head 1 position 5. These heads say 100 + the position that they guess:
    the state at position p is the p-th unit vector, and head i answers it with 100 + p + 2 + i."""
    heads = {name: torch.zeros_like(tensor) for name, tensor in random_heads(3).items()}
    for i, p in itertools.product(range(3), range(3)):
        heads[f"{i}.1.weight"][100 + p + 2 + i, p] = 50.0
    proposer = load(write(tmp_path, heads), Setup(target, tmp_path, 64))
    assert proposer.taps == ("norm",)
    features = torch.eye(WIDTH, dtype=torch.float64)[:3].unsqueeze(1)
    tree = draft_tree(proposer, features, 4)
    assert tree.tokens.tolist() == [ROOT, 104, 105, 106]
    assert tree.parents.tolist() == [-1, 0, 1, 2]
    assert tree.causal


@pytest.mark.parametrize("budget", [2, 3, 6, 13])
def test_the_tree_is_the_most_likely_one(proposer: MedusaProposer, tensors: dict[str, Tensor], budget: int) -> None:
    for seed in range(5):
        features = states(4, seed)
        log_probs = slow_log_probs(tensors, features[-1, 0])
        tree = draft_tree(proposer, features, budget)
        assert len(tree) == budget
        assert {tuple(path_to(tree, node)) for node in range(1, budget)} == best_paths(log_probs, budget - 1)
        assert_scored(tree, log_probs)
        assert tree.source.tolist() == [-1] + [2] * (budget - 1)


@pytest.mark.parametrize("budget", [-1, 0, 1, 2, 60, 400])
def test_a_tree_keeps_its_budget(
    target: Decoder, proposer: MedusaProposer, tensors: dict[str, Tensor], tmp_path: Path, budget: int
) -> None:
    features = states(1)
    tree = draft_tree(proposer, features, max(1, budget))
    assert len(tree) == max(1, budget)
    assert_scored(tree, slow_log_probs(tensors, features[-1, 0]))
    chain = draft_tree(
        load(write(tmp_path, tensors), Setup(target, tmp_path, 64, chain=True)), features, max(1, budget)
    )
    best = [int(row.argmax()) for row in slow_log_probs(tensors, features[-1, 0])]
    assert chain.causal and chain.tokens.tolist() == [ROOT, *best[: max(0, budget - 1)]]


def test_a_tree_ends_where_there_is_no_more_to_guess() -> None:
    assert len(best_first([[-0.1, -3.0], [-0.2, -2.0]], 50)) == 2 + 2 * 2
    assert [tuple(node) for node in best_first([[-0.1, -3.0], [-0.2, -2.0]], 3)] == [(0, 0, 0), (1, 1, 0), (1, 1, 1)]


def test_a_fixed_tree_is_drafted_in_its_order(proposer: MedusaProposer, tensors: dict[str, Tensor]) -> None:
    choices = [[0], [0, 0], [1], [0, 1], [4], [0, 0, 2], [1, 0]]
    features = states(2)
    log_probs = slow_log_probs(tensors, features[-1, 0])
    ranked = [row.sort(descending=True).indices.tolist() for row in log_probs]
    for budget in (2, 5, 8, 60):
        tree = draft_tree(MedusaProposer(proposer.heads, choices=choices), features, budget)
        wanted = [[ranked[level][rank] for level, rank in enumerate(choice)] for choice in choices[: budget - 1]]
        assert [path_to(tree, node) for node in range(1, len(tree))] == wanted
        assert_scored(tree, log_probs)


@pytest.mark.parametrize(
    "choices",
    [
        [],
        [()],
        [(0,), (0,)],
        [(0, 0), (0,)],
        [(1,), (0, 0)],
        [(0,), (0, -1)],
        [(0,) * d for d in (1, 2, 3, 4)],
        [(211,)],
    ],
)
def test_choices_that_are_no_tree_of_these_heads_are_refused(
    proposer: MedusaProposer, choices: list[tuple[int, ...]]
) -> None:
    with pytest.raises(ValueError, match="choice"):
        MedusaProposer(proposer.heads, choices=choices)


@pytest.mark.parametrize("levels", [1, 2, 3, 8])
def test_noise_is_added_to_the_logits_of_its_level(
    proposer: MedusaProposer, tensors: dict[str, Tensor], levels: int
) -> None:
    noise = 3 * torch.randn(levels, checkpoints.VOCAB, generator=torch.Generator().manual_seed(levels))
    before, features = noise.clone(), states(3)
    tree = draft_tree(proposer, features, 9, noise)
    log_probs = slow_log_probs(tensors, features[-1, 0], noise=noise)
    assert {tuple(path_to(tree, node)) for node in range(1, 9)} == best_paths(log_probs, 8)
    assert_scored(tree, log_probs)
    assert torch.equal(noise, before), "it is the target's too"
    assert proposer.noise_levels == 4


def test_rewinds_and_forks(proposer: MedusaProposer) -> None:
    features = states(5)
    draft = proposer.start()
    assert len(proposer.propose([draft], [ROOT], [None], 8)[0]) == 1, "nothing was observed"
    proposer.observe(draft, torch.arange(5), features, None)
    assert draft.state is not None and draft.state.untyped_storage().nbytes() == WIDTH * 8, "not all of the prefill"
    child = draft.fork()
    child.truncate(7)
    child.truncate(5)
    whole = draft_tree(proposer, features, 8)
    for same in (draft, child):
        assert proposer.propose([same], [ROOT], [None], 8)[0].tokens.tolist() == whole.tokens.tolist()
    child.truncate(3)
    assert (draft.length, child.length) == (5, 3)
    assert len(proposer.propose([child], [ROOT], [None], 8)[0]) == 1, "the state at position 2 is not known any more"
    proposer.observe(child, torch.arange(1), states(1, 8), None)
    trees = proposer.propose([draft, child], [ROOT, ROOT], [None, None], 8)
    assert trees[0].tokens.tolist() == whole.tokens.tolist()
    assert trees[1].tokens.tolist() == draft_tree(proposer, states(1, 8), 8).tokens.tolist()
    draft.close()
    draft.close()
    assert draft.length == 0 and draft.state is None and child.length == 4


class Watched(MedusaProposer):
    """Compares the state that it drafts from with one computed anew from the session's log."""

    session: Session
    compared = 0

    def propose(
        self, drafts: Sequence[Draft], roots: Sequence[int], noise: Sequence[Tensor | None], budget: int
    ) -> list[DraftTree]:
        (draft,), target, log = drafts, small.models()[0], self.session.tokens
        assert isinstance(draft, MedusaDraft) and draft.length == len(log) - 1 and roots[0] == log[-1]
        cache, known = target.new_cache(), DraftTree.chain(torch.tensor(log[:-1]))
        cache.reserve(len(known))
        wanted = target.forward([Window(cache, known, "none")], self.taps)[0].features
        cache.close()
        assert wanted is not None and draft.state is not None
        torch.testing.assert_close(draft.state, wanted[-1], atol=1e-5, rtol=0)
        self.compared += 1
        return super().propose(drafts, roots, noise, budget)


@pytest.mark.parametrize("seed", range(3))
def test_it_drafts_from_the_state_before_the_root_whatever_happened(proposer: MedusaProposer, seed: int) -> None:
    watched, rng, accepted = Watched(proposer.heads), random.Random(seed), 0
    engine = Engine(small.models()[0], watched, FixedPolicy(60))
    session = engine.open("0", [rng.randrange(checkpoints.VOCAB) for _ in range(9)])
    for number in range(1, 9):
        if rng.random() < 0.5:
            engine.append(session, [rng.randrange(checkpoints.VOCAB) for _ in range(rng.randint(1, 4))])
        forced = [rng.randrange(checkpoints.VOCAB) for _ in range(rng.choice([0, 0, 1, 3]))]
        turn = engine.submit(session, Sampling(rng.choice([0.0, 0.9])), max_tokens=10, forced=forced)
        watched.session = session
        for _ in range(rng.randint(2, 12)):
            accepted += sum(step.accepted for step in engine.step([Work(session, max_tokens=4)]))
        engine.cancel(turn)
        engine.truncate(session, rng.randint(len(session.tokens) - 6, len(session.tokens)))
        if rng.random() < 0.4:
            session = engine.fork(session, str(number))
    for name in list(engine.sessions):
        engine.close(engine.sessions[name])
    assert watched.compared > 20 and accepted > 0


SAMPLINGS = [
    Sampling(),
    Sampling(0.3, seed=1),
    Sampling(0.8, seed=2, top_p=0.9),
    Sampling(1.3, seed=3, repetition_penalty=1.2),
]


@pytest.mark.parametrize("form", ["tree", "chain", "fixed"])
def test_text_is_the_same_with_and_without_it(target: Decoder, proposer: MedusaProposer, form: str) -> None:
    choices = {"tree": None, "chain": [(0,), (0, 0), (0, 0, 0)], "fixed": [(i,) for i in range(40)] + [(0, 0)]}[form]
    alone = Engine(target, NoProposer(), FixedPolicy(1))
    drafting = Engine(target, MedusaProposer(proposer.heads, choices=choices), FixedPolicy(60), coupled=True)
    count = equal.Count("small", "medusa")
    for prompt in equal.random_prompts(3, seed=8):
        bases = [equal.warm(engine, prompt, 16) for engine in (alone, drafting)]
        for sampling in SAMPLINGS:
            wanted = equal.reply(alone, bases[0], sampling, max_tokens=24)
            assert equal.reply(drafting, bases[1], sampling, max_tokens=24, count=count) == wanted
        for engine, base in zip((alone, drafting), bases, strict=True):
            engine.close(base)
    assert count.lengths.total() > 50
    assert form == "chain" or max(count.lengths) > 0, "random weights accept by chance"
    assert target.pool.pages_in_use == 0
