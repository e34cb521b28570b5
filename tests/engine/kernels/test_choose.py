"""Choosing many rows at once, by kernels and plainly, against the sampler's rule for one row at a time."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.gpu.cases import random_choice
from bench.gpu.check import by_the_rule
from engine.kernels.ops import Choice, Ops
from engine.sampling import gumbel_noise
from tests.engine.kernels.cases import DEVICE, PLAIN, TRITON

BOTH = pytest.mark.parametrize("ops", [PLAIN, TRITON], ids=lambda ops: ops.name)


@BOTH
@given(n=st.integers(1, 4), vocab=st.integers(2, 4200), seed=st.integers(0, 2**32), filters=st.booleans())
@settings(max_examples=8, deadline=None)
def test_tokens_are_those_of_the_rule(ops: Ops, n: int, vocab: int, seed: int, filters: bool) -> None:
    torch.manual_seed(seed)
    logits = (4 * torch.randn(n, vocab)).to(DEVICE)
    choice = random_choice(random.Random(seed), DEVICE, n, vocab, filters=filters)
    for got, wanted in zip(ops.choose(logits, choice).tolist(), by_the_rule(ops, logits, choice).tolist(), strict=True):
        assert got in (wanted, -1)
        assert got == wanted or filters, "only a filter may leave a row unsettled"


@BOTH
def test_few_rows_are_left_unsettled(ops: Ops) -> None:
    torch.manual_seed(0)
    n, vocab = 60, 500
    logits = (3 * torch.randn(n, vocab)).to(DEVICE)
    ones = torch.ones(n, device=DEVICE)
    ids = torch.arange(n, device=DEVICE)
    choice = Choice(ids, ids, 0.8 * ones, torch.zeros_like(ids), 0.9 * ones, 0.0 * ones)
    assert int((ops.choose(logits, choice) < 0).sum()) <= 2


@BOTH
def test_equal_logits_go_to_the_lowest_id(ops: Ops) -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0]]).bfloat16().to(DEVICE)
    zeros = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    choice = Choice(zeros, zeros, zeros.float(), zeros, zeros.float() + 1, zeros.float())
    assert ops.choose(logits, choice).tolist() == [1, 0]


@given(seed=st.integers(-(2**63), 2**63 - 1), index=st.integers(0, 2**40))
@settings(max_examples=8, deadline=None)
def test_noise_is_that_of_the_sampler(seed: int, index: int) -> None:
    vocab = 3000
    where = (torch.tensor([seed], device=DEVICE), torch.tensor([index], device=DEVICE))
    wanted = gumbel_noise(seed, index, 1, vocab, DEVICE)
    assert torch.equal(PLAIN.noise(*where, vocab), wanted)
    torch.testing.assert_close(TRITON.noise(*where, vocab), wanted, rtol=1e-6, atol=1e-6)


def test_large_noise_keeps_its_precision() -> None:
    """The largest of a million draws: a logarithm of something very near to one."""
    seeds = torch.arange(20, device=DEVICE)
    noise = TRITON.noise(seeds, seeds, 20_000)
    exact = PLAIN.noise(seeds, seeds, 20_000).double()
    assert float(exact.max()) > 11
    torch.testing.assert_close(noise.double(), exact, rtol=1e-6, atol=1e-6)
