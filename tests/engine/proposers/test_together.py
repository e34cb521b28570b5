"""Sessions that are drafted for together get the trees that each would get alone."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.interfaces import Draft, Proposer, Window
from engine.models.decoder import Decoder
from engine.proposers.cascade import Cascade
from engine.proposers.suffix import SuffixProposer
from engine.tree import DraftTree
from tests.engine import checkpoints
from tests.engine.small import models


def read(target: Decoder, proposer: Proposer, text: list[int]) -> Draft:
    """The draft of a session that has read a text, in pieces of its own."""
    cache, draft = target.new_cache(), proposer.start()
    tokens = DraftTree.chain(torch.tensor(text))
    cache.reserve(len(text))
    features = target.forward([Window(cache, tokens, "none")], proposer.taps)[0].features
    cache.close()
    proposer.observe(draft, tokens.tokens, features, None)
    return draft


@pytest.mark.parametrize("kind", ["eagle3", "suffix+eagle3"])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
@torch.inference_mode()
def test_trees_are_those_of_each_session_alone(kind: str, seed: int) -> None:
    rng = random.Random(seed)
    target, head = models()
    proposer: Proposer = head if kind == "eagle3" else Cascade([SuffixProposer(0), head], [0])
    texts = [[rng.randrange(9) for _ in range(rng.randrange(1, 40))] for _ in range(rng.randrange(2, 5))]
    roots = [rng.randrange(9) for _ in texts]
    levels, budget = proposer.noise_levels, rng.choice([2, 4, 8, 16])
    noise = [torch.randn(levels, checkpoints.VOCAB) if rng.random() < 0.5 else None for _ in texts]
    alone = []
    for text, root, some in zip(texts, roots, noise, strict=True):
        draft = read(target, proposer, text)
        alone.append(proposer.propose([draft], [root], [some], budget)[0])
        draft.close()
    drafts = [read(target, proposer, text) for text in texts]
    for again in range(2):  # the second time the roots' pairs are there already
        together = proposer.propose(drafts, roots, noise, budget)
        for one, other in zip(alone, together, strict=True):
            if again and kind != "eagle3":
                continue  # a cascade has learned meanwhile
            assert one.tokens.tolist() == other.tokens.tolist()
            assert one.parents.tolist() == other.parents.tolist()
            torch.testing.assert_close(one.score, other.score, rtol=1e-4, atol=1e-6)
            other.check()
    for draft in drafts:
        draft.close()


@torch.inference_mode()
def test_one_session_without_pages_takes_nothing_from_the_others() -> None:
    target, head = models()
    size = head.pool.page_tokens
    short, able = read(target, head, [1] * (3 * size)), read(target, head, [2, 3, 4])
    others = [head.start().cache for _ in range(head.pool.num_pages)]
    for cache in others:  # enough for the one and its levels, not for the text of the other
        if head.pool.pages_in_use < head.pool.num_pages - 3:
            cache.reserve(1)
    nothing, tree = head.propose([short, able], [5, 6], [None, None], 4)
    for cache in others:
        cache.close()
    assert (len(nothing), len(tree)) == (1, 4)
    assert len(head.propose([short], [5], [None], 4)[0]) == 4, "when there are some"
    for draft in (short, able):
        draft.close()


@torch.inference_mode()
def test_sessions_that_were_not_drafted_for_catch_up_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    target, head = models()
    monkeypatch.setattr("engine.proposers.pairs.proposer.CATCH_UP_TOGETHER", 16)
    texts = [[1 + i % 7 for i in range(length)] for length in (5, 40, 30)]
    wanted = []
    for text in texts:
        draft = read(target, head, text)
        wanted.append(head.propose([draft], [5], [None], 8)[0])
        draft.close()
    drafts = [read(target, head, text) for text in texts]
    lengths = []
    for _ in range(6):
        trees = head.propose(drafts, [5] * 3, [None] * 3, 8)
        lengths.append([len(tree) for tree in trees])
    assert lengths[0] == [8, 1, 1] and lengths[-1] == [8, 8, 8]
    for one, other in zip(wanted, trees, strict=True):
        assert (one.tokens.tolist(), one.parents.tolist()) == (other.tokens.tolist(), other.parents.tolist())
    for draft in drafts:
        draft.close()
