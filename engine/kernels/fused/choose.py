"""The target's choice behind many rows at once: argmax with keyed Gumbel noise, and the filters, in a few launches.

The noise is made where it is used and never stored. The filters need no sort: a token is in the nucleus when the mass
strictly above it is small, so the winner is judged, and where it is not kept, neither is anything at or below it; the
row then chooses again among what is above. ``engine.sampling`` has the same rule.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.ops import Choice
from engine.kernels.plain import ROUNDS
from engine.sampling import _GAMMA, _MIX1, _MIX2, signed

BLOCK = 2048
"""Tokens of one program."""
GAMMA = signed(_GAMMA)


def choose(logits: Tensor, choice: Choice) -> Tensor:
    """``Ops.choose``."""
    n, vocab = logits.shape
    logits = logits.contiguous()
    device, blocks = logits.device, triton.cdiv(vocab, BLOCK)
    found = torch.empty(n, blocks, dtype=torch.int64, device=device)
    marks = torch.empty(3, n, blocks, dtype=torch.float32, device=device)  # best keyed, highest, sum of weights
    above = torch.empty(2, n, blocks, dtype=torch.float32, device=device)  # mass and count above the winner
    row = torch.empty(4, n, dtype=torch.float32, device=device)  # level struck, the winner's, highest, total
    row[0] = -torch.inf
    winner = torch.empty(n, dtype=torch.int64, device=device)
    settled = torch.full((n,), -1, dtype=torch.int64, device=device)
    allowed = choice.allowed if choice.allowed is not None else settled
    words = 0 if choice.allowed is None else choice.allowed.shape[1]
    shared = {"BLOCK": BLOCK, "MASKED": choice.allowed is not None, "num_warps": 4}
    joined = triton.next_power_of_2(blocks)
    for _ in range(ROUNDS):
        _scan[(n, blocks)](
            logits, choice.temperature, choice.seed, choice.index, allowed, row, settled, found, marks, n, vocab,
            blocks, words, GAMMA=GAMMA, MIX1=_MIX1, MIX2=_MIX2, enable_fp_fusion=False, **shared,
        )  # fmt: skip
        _win[(n,)](
            logits, choice.temperature, allowed, row, settled, winner, found, marks, n, vocab, blocks, words,
            JOINED=joined, **shared,
        )  # fmt: skip
        _weigh[(n, blocks)](
            logits, choice.temperature, allowed, row, settled, above, n, vocab, blocks, words, **shared
        )  # fmt: skip
        _judge[(n,)](
            choice.temperature, choice.top_k, choice.top_p, choice.min_p, row, settled, winner, above, n, blocks,
            JOINED=joined, num_warps=4,
        )  # fmt: skip
    return settled


def noise(seed: Tensor, index: Tensor, vocab_size: int) -> Tensor:
    """``Ops.noise``: what ``choose`` adds, bit for bit."""
    out = torch.empty(seed.shape[0], vocab_size, dtype=torch.float32, device=seed.device)
    _noise[(seed.shape[0], triton.cdiv(vocab_size, BLOCK))](
        seed, index, out, vocab_size, GAMMA=GAMMA, MIX1=_MIX1, MIX2=_MIX2, BLOCK=BLOCK, enable_fp_fusion=False
    )
    return out


@triton.jit
def _mix(x, MIX1: tl.constexpr, MIX2: tl.constexpr):
    """The finaliser of SplitMix64 on uint64."""
    x = (x ^ (x >> 30)) * tl.full([], MIX1, tl.int64).to(tl.uint64, bitcast=True)
    x = (x ^ (x >> 27)) * tl.full([], MIX2, tl.int64).to(tl.uint64, bitcast=True)
    return x ^ (x >> 31)


@triton.jit
def _gumbel(seed, index, ids, GAMMA: tl.constexpr, MIX1: tl.constexpr, MIX2: tl.constexpr):
    """The noise of ``engine.sampling``, its logarithms in float64: rounded once, whatever the device's own are like."""
    gamma = tl.full([], GAMMA, tl.int64)
    key = _mix((seed + (index + 1) * gamma).to(tl.uint64, bitcast=True), MIX1, MIX2)
    step = ((ids.to(tl.int64) + 1) * gamma).to(tl.uint64, bitcast=True)
    bits = (_mix(key + step, MIX1, MIX2) >> 24).to(tl.int64, bitcast=True)
    rest = tl.minimum((bits.to(tl.float32) + 0.5) * 9.094947017729282e-13, 0.9999999403953552).to(tl.float64)
    # -log(1 - rest): by its series where 1 - rest would lose what matters.
    small = rest * (1.0 + rest * (0.5 + rest * (0.3333333333333333 + rest * 0.25)))
    far = -tl.log(1.0 - tl.where(rest < 1.0e-4, 0.5, rest))
    return (-tl.log(tl.where(rest < 1.0e-4, small, far))).to(tl.float32)


@triton.jit
def _scaled(logits, allowed, row, ids, inside, vocab, words, temperature, MASKED: tl.constexpr):
    """Logits over the temperature, as float32; not allowed and outside is minus infinity."""
    value = tl.load(logits + row * vocab + ids, mask=inside, other=float("-inf")).to(tl.float32)
    if MASKED:
        word = tl.load(allowed + row * words + ids // 32, mask=inside, other=0)
        value = tl.where(((word >> (ids % 32)) & 1) == 1, value, float("-inf"))
    return tl.div_rn(value, tl.where(temperature > 0, temperature, 1.0) + tl.zeros_like(value))


@triton.jit
def _scan(
    logits, temperature, seed, index, allowed, rows, settled, found, marks, n, vocab, blocks, words,
    GAMMA: tl.constexpr, MIX1: tl.constexpr, MIX2: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The best of a block by logits and noise, among what has not been struck out."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    if tl.load(settled + row) < 0:
        ids = block * BLOCK + tl.arange(0, BLOCK)
        inside = ids < vocab
        warm = tl.load(temperature + row)
        scaled = _scaled(logits, allowed, row, ids, inside, vocab, words, warm, MASKED)
        keyed = scaled
        if warm > 0:
            keyed = scaled + _gumbel(tl.load(seed + row), tl.load(index + row), ids, GAMMA, MIX1, MIX2)
        keyed = tl.where(scaled > tl.load(rows + row), keyed, float("-inf"))
        best, at = tl.max(keyed, 0, return_indices=True, return_indices_tie_break_left=True)
        high = tl.max(scaled, 0)
        weight = tl.where(scaled > float("-inf"), tl.exp(scaled - tl.where(high > float("-inf"), high, 0.0)), 0.0)
        tl.store(found + row * blocks + block, (block * BLOCK + at).to(tl.int64))
        tl.store(marks + row * blocks + block, best)
        tl.store(marks + (n + row) * blocks + block, high)
        tl.store(marks + (2 * n + row) * blocks + block, tl.sum(weight, 0))


@triton.jit
def _win(
    logits, temperature, allowed, rows, settled, winner, found, marks, n, vocab, blocks, words,
    JOINED: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The best of all blocks, and what the filters are measured by."""
    row = tl.program_id(0).to(tl.int64)
    if tl.load(settled + row) < 0:
        at = tl.arange(0, JOINED)
        there = at < blocks
        best = tl.load(marks + row * blocks + at, mask=there, other=float("-inf"))
        _, place = tl.max(best, 0, return_indices=True, return_indices_tie_break_left=True)
        token = tl.load(found + row * blocks + place)
        high = tl.load(marks + (n + row) * blocks + at, mask=there, other=float("-inf"))
        weight = tl.load(marks + (2 * n + row) * blocks + at, mask=there, other=0.0)
        highest = tl.max(high, 0)
        total = tl.sum(tl.where(high > float("-inf"), weight * tl.exp(high - highest), 0.0), 0)
        ids = token + tl.arange(0, 1)
        level = _scaled(logits, allowed, row, ids, ids < vocab, vocab, words, tl.load(temperature + row), MASKED)
        tl.store(winner + row, token)
        tl.store(rows + n + row, tl.max(level, 0))
        tl.store(rows + 2 * n + row, highest)
        tl.store(rows + 3 * n + row, total)


@triton.jit
def _weigh(
    logits, temperature, allowed, rows, settled, above, n, vocab, blocks, words,
    BLOCK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Mass and number of the tokens of a block that are strictly above the winner."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    if tl.load(settled + row) < 0:
        ids = block * BLOCK + tl.arange(0, BLOCK)
        scaled = _scaled(
            logits, allowed, row, ids, ids < vocab, vocab, words, tl.load(temperature + row), MASKED
        )  # fmt: skip
        over = scaled > tl.load(rows + n + row)
        mass = tl.sum(tl.where(over, tl.exp(scaled - tl.load(rows + 2 * n + row)), 0.0), 0)
        tl.store(above + row * blocks + block, mass)
        tl.store(above + (n + row) * blocks + block, tl.sum(over.to(tl.float32), 0))


@triton.jit
def _judge(
    temperature, top_k, top_p, min_p, rows, settled, winner, above, n, blocks, JOINED: tl.constexpr
):  # fmt: skip
    """Keep the winner, or strike out everything up to it."""
    row = tl.program_id(0).to(tl.int64)
    if tl.load(settled + row) < 0:
        at = tl.arange(0, JOINED)
        mass = tl.sum(tl.load(above + row * blocks + at, mask=at < blocks, other=0.0), 0)
        count = tl.sum(tl.load(above + (n + row) * blocks + at, mask=at < blocks, other=0.0), 0)
        level = tl.load(rows + n + row)
        nucleus = tl.load(top_p + row)
        most = tl.load(top_k + row)
        least = tl.load(min_p + row)
        kept = (nucleus >= 1.0) | (mass < nucleus * tl.load(rows + 3 * n + row))
        kept = kept & ((most == 0) | (count < most.to(tl.float32)))
        floor = tl.load(rows + 2 * n + row) + tl.log(tl.where(least > 0.0, least, 1.0))
        kept = kept & ((least == 0.0) | (level >= floor))
        kept = kept | (tl.load(temperature + row) == 0.0)
        if kept:
            tl.store(settled + row, tl.load(winner + row))
        else:
            tl.store(rows + row, level)


@triton.jit
def _noise(
    seed, index, out, vocab, GAMMA: tl.constexpr, MIX1: tl.constexpr, MIX2: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    value = _gumbel(tl.load(seed + row), tl.load(index + row), ids, GAMMA, MIX1, MIX2)
    tl.store(out + row * vocab + ids, value, mask=ids < vocab)
