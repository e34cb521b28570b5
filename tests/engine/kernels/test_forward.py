"""Whole forwards with the kernels, and with the plain version over slices of the pool."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.errors import ModelError
from engine.graphs.target import GraphTarget
from engine.interfaces import Window
from engine.kernels import Ops, Rows, ops_for
from engine.models.decoder import Decoder, load_target
from engine.tree import DraftTree
from tests.engine import checkpoints
from tests.engine.kernels.cases import DEVICE
from tests.engine.test_batched import random_tree

SHAPES = ("llama-untied-llama3-rope", "qwen2-biases", "qwen3-qk-norm")


@cache
def pair(shape: str, longest: int = 0) -> tuple[Decoder, Decoder]:
    """The same small target, plain and with kernels."""
    with tempfile.TemporaryDirectory() as name:
        checkpoints.write(shape, Path(name), head_dim=16)
        plain, fused = (
            load_target(name, device=DEVICE, pool_tokens=2048, page_tokens=4, max_context_tokens=longest, kernels=kind)
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


class Reaching:
    """The kernels, which look up the pages of all rows of a window: refuses rows that are past its table."""

    def __init__(self, real: Ops) -> None:
        self._real = real
        self.furthest = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def attend(self, query: Tensor, kv: Tensor, rows: Rows) -> Tensor:
        reached = rows.lengths + rows.computed + rows.starts.diff()
        self.furthest = max(self.furthest, int(reached.max()))
        assert self.furthest <= rows.tables.shape[1] * rows.page_tokens
        return self._real.attend(query, kv, rows)


@torch.inference_mode()
def test_a_static_step_at_the_end_of_the_context_stays_in_its_page_table() -> None:
    """40 rows take the step of 64, of which 24 stand behind the last position that there is."""
    longest, rows, results = 64, 40, []
    plain, fused = pair(SHAPES[1], longest)
    reaching = Reaching(fused.ops)
    torch.manual_seed(1)
    tokens = torch.randint(checkpoints.VOCAB, (longest,))
    for target in (plain, fused):
        cache = target.new_cache()
        cache.reserve(longest)
        with mock.patch.object(target, "ops", plain.ops):
            target.forward([Window(cache, DraftTree.chain(tokens[:-rows]), "none")])
        cache.commit(list(range(longest - rows)))
        window = [Window(cache, DraftTree.chain(tokens[-rows:]))]
        if target is fused:
            with mock.patch.object(fused, "ops", reaching):
                graphs = GraphTarget(fused, (), most_windows=1)
                results.append(graphs.forward(window)[0].logits)
                graphs.release()
        else:
            results.append(target.forward(window)[0].logits)
        cache.close()
    assert reaching.furthest == longest - rows + 64
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)


def test_where_a_step_is_described_decides_no_kernel() -> None:
    """What the host describes comes as pieces of one tensor, aligned as chance has it: no live call may wait for Triton
    to compile for it. The interpreter does not know such things, so another process is asked.
    """
    look = """
from engine.kernels.fused import attention, block
for kernel in (attention._attend_split, block._write):
    print(*(each.name for each in kernel.params if each.do_not_specialize_on_alignment))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", look], env=environment, capture_output=True, text=True, check=True)
    described = {name for name in Rows.__dataclass_fields__ if name not in ("max_rows", "page_tokens")}
    assert set(done.stdout.split()) == described


def test_kernels_are_chosen_by_the_device_and_by_name() -> None:
    cuda = torch.device("cuda")
    assert ops_for(torch.device("cpu")).name == "plain"
    assert ops_for(cuda).name == "triton"
    assert ops_for(cuda, "plain").name == "plain"
    assert ops_for(cuda, dtype=torch.float64).name == ops_for(cuda, head_dim=80).name == "plain"
    assert ops_for(cuda, dtype=torch.bfloat16, head_dim=256).name == "triton"
    assert ops_for(cuda, head_dim=256).name == ops_for(cuda, dtype=torch.bfloat16, head_dim=512).name == "plain"
    with pytest.raises(ModelError, match="kernels 'fast' are not known"):
        ops_for(cuda, "fast")
    with pytest.raises(ModelError, match=r"do not serve torch\.float64"):
        ops_for(cuda, "triton", dtype=torch.float64)
    with pytest.raises(ModelError, match="heads of 80"):
        ops_for(cuda, "triton", head_dim=80)
