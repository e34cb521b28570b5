"""The EAGLE-3 head as it is trained: one decoder layer, unrolled over its own outputs ("training-time test").

Owns the unrolled forward and the published file layout (`midlayer.*`). Knows no data and no schedule. That the unroll
computes what the engine's drafting computes, step by step, is tested.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from training.llama import MLP, Llama, RMSNorm, Shape, rotary, rotate


@dataclass(frozen=True)
class Rows:
    """Where drafts begin in a batch of B conversations of T tokens, M to a conversation.

    at: int64 [B, M], position t of the last target feature that the draft has; the token at t + 1 is its root.
    valid: bool [B, M, steps], whether the token that step i predicts (at t + 2 + i) is learned.
    """

    at: Tensor
    valid: Tensor


class Midlayer(nn.Module):
    """A decoder layer whose attention reads [embedding, hidden state]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = 2 * shape.hidden
        self.hidden_norm = RMSNorm(shape.hidden, shape.norm_eps)
        self.input_layernorm = RMSNorm(shape.hidden, shape.norm_eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.norm_eps)
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(width, shape.heads * shape.head_dim, bias=False),
                "k_proj": nn.Linear(width, shape.kv_heads * shape.head_dim, bias=False),
                "v_proj": nn.Linear(width, shape.kv_heads * shape.head_dim, bias=False),
                "o_proj": nn.Linear(shape.heads * shape.head_dim, shape.hidden, bias=False),
            }
        )
        self.mlp = MLP(shape)


class Eagle3Head(nn.Module):
    """The trained parameters. `taps`: places of the target's residual stream that are fused (input of layer i)."""

    def __init__(self, shape: Shape, taps: tuple[int, ...], draft_ids: Tensor) -> None:
        """draft_ids: int64 [draft vocabulary], ascending target ids."""
        super().__init__()
        self.shape, self.taps = shape, taps
        self.fc = nn.Linear(len(taps) * shape.hidden, shape.hidden, bias=False)
        self.midlayer = Midlayer(shape)
        self.norm = RMSNorm(shape.hidden, shape.norm_eps)
        self.lm_head = nn.Linear(shape.hidden, len(draft_ids), bias=False)
        self.register_buffer("draft_ids", draft_ids, persistent=False)
        cos, sin = rotary(shape, shape.max_positions)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02 * (0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1))

    @torch.no_grad()
    def begin_like(self, target: Llama) -> None:
        """Start from the target: its output rows, its last norm, and the topmost fused state passed through."""
        size = self.shape.hidden
        self.fc.weight[:, -size:] += torch.eye(size)
        self.norm.weight.copy_(target.model.norm.weight)
        self.lm_head.weight.copy_(target.model.embed_tokens.weight[self.draft_ids])

    def forward(self, features: Tensor, ids: Tensor, embedding: Tensor, rows: Rows) -> list[Tensor]:
        """Logits [B, M, draft vocabulary] of every step of the unroll.

        features: [B, T, taps * d], the target's states. ids: [B, T]. embedding: [V, d], the target's, frozen.
        Step i at row t takes the previous step's output (step 0: the fused features at t), the token at t + 1 + i, and
        sees the pairs up to t and its own earlier steps. Tokens are the conversation's own, states are the head's.
        """
        length = ids.shape[1]
        following = F.pad(ids[:, 1:], (0, 1))
        fused = self.fc(features).float()  # the stream stays in fp32, whose norms are fused kernels
        q, k, v, residual = self._project(fused, following, embedding, torch.arange(length))
        q, residual = _gather(q, rows.at), _gather(residual, rows.at)
        past_k, past_v = self._expand(k), self._expand(v)
        past_mask = (torch.arange(length) <= rows.at[..., None])[:, None]  # [B, 1, M, T]
        own_k: list[Tensor] = []
        own_v: list[Tensor] = []
        logits = []
        for step in range(rows.valid.shape[-1]):
            if step:
                at = (rows.at + 1 + step).clamp(max=length - 1)
                q, k, v, residual = self._project(hidden, ids.gather(1, at), embedding, rows.at + step)  # noqa: F821
                own_k.append(self._expand(k))
                own_v.append(self._expand(v))
            hidden = self._output(q, past_k, past_v, past_mask, own_k, own_v, residual)
            logits.append(self.lm_head(self.norm(hidden)))
        return logits

    def _project(
        self, hidden: Tensor, tokens: Tensor, embedding: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(q, k, v [B, n, heads, head_dim], residual [B, n, d]) of pairs of a state and the token that followed."""
        layer, shape = self.midlayer, self.shape
        embedded = layer.input_layernorm(embedding[tokens])
        x = torch.cat([embedded, layer.hidden_norm(hidden)], -1)
        cos, sin = self.cos[positions].unsqueeze(-2), self.sin[positions].unsqueeze(-2)
        split = (*x.shape[:2], -1, shape.head_dim)
        q, k, v = (layer.self_attn[f"{name}_proj"](x).view(split) for name in "qkv")
        return rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype), v, hidden

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
        x = residual + self.midlayer.self_attn["o_proj"](out.transpose(1, 2).flatten(2))
        return x + self.midlayer.mlp(self.midlayer.post_attention_layernorm(x))

    def config(self) -> dict[str, Any]:
        """`config.json` in the layout of SpecForge: top-level layer ids are those whose input is tapped."""
        kept = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
        kept += ("hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_theta", "vocab_size")
        shape = self.shape.config()
        return {
            "architectures": ["LlamaForCausalLMEagle3"],
            "model_type": "llama",
            **{key: shape[key] for key in kept},
            "num_hidden_layers": 1,
            "draft_vocab_size": len(self.draft_ids),
            "eagle_aux_hidden_state_layer_ids": list(self.taps),
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }

    def save(self, directory: Path) -> None:
        """The published layout: `midlayer.*`, `d2t` (offsets, int64 [draft]) and `t2d` (bool [vocabulary])."""
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().bfloat16().contiguous() for name, value in self.named_parameters()}
        tensors["d2t"] = self.draft_ids - torch.arange(len(self.draft_ids))
        tensors["t2d"] = torch.zeros(self.shape.vocab, dtype=torch.bool)
        tensors["t2d"][self.draft_ids] = True
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        (directory / "model.safetensors").chmod(0o644)
        (directory / "config.json").write_text(json.dumps(self.config(), indent=2) + "\n")


def _gather(x: Tensor, at: Tensor) -> Tensor:
    """x [B, T, ...] at positions [B, M]: [B, M, ...]."""
    return x[torch.arange(x.shape[0])[:, None], at]
