"""A plain Llama for training: the module names of Hugging Face's LlamaForCausalLM, so that its checkpoint loads there
as it is. Its layer is also that of Llama's kin, where a shape says so.

Owns the forward pass without a cache. Knows nothing of data or optimisers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.models.layers import Rotary
from training.attention import CausalAttention


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama, and what sets its kin apart. `head_dim * heads` may differ from `hidden`.

    rope_scaling: as in `config.json`, None for plain RoPE. qkv_bias, output_bias: of the attention's projections.
    qk_norm: of every head's queries and keys.
    """

    vocab: int = 2048
    hidden: int = 256
    layers: int = 8
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    intermediate: int = 512
    rope_theta: float = 5e5
    norm_eps: float = 1e-5
    max_positions: int = 2048
    rope_scaling: Mapping[str, Any] | None = None
    architecture: str = "LlamaForCausalLM"
    tied: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False

    @property
    def plain(self) -> "Shape":
        """The same sizes, and nothing that a Llama with plain RoPE lacks."""
        return replace(self, rope_scaling=None, qkv_bias=False, output_bias=False, qk_norm=False)

    def config(self) -> dict[str, Any]:
        """`config.json` of such a model."""
        scaling = {"rope_scaling": dict(self.rope_scaling)} if self.rope_scaling else {}
        return {
            "architectures": [self.architecture],
            "model_type": self.architecture.removesuffix("ForCausalLM").lower(),
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            **scaling,
            "tie_word_embeddings": self.tied,
            "attention_bias": self.output_bias,  # of all four; where the output has none, the architecture tells
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
        }


class RMSNorm(nn.Module):
    """Root mean square norm (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def rotary(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """The tables [length, head_dim] of RoPE (arXiv 2104.09864) that the engine rotates with, of whatever scaling."""
    settings = {"rope_type": "default", **(shape.rope_scaling or {}), "rope_theta": shape.rope_theta}
    table = Rotary(settings, shape.head_dim, length, torch.float32, torch.device("cpu"))
    return table.cos, table.sin


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE of x [..., head_dim]; the first half of `sin` is negated."""
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


class Attention(nn.Module):
    """Grouped-query attention, causal over the whole row."""

    def __init__(self, shape: Shape, width: int | None = None) -> None:
        """width: of what is read; `hidden` unless given."""
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = shape.heads, shape.kv_heads, shape.head_dim
        width, bias = width or shape.hidden, shape.qkv_bias
        self.q_proj = nn.Linear(width, shape.heads * shape.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, shape.kv_heads * shape.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, shape.kv_heads * shape.head_dim, bias=bias)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.hidden, bias=shape.output_bias)
        self.q_norm = RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else None
        self.k_norm = RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else None

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, [B, n, heads, head_dim], of x [B, n, width].

        cos, sin: [..., n, head_dim], of the positions.
        """
        split = (*x.shape[:2], -1, self.head_dim)
        q, k, v = (getattr(self, f"{name}_proj")(x).view(split) for name in "qkv")
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q.float()), self.k_norm(k.float())
        cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
        return rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype), v

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in self.project(x, cos, sin))
        groups = self.heads // self.kv_heads
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        out = CausalAttention.apply(q, k, v)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Pre-norm attention and MLP on the residual stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = MLP(shape)
        self.input_layernorm = RMSNorm(shape.hidden, shape.norm_eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embeddings, layers and the final norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden, shape.norm_eps)
        cos, sin = rotary(shape, shape.max_positions)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Final hidden states [B, T, hidden] of ids [B, T]."""
        x = self.embed_tokens(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)


class Llama(nn.Module):
    """A Llama with tied embeddings; `forward` returns logits [B, T, vocab]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                scale = (2 * shape.layers) ** -0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                nn.init.normal_(weight, std=0.02 * scale)

    def forward(self, ids: Tensor) -> Tensor:
        return self.logits(self.model(ids))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocab] of final hidden states [..., hidden]."""
        return F.linear(hidden, self.model.embed_tokens.weight)
