"""What stands between the matrix products of a block: one kernel each, so that nothing is written in between."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.rows import Rows
from engine.models.layers import HeadNorms, Rotary

GATE_BLOCK = 1024


def add_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``Ops.add_norm``."""
    n, d = x.shape
    x = x.contiguous()
    normed = torch.empty_like(x)
    added = x if delta is None else torch.empty_like(x)
    block = triton.next_power_of_2(d)
    _add_norm[(n,)](
        x,
        x if delta is None else delta.contiguous(),
        weight,
        added,
        normed,
        d,
        eps,
        BLOCK=block,
        ADDS=delta is not None,
        num_warps=min(16, max(1, block // 512)),
    )
    return added, normed


@triton.jit
def _add_norm(x, delta, weight, added, normed, d, eps, BLOCK: tl.constexpr, ADDS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < d
    value = tl.load(x + row * d + at, mask=inside, other=0.0)
    if ADDS:  # rounded to the stream's dtype before its statistics are taken, as two steps would
        more = tl.load(delta + row * d + at, mask=inside, other=0.0)
        value = (value.to(tl.float32) + more.to(tl.float32)).to(added.dtype.element_ty)
        tl.store(added + row * d + at, value, mask=inside)
    wide = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / d + eps)
    by = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + row * d + at, (wide * scale * by).to(normed.dtype.element_ty), mask=inside)


def gate(gate_up: Tensor) -> Tensor:
    """``Ops.gate``."""
    n, width = gate_up.shape
    inner = width // 2
    out = torch.empty(n, inner, dtype=gate_up.dtype, device=gate_up.device)
    _gate[(n, triton.cdiv(inner, GATE_BLOCK))](gate_up.contiguous(), out, inner, BLOCK=GATE_BLOCK, num_warps=4)
    return out


@triton.jit
def _gate(gate_up, out, inner, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < inner
    value = tl.load(gate_up + row * 2 * inner + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * inner + inner + at, mask=inside, other=0.0).to(tl.float32)
    opened = (value / (1.0 + tl.exp(-value))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * inner + at, (opened * up).to(out.dtype.element_ty), mask=inside)


def write(qkv: Tensor, norms: HeadNorms | None, kv: Tensor, rows: Rows, rotary: Rotary) -> Tensor:
    """``Ops.write``."""
    n, total, head_dim = qkv.shape
    kv_heads = kv.shape[2]
    heads = total - 2 * kv_heads
    query = torch.empty(n, heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    _write[(n, total)](
        qkv.contiguous(),
        rotary.cos if norms is None else norms.query,
        rotary.cos if norms is None else norms.key,
        rotary.cos,
        rotary.sin,
        rows.positions,
        rows.slots,
        query,
        kv,
        kv.stride(0),
        0.0 if norms is None else norms.eps,
        HEADS=heads,
        KV_HEADS=kv_heads,
        HALF=head_dim // 2,
        NORMS=norms is not None,
        num_warps=1,
    )
    return query


@triton.jit(do_not_specialize_on_alignment=["positions", "slots"])  # pieces of one tensor
def _write(
    qkv,
    query_norm,
    key_norm,
    cos,
    sin,
    positions,
    slots,
    query,
    kv,
    values_at,
    eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    NORMS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    at = tl.arange(0, HALF)
    source = qkv + (row * (HEADS + 2 * KV_HEADS) + head) * 2 * HALF
    low = tl.load(source + at)
    high = tl.load(source + HALF + at)
    slot = tl.load(slots + row).to(tl.int64)
    if head >= HEADS + KV_HEADS:
        target = kv + values_at + (slot * KV_HEADS + head - HEADS - KV_HEADS) * 2 * HALF
        tl.store(target + at, low)
        tl.store(target + HALF + at, high)
    else:
        left = low.to(tl.float32)
        right = high.to(tl.float32)
        if NORMS:
            scale = tl.rsqrt((tl.sum(left * left, 0) + tl.sum(right * right, 0)) / (2 * HALF) + eps)
            norm = query_norm
            if head >= HEADS:
                norm = key_norm
            left = left * scale * tl.load(norm + at).to(tl.float32)
            right = right * scale * tl.load(norm + HALF + at).to(tl.float32)
            left = left.to(low.dtype).to(tl.float32)
            right = right.to(low.dtype).to(tl.float32)
        angle = tl.load(positions + row).to(tl.int64) * 2 * HALF
        # The first half of the sine's table is negated.
        turned_low = left * tl.load(cos + angle + at) + right * tl.load(sin + angle + at)
        turned_high = right * tl.load(cos + angle + HALF + at) + left * tl.load(sin + angle + HALF + at)
        if head < HEADS:
            target = query + (row * HEADS + head) * 2 * HALF
            tl.store(target + at, turned_low.to(low.dtype))
            tl.store(target + HALF + at, turned_high.to(low.dtype))
        else:
            target = kv + (slot * KV_HEADS + head - HEADS) * 2 * HALF
            tl.store(target + at, turned_low.to(low.dtype))
            tl.store(target + HALF + at, turned_high.to(low.dtype))
