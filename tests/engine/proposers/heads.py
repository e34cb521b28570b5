"""Random EAGLE-3 heads in the published layouts, and a slow, obvious head to compare with."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.models.config import DecoderConfig


def random_head(
    target: DecoderConfig,
    *,
    draft_vocab: int = 60,
    heads: int = 4,
    head_dim: int = 16,
    seed: int = 0,
    width: int | None = None,
) -> dict[str, Tensor]:
    """Tensors under EAGLE's names, float64. Norm weights are random too: constants would hide mistakes.

    width: of the head's hidden states, the target's unless given.
    """
    g = torch.Generator().manual_seed(seed)
    hidden, inner, kv = width or target.hidden_size, 64, heads // 2

    def r(*shape: int, scale: float = 0.2) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64) * scale

    kept = torch.randperm(target.vocab_size, generator=g)[:draft_vocab].sort().values
    t2d = torch.zeros(target.vocab_size, dtype=torch.bool)
    t2d[kept] = True
    return {
        "fc.weight": r(hidden, 3 * target.hidden_size),
        "midlayer.hidden_norm.weight": 1 + r(hidden),
        "midlayer.input_layernorm.weight": 1 + r(hidden),
        "midlayer.post_attention_layernorm.weight": 1 + r(hidden),
        "midlayer.self_attn.q_proj.weight": r(heads * head_dim, 2 * hidden),
        "midlayer.self_attn.k_proj.weight": r(kv * head_dim, 2 * hidden),
        "midlayer.self_attn.v_proj.weight": r(kv * head_dim, 2 * hidden),
        "midlayer.self_attn.o_proj.weight": r(hidden, heads * head_dim),
        "midlayer.mlp.gate_proj.weight": r(inner, hidden),
        "midlayer.mlp.up_proj.weight": r(inner, hidden),
        "midlayer.mlp.down_proj.weight": r(hidden, inner),
        "norm.weight": 1 + r(hidden),
        "lm_head.weight": r(draft_vocab, hidden, scale=1.0),
        "d2t": kept - torch.arange(draft_vocab),
        "t2d": t2d,
    }


def head_config(target: DecoderConfig, *, heads: int = 4, **more: Any) -> dict[str, Any]:
    """A config as EAGLE publishes it: no rope_theta, no head_dim."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": target.hidden_size,
        "intermediate_size": 64,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "num_hidden_layers": 1,
        "rms_norm_eps": 1e-5,
        "vocab_size": target.vocab_size,
        **more,
    }


def write(directory: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    return directory


class SlowHead:
    """The head written out plainly: no cache, no merged weights, one pair after another in one causal sequence.

    scaling: the numbers of a llama3 RoPE.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        embedding: Tensor,
        *,
        heads: int = 4,
        head_dim: int = 16,
        theta: float = 10_000.0,
        scaling: Mapping[str, float] | None = None,
        eps: float = 1e-5,
        norm_before_residual: bool = False,
        feed_normed: bool = False,
    ) -> None:
        self.t = {name.removeprefix("midlayer."): tensor for name, tensor in tensors.items()}
        self.embedding, self.heads, self.head_dim, self.theta, self.eps = embedding, heads, head_dim, theta, eps
        self.scaling = scaling
        self.norm_before_residual, self.feed_normed = norm_before_residual, feed_normed

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt() * weight

    def fuse(self, features: Tensor) -> Tensor:
        """[m, 3, d] -> [m, H]"""
        if "fc_norm.0.weight" in self.t:
            features = torch.stack([self.norm(features[:, i], self.t[f"fc_norm.{i}.weight"]) for i in range(3)], 1)
        flat = features.reshape(features.shape[0], -1)
        if "input_norm.weight" in self.t:
            flat = self.norm(flat, self.t["input_norm.weight"])
        return flat @ self.t["fc.weight"].T

    def run(self, hidden: Tensor, tokens: list[int]) -> Tensor:
        """Un-normed outputs [m, H] of pairs of hidden states [m, H] and the tokens that follow them."""
        m, t = len(tokens), self.t
        normed = self.norm(hidden, t["hidden_norm.weight"])
        residual = normed if self.norm_before_residual else hidden
        x = torch.cat([self.norm(self.embedding[tokens], t["input_layernorm.weight"]), normed], -1)

        def split(name: str) -> Tensor:
            y = (x @ t[f"self_attn.{name}_proj.weight"].T).view(m, -1, self.head_dim).transpose(0, 1)
            if f"self_attn.{name}_norm.weight" in t:
                y = self.norm(y, t[f"self_attn.{name}_norm.weight"])
            return y

        q, k, v = self.rope(split("q")), self.rope(split("k")), split("v")
        k, v = (y.repeat_interleave(self.heads // y.shape[0], 0) for y in (k, v))
        weights = (q @ k.transpose(1, 2)) / self.head_dim**0.5
        weights = weights.masked_fill(~torch.ones(m, m, dtype=torch.bool).tril(), -torch.inf).softmax(-1)
        y = (weights @ v).transpose(0, 1).reshape(m, -1) @ t["self_attn.o_proj.weight"].T
        x = residual + y
        z = self.norm(x, t["post_attention_layernorm.weight"])
        gated = torch.nn.functional.silu(z @ t["mlp.gate_proj.weight"].T) * (z @ t["mlp.up_proj.weight"].T)
        return x + gated @ t["mlp.down_proj.weight"].T

    def rope(self, x: Tensor) -> Tensor:
        half = self.head_dim // 2
        frequency = torch.tensor([self.frequency(i / half) for i in range(half)], dtype=torch.float64)
        angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * frequency
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    def frequency(self, share: float) -> float:
        """Radians per position of the pair of dimensions that stands ``share`` of the way through the head.

        Llama 3.1's scaling goes by a wave's length: the short ones stay, the long ones are stretched by ``factor``,
        and those between are blended.
        """
        plain: float = self.theta**-share
        if self.scaling is None:
            return plain
        context, factor = self.scaling["original_max_position_embeddings"], self.scaling["factor"]
        low, high = self.scaling["low_freq_factor"], self.scaling["high_freq_factor"]
        waves = context * plain / (2 * math.pi)  # that fit into the context it was first trained with
        if waves > high:
            return plain
        if waves < low:
            return plain / factor
        blend = (waves - low) / (high - low)
        return blend * plain + (1 - blend) * plain / factor

    def log_prob(self, features: Tensor, tokens: list[int], root: int, path: list[int]) -> float:
        """Log-probability of drafting ``path`` after ``root``: features [c, 3, d] and tokens of positions 0 to c - 1.

        Pair i joins feature i with token i + 1; each drafted token joins the head's own last output.
        """
        d2t = self.t.get("d2t")
        size = self.t["lm_head.weight"].shape[0]
        ids = (torch.arange(size) + (0 if d2t is None else d2t)).tolist()
        hidden, follow, total = self.fuse(features), [*tokens[1:], root], 0.0
        for token in path:
            out = self.run(hidden, follow)[-1:]
            normed = self.norm(out, self.t["norm.weight"])
            total += float((normed @ self.t["lm_head.weight"].T).log_softmax(-1)[0, ids.index(token)])
            hidden = torch.cat([hidden, normed if self.feed_normed else out])
            follow = [*follow, token]
        return total
