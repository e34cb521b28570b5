"""An initialisation that gives a small Llama a working induction head before its first step.

An induction head (arXiv 2209.11895) finds the last place where the current token stood and says what came after it:
that is copying, which a small model otherwise learns very late. Two layers make it. In the first, KV head 0 looks one
position back and writes a random projection of that token's embedding into the residual stream. In the second,
queries are the same projection of the current token, keys read what the first layer wrote, and the values carry the
found token itself to the output. The rest of the weights stays random.
"""

import math

import torch
from torch import Tensor

from training.llama import Llama

CONSTANT = 0.16
"""Value of embedding dimension 0 in every token: something fixed for the previous-token head to make its query and
key of.
"""
PREVIOUS_GAP = 5.0
"""Logit by which the previous position beats the current one, summed over the rotating pairs."""
WRITE_GAIN, MATCH_GAIN, COPY_GAIN = 0.045, 2.0, 0.15
FAST, SLOW = 0.12, 1.5e-3
"""Radians a position: RoPE pairs faster than FAST tell neighbours apart; pairs slower than SLOW hardly rotate and can
carry content.
"""


def _orthonormal(rows: int, width: int, generator: torch.Generator) -> Tensor:
    """Random orthonormal rows [rows, width] that ignore dimension 0."""
    q, _ = torch.linalg.qr(torch.randn(width - 1, rows, generator=generator))
    return torch.cat([torch.zeros(rows, 1), q.T], dim=1)


@torch.no_grad()
def induction_init(model: Llama, seed: int = 0) -> None:
    """Set layers 0 and 1 of `model` as the module says, in place. Needs at least two layers and hidden > 2 *
    head_dim.
    """
    shape = model.shape
    size, half, groups = shape.head_dim, shape.head_dim // 2, shape.heads // shape.kv_heads
    generator = torch.Generator().manual_seed(seed)
    frequencies = shape.rope_theta ** (-torch.arange(0, size, 2).float() / size)

    model.model.embed_tokens.weight[:, 0] = CONSTANT
    normed_constant = CONSTANT / math.sqrt(0.02**2 + CONSTANT**2 / shape.hidden)
    basis = _orthonormal(2 * size, shape.hidden, generator)
    read, copied = basis[:size], _orthonormal(2 * size, shape.hidden, generator).split(size)
    written = _orthonormal(size, shape.hidden, generator)

    first = model.model.layers[0].self_attn
    weight = math.sqrt(PREVIOUS_GAP * math.sqrt(size)) / normed_constant
    fast = max(5, int((frequencies > FAST).sum()))
    first.q_proj.weight[: groups * size].mul_(0.1)
    first.k_proj.weight[:size].mul_(0.1)
    for pair in range(fast):
        first.q_proj.weight[torch.arange(groups) * size + pair, 0] = weight
        # The key is turned by one step, so that it lines up with the query of the next position.
        first.k_proj.weight[pair, 0] = weight * math.cos(frequencies[pair])
        first.k_proj.weight[pair + half, 0] = weight * math.sin(frequencies[pair])
    first.v_proj.weight[:size] = read
    first.o_proj.weight[:, :size] += written.T * WRITE_GAIN

    second = model.model.layers[1].self_attn
    slow = [pair for pair in range(half) if frequencies[pair] < SLOW]
    dims = slow + [pair + half for pair in slow]
    second.q_proj.weight.mul_(0.3)
    second.k_proj.weight.mul_(0.3)
    for kv_head in range(shape.kv_heads):
        rows = [(kv_head * len(dims) + j) % size for j in range(len(dims))]
        at = torch.tensor(dims)
        for group in range(groups):
            second.q_proj.weight[(kv_head * groups + group) * size + at] = MATCH_GAIN * read[rows]
        second.k_proj.weight[kv_head * size + at] = MATCH_GAIN * written[rows]
        second.v_proj.weight[kv_head * size : (kv_head + 1) * size] = copied[kv_head % 2]
        start = kv_head * groups * size
        second.o_proj.weight[:, start : start + size] += copied[kv_head % 2].T * COPY_GAIN
