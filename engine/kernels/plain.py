"""The parts of a step in plain PyTorch. Static shapes and no copy to the host, so these can be captured as well."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.ops import Choice
from engine.kernels.rows import Rows, unpack_bits
from engine.models.layers import HeadNorms, Rotary, gated, rms_norm, rotate_heads
from engine.sampling import gumbel_of_bits, noise_bits

ROUNDS = 4
"""How often ``choose`` strikes out a winner that the filters do not keep before it gives up on a row."""


class PlainOps:
    """``Ops`` without kernels of our own."""

    name = "plain"
    paged = False

    def add_norm(self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        if delta is not None:
            x = x + delta
        return x, rms_norm(x, weight, eps)

    def gate(self, gate_up: Tensor) -> Tensor:
        return gated(gate_up)

    def write(self, qkv: Tensor, norms: HeadNorms | None, kv: Tensor, rows: Rows, rotary: Rotary) -> Tensor:
        kv_heads = kv.shape[2]
        cos, sin = rotary.cos[rows.positions].unsqueeze(1), rotary.sin[rows.positions].unsqueeze(1)
        qk = rotate_heads(qkv, kv_heads, norms, cos, sin)
        kv[0, rows.slots] = qk[:, -kv_heads:]
        kv[1, rows.slots] = qkv[:, -kv_heads:]
        return qk[:, :-kv_heads]

    def attend(self, query: Tensor, kv: Tensor, rows: Rows) -> Tensor:
        """Gathers every page of a window and masks what a row does not see: slow, obvious, and static."""
        n, heads, head_dim = query.shape
        slots, seen = visible(rows)
        group = heads // kv.shape[2]
        keys, values = (side[slots].repeat_interleave(group, 2).transpose(1, 2) for side in kv)  # [B, H, T, hd]
        windows = rows.num_windows
        if n == windows * rows.max_rows:  # all windows are of one size, and share their keys among their rows
            query, seen = query.view(windows, rows.max_rows, heads, head_dim), seen.view(windows, rows.max_rows, -1)
        else:
            window = window_of(rows)
            query, seen, keys, values = query[:, None], seen[:, None], keys[window], values[window]
        out = F.scaled_dot_product_attention(query.transpose(1, 2), keys, values, attn_mask=seen[:, None])
        return out.transpose(1, 2).reshape(n, heads * head_dim)

    def choose(self, logits: Tensor, choice: Choice) -> Tensor:
        vocab = logits.shape[-1]
        scaled = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if choice.allowed is not None:
            ids = torch.arange(vocab, device=logits.device)
            allowed = (choice.allowed[:, ids // 32] >> (ids % 32)) & 1
            scaled = torch.where(allowed.bool(), scaled, -torch.inf)
        sampled = choice.temperature[:, None] > 0
        scaled = torch.where(sampled, scaled / torch.where(sampled, choice.temperature[:, None], 1.0), scaled)
        keyed = torch.where(sampled, scaled + self.noise(choice.seed, choice.index, vocab), scaled)
        highest = scaled.amax(-1, keepdim=True)
        weights = (scaled - highest).exp()
        total = weights.sum(-1)
        floor = highest[:, 0] + choice.min_p.log()
        top_k = torch.where(choice.top_k > 0, choice.top_k, vocab)
        settled = torch.full_like(choice.seed, -1)
        for _ in range(ROUNDS):
            chosen = keyed.argmax(-1)
            level = scaled.gather(-1, chosen[:, None])
            above = scaled > level
            kept = (weights * above).sum(-1) < choice.top_p * total
            kept &= (above.sum(-1) < top_k) & (level[:, 0] >= floor)
            kept |= ~sampled[:, 0] | (choice.top_p >= 1.0) & (choice.top_k == 0) & (choice.min_p == 0.0)
            settled = torch.where((settled < 0) & kept, chosen, settled)
            keyed = torch.where(scaled <= level, -torch.inf, keyed)
        return settled

    def noise(self, seed: Tensor, index: Tensor, vocab_size: int) -> Tensor:
        return gumbel_of_bits(noise_bits(seed, index, vocab_size))


def window_of(rows: Rows) -> Tensor:
    """int64 [n]: the window of each row."""
    at = torch.arange(rows.num_rows, device=rows.starts.device, dtype=rows.starts.dtype)
    return torch.searchsorted(rows.starts[1:], at, right=True).clamp_max(rows.num_windows - 1)


def visible(rows: Rows) -> tuple[Tensor, Tensor]:
    """(slots int64 [B, T] of every position in a window's pages, seen bool [n, T])."""
    device, size = rows.tables.device, rows.page_tokens
    width = rows.tables.shape[1] * size
    at = torch.arange(width, device=device)
    slots = rows.tables[:, at // size].long() * size + at % size
    window = window_of(rows)
    node = at[None] - rows.lengths[window][:, None]  # of the window's scratch; below zero it is committed
    own = torch.arange(rows.num_rows, device=device) - rows.starts[window] + rows.computed[window]
    if rows.ancestors is None:
        return slots, node <= own[:, None]
    count = rows.ancestors.shape[1] * 64
    sees = unpack_bits(rows.ancestors, count).gather(1, node.clamp(0, count - 1).long())
    return slots, (node < 0) | (sees & (node < count))
