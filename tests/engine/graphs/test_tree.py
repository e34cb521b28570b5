"""Trees on the device: descent, acceptance and the way back, against the plain ones."""

from __future__ import annotations

import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.graphs.tree import DeviceTree, accepted, descent, unpacked
from engine.kernels.rows import unpack_bits
from engine.tree import DraftTree, accept

LEVELS = 8


def random_tree(rng: random.Random, vocab: int) -> DraftTree:
    """Up to 64 nodes, no deeper than LEVELS."""
    tokens, parents, depths = [rng.randrange(vocab)], [-1], [0]
    for _ in range(rng.randrange(64)):
        parent = rng.randrange(len(tokens))
        token = rng.randrange(vocab)
        if depths[parent] < LEVELS and (parent, token) not in zip(parents, tokens, strict=True):
            tokens.append(token)
            parents.append(parent)
            depths.append(depths[parent] + 1)
    return DraftTree.of(tokens, parents, [rng.random() for _ in tokens], 3)


def on_device(tree: DraftTree) -> DeviceTree:
    depth, ancestors = descent(tree.parents, LEVELS)
    return DeviceTree(tree.tokens, tree.parents, depth, ancestors, tree.score)


@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_what_is_accepted_is_what_the_rule_accepts(seed: int) -> None:
    rng = random.Random(seed)
    tree = random_tree(rng, vocab=4)
    device_tree = on_device(tree)
    assert torch.equal(unpack_bits(device_tree.ancestors[:, None], len(tree)), tree.mask)
    assert torch.equal(device_tree.depth, tree.depth)
    chosen = torch.tensor([rng.randrange(-1, 4) for _ in range(len(tree))])  # -1 is a choice that was not settled
    path, count = accepted(device_tree, chosen, LEVELS)
    assert path[: int(count)].tolist() == accept(tree, chosen)


@given(st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_a_tree_comes_back_as_it_was(seed: int) -> None:
    tree = random_tree(random.Random(seed), vocab=2**31)
    back = unpacked(on_device(tree).packed(), 3, causal=tree.causal)
    back.check()
    for name in ("tokens", "parents", "score", "source"):
        assert torch.equal(getattr(back, name), getattr(tree, name))
