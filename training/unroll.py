"""A pair head as it is trained: one decoder layer, unrolled over its own outputs ("training-time test", Li et al. 2025,
arXiv 2503.01840).

Owns the unrolled forward that EAGLE-3 heads and MTP modules share; what sets them apart is in the subclass. Knows no
data, no schedule and no file. That the unroll computes what the engine's drafting computes is tested with each.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.frozen import FrozenTarget
from training.llama import Shape, rotary


@dataclass(frozen=True)
class Rows:
    """Where drafts begin in a batch of B conversations of T tokens, M to a conversation.

    at: int64 [B, M], position t of the last target feature that the draft has; the token at t + 1 is its root.
    valid: bool [B, M, steps], whether the token that step i predicts (at t + 2 + i) is learned.
    """

    at: Tensor
    valid: Tensor

    def to(self, device: torch.device) -> "Rows":
        return Rows(self.at.to(device), self.valid.to(device))


class Unrolled(nn.Module, ABC):
    """A head of one decoder layer. A subclass has the parameters and says what is read, and what is predicted from.

    `layer`: has `self_attn` (a `training.llama.Attention`), `post_attention_layernorm` and `mlp`.
    """

    layer: nn.Module

    def __init__(self, shape: Shape, draft_ids: Tensor) -> None:
        """draft_ids: int64 [draft vocabulary], ascending target ids."""
        super().__init__()
        self.shape = shape
        self.register_buffer("draft_ids", draft_ids, persistent=False)
        cos, sin = rotary(shape, shape.max_positions)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def draw(self) -> None:
        """Random matrices, half as large where they write to the stream, and biases of 0."""
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02 * (0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1))
            elif name.endswith(".bias"):
                nn.init.zeros_(weight)

    @abstractmethod
    def fuse(self, features: Tensor) -> Tensor:
        """The head's states [B, T, d] of the target's [B, T, taps * d]."""

    @abstractmethod
    def join(self, embedded: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(what attention reads [B, n, width], residual [B, n, d]) of tokens' embeddings and the states before them,
        both [B, n, d]."""

    @abstractmethod
    def close(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(states that are predicted from, states fed to the next step) of the layer's outputs, all [B, M, d]."""

    @abstractmethod
    def output_rows(self, step: int, target: FrozenTarget) -> Tensor:
        """[draft vocabulary, d]: the product with the states of a step is its logits."""

    def forward(self, features: Tensor, ids: Tensor, embedding: Tensor, rows: Rows) -> list[Tensor]:
        """The states [B, M, d] that every step of the unroll predicts from.

        features: [B, T, taps * d], the target's states. ids: [B, T]. embedding: [V, d], the target's, frozen.
        Step i at row t takes what the previous step fed (step 0: the fused features at t), the token at t + 1 + i, and
        sees the pairs up to t and its own earlier steps. Tokens are the conversation's own, states are the head's.
        """
        length = ids.shape[1]
        following = F.pad(ids[:, 1:], (0, 1))
        fed = self.fuse(features).float()  # the stream stays in fp32, whose norms are fused kernels
        q, k, v, residual = self._project(fed, following, embedding, torch.arange(length, device=ids.device))
        q, residual = _gather(q, rows.at), _gather(residual, rows.at)
        past_k, past_v = self._expand(k), self._expand(v)
        past_mask = (torch.arange(length, device=ids.device) <= rows.at[..., None])[:, None]  # [B, 1, M, T]
        own_k: list[Tensor] = []
        own_v: list[Tensor] = []
        states = []
        for step in range(rows.valid.shape[-1]):
            if step:
                # A row at the end of a full context has steps that lead beyond it: they are not learned.
                at = (rows.at + 1 + step).clamp(max=length - 1)
                positions = (rows.at + step).clamp(max=length - 1)
                q, k, v, residual = self._project(fed, ids.gather(1, at), embedding, positions)
                own_k.append(self._expand(k))
                own_v.append(self._expand(v))
            hidden = self._output(q, past_k, past_v, past_mask, own_k, own_v, residual)
            predicting, fed = self.close(hidden)
            states.append(predicting)
        return states

    def _project(
        self, hidden: Tensor, tokens: Tensor, embedding: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(q, k, v [B, n, heads, head_dim], residual [B, n, d]) of pairs of a state and the token that followed."""
        x, residual = self.join(embedding[tokens], hidden)
        return *self.layer.self_attn.project(x, self.cos[positions], self.sin[positions]), residual

    def _expand(self, x: Tensor) -> Tensor:
        """Keys or values [B, n, kv_heads, head_dim] to [B, heads, n, head_dim]."""
        return x.repeat_interleave(self.shape.heads // self.shape.kv_heads, dim=2).transpose(1, 2)

    def _output(
        self,
        q: Tensor,
        past_k: Tensor,
        past_v: Tensor,
        past_mask: Tensor,
        own_k: list[Tensor],
        own_v: list[Tensor],
        residual: Tensor,
    ) -> Tensor:
        """States [B, M, d]. A row sees the masked past and, of each earlier step of the unroll, the same row only."""
        q = q.transpose(1, 2) / math.sqrt(self.shape.head_dim)
        scores = (q @ past_k.mT).float().masked_fill(~past_mask, -torch.inf)
        own = [(q * k).sum(-1, keepdim=True).float() for k in own_k]
        probs = torch.cat([scores, *own], -1).softmax(-1).to(past_v.dtype)
        length = past_k.shape[2]
        out = probs[..., :length] @ past_v
        for step, v in enumerate(own_v):
            out = out + probs[..., length + step, None] * v
        x = residual + self.layer.self_attn.o_proj(out.transpose(1, 2).flatten(2))
        return x + self.layer.mlp(self.layer.post_attention_layernorm(x))


def _gather(x: Tensor, at: Tensor) -> Tensor:
    """x [B, T, ...] at positions [B, M]: [B, M, ...]."""
    return x[torch.arange(x.shape[0], device=x.device)[:, None], at]
