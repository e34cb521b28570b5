"""Static forwards of padded windows give what the ordinary forward gives."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.graphs.frame import Frame
from engine.graphs.target import GraphTarget
from engine.interfaces import Window
from engine.tree import DraftTree
from tests.engine import checkpoints
from tests.engine.test_batched import random_tree, target

TAPS = (1, 4, "norm")


@given(st.sampled_from(["llama-tied", "qwen2-biases", "qwen3-qk-norm"]), st.integers(0, 2**32))
@settings(max_examples=12, deadline=None)
def test_outputs_are_those_of_the_ordinary_forward(shape: str, seed: int) -> None:
    rng, model = random.Random(seed), target(shape)
    graphs = GraphTarget(model, TAPS, most_windows=4)
    windows = []
    for _ in range(rng.randrange(1, 5)):
        cache = graphs.new_cache()
        if rng.random() < 0.8:
            known = DraftTree.chain(torch.randint(checkpoints.VOCAB, (rng.randrange(1, 30),)))
            cache.reserve(len(known))
            graphs.forward([Window(cache, known, "none")], TAPS)
            cache.commit(list(range(len(known))))
        tree = random_tree(rng)
        cache.reserve(len(tree))
        windows.append(Window(cache, tree, rng.choice(["all", "last", "none"])))
    try:
        got = graphs.forward(windows, TAPS)
        keys = [model.pool.kv[:, :, w.cache.slots(0, w.cache.length + len(w.tree))].clone() for w in windows]
        wanted = model.forward(windows, TAPS)
        for mine, theirs, window, written in zip(got, wanted, windows, keys, strict=True):
            stop = window.cache.length + len(window.tree)
            torch.testing.assert_close(written, model.pool.kv[:, :, window.cache.slots(0, stop)], rtol=0, atol=1e-9)
            torch.testing.assert_close(mine.features, theirs.features, rtol=0, atol=1e-9)
            assert (mine.logits is None) == (theirs.logits is None)
            if theirs.logits is not None:
                torch.testing.assert_close(mine.logits, theirs.logits, rtol=0, atol=1e-9)
    finally:
        for window in windows:
            window.cache.close()
        model.pool.release(graphs.sink // model.pool.page_tokens)


def test_a_frame_holds_no_more_than_a_word_of_nodes() -> None:
    with pytest.raises(ValueError, match="1 to 64 rows"):
        Frame(1, 65, 4, 0, torch.device("cpu"), 4)
