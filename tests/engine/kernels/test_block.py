"""The kernels between a block's matrix products, against plain PyTorch."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.gpu.cases import random_case
from engine.models.layers import HeadNorms, Rotary
from tests.engine.kernels.cases import DEVICE, PLAIN, TRITON

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2}
"""Of a relative error: one unit in the last place of bfloat16 is 2^-7, and Triton's interpreter cuts off where a card
rounds."""


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@given(n=st.integers(1, 4), d=st.integers(1, 700), adds=st.booleans(), seed=st.integers(0, 2**32))
@settings(max_examples=8, deadline=None)
def test_add_norm(dtype: torch.dtype, n: int, d: int, adds: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x, weight = torch.randn(n, d).to(DEVICE, dtype), torch.randn(d).to(DEVICE, dtype)
    delta = torch.randn(n, d).to(DEVICE, dtype) if adds else None
    added, normed = TRITON.add_norm(x, delta, weight, 1e-5)
    wanted_added, wanted_normed = PLAIN.add_norm(x, delta, weight, 1e-5)
    torch.testing.assert_close(added, wanted_added, rtol=TOLERANCE[dtype] if dtype == torch.bfloat16 else 0, atol=0)
    torch.testing.assert_close(normed, wanted_normed, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@given(n=st.integers(1, 4), inner=st.integers(1, 1500), seed=st.integers(0, 2**32))
@settings(max_examples=8, deadline=None)
def test_gate(dtype: torch.dtype, n: int, inner: int, seed: int) -> None:
    torch.manual_seed(seed)
    gate_up = (3 * torch.randn(n, 2 * inner)).to(DEVICE, dtype)
    wanted = PLAIN.gate(gate_up.clone())
    torch.testing.assert_close(TRITON.gate(gate_up), wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("head_dim", [16, 64, 128])
@given(norms=st.booleans(), seed=st.integers(0, 2**32))
@settings(max_examples=8, deadline=None)
def test_write(dtype: torch.dtype, head_dim: int, norms: bool, seed: int) -> None:
    torch.manual_seed(seed)
    case = random_case(random.Random(seed), DEVICE)
    rotary = Rotary({"rope_type": "default", "rope_theta": 500.0}, head_dim, 256, dtype, DEVICE)
    heads, kv_heads = 6, 2
    weights = [torch.randn(head_dim).to(DEVICE, dtype) for _ in range(2)]
    head_norms = HeadNorms(*weights, 1e-5) if norms else None
    qkv = torch.randn(case.rows.num_rows, heads + 2 * kv_heads, head_dim).to(DEVICE, dtype)
    before = torch.randn(2, case.slots, kv_heads, head_dim).to(DEVICE, dtype)
    got_kv, wanted_kv = before.clone(), before.clone()
    got = TRITON.write(qkv, head_norms, got_kv, case.rows, rotary)
    wanted = PLAIN.write(qkv, head_norms, wanted_kv, case.rows, rotary)
    most = 3 * TOLERANCE[dtype]  # of values up to 3, which cancel
    torch.testing.assert_close(got, wanted, rtol=TOLERANCE[dtype], atol=most)
    torch.testing.assert_close(got_kv, wanted_kv, rtol=TOLERANCE[dtype], atol=most)
    untouched = torch.ones(case.slots, dtype=torch.bool)
    untouched[case.rows.slots.cpu()] = False
    assert torch.equal(got_kv[:, untouched], before[:, untouched])
