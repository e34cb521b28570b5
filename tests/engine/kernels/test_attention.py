"""Attention over pages with a tree mask: the kernel, the plain version, and attention written out by hand."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.gpu.cases import Case, ancestors_of, random_case
from engine.kernels.rows import pack_bits, unpack_bits
from tests.engine.kernels.cases import DEVICE, PLAIN, TRITON

SHAPES = [(4, 2, 64), (4, 1, 128), (3, 3, 16)]
"""(heads, key heads, head_dim)."""


def by_hand(case: Case, query: Tensor, kv: Tensor) -> Tensor:
    """Row by row in float64."""
    heads, kv_heads = query.shape[1], kv.shape[2]
    size, out, at = case.rows.page_tokens, [], 0
    for length, first, parents, table in zip(case.lengths, case.computed, case.parents, case.tables, strict=True):
        mask = ancestors_of(parents)
        for row in range(len(parents) - first):
            seen = [*range(length), *(length + j for j in mask[first + row].nonzero()[:, 0].tolist())]
            slots = [table[p // size] * size + p % size for p in seen]
            for head in range(heads):
                keys, values = kv[:, slots, head // (heads // kv_heads)].double()
                weights = (keys @ query[at + row, head].double() / query.shape[2] ** 0.5).softmax(0)
                out.append(weights @ values)
        at += len(parents) - first
    return torch.stack(out).view(at, -1)


@pytest.mark.parametrize("chains", [False, True], ids=["trees", "chains"])
@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 2**32))
@settings(max_examples=6, deadline=None)
def test_every_row_attends_to_what_it_sees(chains: bool, shape: tuple[int, int, int], seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    heads, kv_heads, head_dim = shape
    case = random_case(rng, DEVICE, chains=chains)
    query = torch.randn(case.rows.num_rows, heads, head_dim, device=DEVICE)
    kv = torch.randn(2, case.slots, kv_heads, head_dim, device=DEVICE)
    wanted = by_hand(case, query, kv)
    torch.testing.assert_close(PLAIN.attend(query, kv, case.rows).double(), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(TRITON.attend(query, kv, case.rows).double(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 66])
def test_windows_of_every_size(rows: int) -> None:
    """A single node, the largest trees of one word, and one of two; behind enough context for several splits."""
    rng = random.Random(rows)
    torch.manual_seed(rows)
    case = random_case(rng, DEVICE, most_rows=1, most_length=1)
    while case.rows.num_rows != rows or max(case.lengths) < 100:
        case = random_case(rng, DEVICE, most_rows=rows, most_length=130)
    query = torch.randn(rows, 4, 32, device=DEVICE)
    kv = torch.randn(2, case.slots, 2, 32, device=DEVICE)
    wanted = by_hand(case, query, kv)
    torch.testing.assert_close(TRITON.attend(query, kv, case.rows).double(), wanted, rtol=0, atol=1e-5)


def test_a_prefill_chunk() -> None:
    rng = random.Random(3)
    case = random_case(rng, DEVICE, chains=True)
    while case.rows.max_rows < 70:
        case = random_case(rng, DEVICE, most_rows=80, chains=True)
    query, kv = torch.randn(case.rows.num_rows, 4, 16), torch.randn(2, case.slots, 2, 16)
    query, kv = query.to(DEVICE), kv.to(DEVICE)
    torch.testing.assert_close(
        TRITON.attend(query, kv, case.rows), PLAIN.attend(query, kv, case.rows), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(("seed", "chains"), [(7, False), (8, False), (9, True)])
def test_in_half_precision_it_is_as_near_as_the_dtype_allows(seed: int, chains: bool) -> None:
    """bfloat16 on a card; the interpreter has no products of it, and does float16. Tiles are larger than in float32."""
    dtype, most = (torch.bfloat16, 1e-2) if DEVICE.type == "cuda" else (torch.float16, 2e-3)
    torch.manual_seed(seed)
    case = random_case(random.Random(seed), DEVICE, most_rows=30, chains=chains)
    query = torch.randn(case.rows.num_rows, 4, 64, device=DEVICE).to(dtype)
    kv = torch.randn(2, case.slots, 2, 64, device=DEVICE).to(dtype)
    wanted = by_hand(case, query, kv)
    assert (TRITON.attend(query, kv, case.rows).double() - wanted).norm() / wanted.norm() < most


@given(n=st.integers(1, 5), m=st.integers(1, 200), seed=st.integers(0, 2**32))
@settings(deadline=None)
def test_bits_are_packed_and_unpacked(n: int, m: int, seed: int) -> None:
    mask = torch.rand(n, m, generator=torch.Generator().manual_seed(seed)) < 0.5
    assert torch.equal(unpack_bits(pack_bits(mask), m), mask)
