"""Whole forwards with the kernels, and with the plain version over slices of the pool."""

from __future__ import annotations

import random
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ModelError
from engine.interfaces import Window
from engine.kernels import ops_for
from engine.models.decoder import Decoder, load_target
from engine.tree import DraftTree
from tests.engine import checkpoints
from tests.engine.kernels.cases import DEVICE
from tests.engine.test_batched import random_tree

SHAPES = ("llama-untied-llama3-rope", "qwen2-biases", "qwen3-qk-norm")


@cache
def pair(shape: str) -> tuple[Decoder, Decoder]:
    """The same small target, plain and with kernels."""
    with tempfile.TemporaryDirectory() as name:
        checkpoints.write(shape, Path(name), head_dim=16)
        plain, fused = (
            load_target(name, device=DEVICE, pool_tokens=2048, page_tokens=4, kernels=kind)
            for kind in ("plain", "triton")
        )
        return plain, fused


@given(st.sampled_from(SHAPES), st.integers(0, 2**32))
@settings(max_examples=2, deadline=None)
def test_forwards_are_equal(shape: str, seed: int) -> None:
    """Several windows, some behind a prompt of their own, trees beside chains, some of their nodes computed before."""
    prompts = [random.Random(seed + number).randrange(0, 20) for number in range(2)]
    results = []
    for target in pair(shape):
        rng = random.Random(seed)
        torch.manual_seed(seed)
        windows = []
        for prompt in prompts:
            cache = target.new_cache()
            if prompt:
                known = DraftTree.chain(torch.randint(checkpoints.VOCAB, (prompt,)))
                cache.reserve(prompt)
                target.forward([Window(cache, known, "none")])
                cache.commit(list(range(prompt)))
            tree = random_tree(rng)
            cache.reserve(len(tree))
            computed = rng.randrange(len(tree))
            if computed:
                target.forward([Window(cache, tree.subtree(range(computed)), "none")])
            windows.append(Window(cache, tree, "all", computed))
        results.append(target.forward(windows, (1, target.num_layers, "norm")))
        for window in windows:
            window.cache.close()
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused.logits, plain.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(fused.features, plain.features, rtol=1e-4, atol=1e-4)


def test_kernels_are_chosen_by_the_device_and_by_name() -> None:
    cuda = torch.device("cuda")
    assert ops_for(torch.device("cpu")).name == "plain"
    assert ops_for(cuda).name == "triton"
    assert ops_for(cuda, "plain").name == "plain"
    assert ops_for(cuda, dtype=torch.float64).name == ops_for(cuda, head_dim=80).name == "plain"
    with pytest.raises(ModelError, match="kernels 'fast' are not known"):
        ops_for(cuda, "fast")
    with pytest.raises(ModelError, match=r"do not serve torch\.float64"):
        ops_for(cuda, "triton", dtype=torch.float64)
    with pytest.raises(ModelError, match="heads of 80"):
        ops_for(cuda, "triton", head_dim=80)
