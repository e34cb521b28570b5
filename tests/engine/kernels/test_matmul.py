"""Products with matrices in eight bits, against the matrices that they stand for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.models.scheme import FP8
from engine.quantize import ScaledMatrix, quantise
from tests.engine.kernels.cases import DEVICE


@pytest.mark.parametrize("kind", [FP8, torch.int8])
@given(n=st.integers(1, 70), inputs=st.integers(1, 300), outputs=st.integers(1, 50), seed=st.integers(0, 2**32))
@settings(max_examples=8, deadline=None)
def test_rows_have_a_scale_each(kind: torch.dtype, n: int, inputs: int, outputs: int, seed: int) -> None:
    from engine.kernels.fused.matmul import scaled_linear

    torch.manual_seed(seed)
    small = quantise(torch.randn(outputs, inputs, device=DEVICE), kind)
    x = torch.randn(n, inputs, device=DEVICE)
    got = scaled_linear(x, small.weight, small.scale, inputs)
    torch.testing.assert_close(got, x @ small.full(torch.float32).T, rtol=1e-4, atol=1e-4)


def test_blocks_have_a_scale_each() -> None:
    from engine.kernels.fused.matmul import scaled_linear

    torch.manual_seed(0)
    weight = torch.randn(20, 300, device=DEVICE).to(FP8)
    small = ScaledMatrix(weight, torch.rand(20, 3, device=DEVICE) + 0.1, 128)
    x = torch.randn(5, 300, device=DEVICE)
    got = scaled_linear(x, weight, small.scale, 128)
    torch.testing.assert_close(got, x @ small.full(torch.float32).T, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="multiples of 128"):
        scaled_linear(x, weight, torch.ones(20, 5, device=DEVICE), 64)
