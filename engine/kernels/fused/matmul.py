"""Products with matrices in eight bits: the weights are widened on their way to the tensor cores, and never written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

INPUTS = 128
"""Of one tile: the block by which published checkpoints have their scales."""


def scaled_linear(x: Tensor, weight: Tensor, scale: Tensor, block: int) -> Tensor:
    """[n, in] -> [n, out]. weight: float8_e4m3fn or int8 [out, in]; scale: float32 [out, blocks of ``block`` inputs].

    Raises ValueError for blocks that no tile fits.
    """
    n, inputs = x.shape
    outputs, blocks = scale.shape
    if blocks > 1 and block % INPUTS:
        raise ValueError(f"scales of {block} inputs are not served; multiples of {INPUTS} are")
    y = torch.empty(n, outputs, dtype=x.dtype, device=x.device)
    most = 32 if x.dtype == torch.float32 else 64  # in float32 no matrix instruction makes them: they fill registers
    rows = min(most, max(16, triton.next_power_of_2(n)))
    units = 32 if outputs >= 32 * 264 else 16
    _scaled_linear[(triton.cdiv(outputs, units), triton.cdiv(n, rows))](
        x.contiguous(),
        weight,
        scale,
        y,
        n,
        inputs,
        outputs,
        blocks,
        block if blocks > 1 else inputs,
        ROWS=rows,
        UNITS=units,
        INPUTS=INPUTS,
        num_warps=4,
        num_stages=4,
    )
    return y


@triton.jit(do_not_specialize=["n"])
def _scaled_linear(
    x,
    weight,
    scale,
    y,
    n,
    inputs,
    outputs,
    blocks,
    block,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    there = unit < outputs
    live = row < n
    total = tl.zeros([ROWS, UNITS], tl.float32)
    for first in range(0, inputs, INPUTS):
        at = first + tl.arange(0, INPUTS)
        inside = at < inputs
        left = tl.load(
            x + row.to(tl.int64)[:, None] * inputs + at[None, :], mask=live[:, None] & inside[None, :], other=0.0
        )
        small = tl.load(
            weight + unit.to(tl.int64)[None, :] * inputs + at[:, None], mask=there[None, :] & inside[:, None], other=0.0
        )
        part = tl.dot(left, small.to(left.dtype), input_precision="ieee")
        by = tl.load(scale + unit * blocks + first // block, mask=there, other=0.0)
        total += part * by[None, :]
    place = row.to(tl.int64)[:, None] * outputs + unit[None, :]
    tl.store(y + place, total.to(y.dtype.element_ty), mask=live[:, None] & there[None, :])
