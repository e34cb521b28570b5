"""Random MTP modules in the layouts that are published, and a slow, obvious module to compare with."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.models.config import DecoderConfig
from engine.models.decoder import Decoder
from engine.weights import INDEX
from tests.engine.proposers.heads import SlowHead

MIMO_NAMES = {
    "enorm": "token_layernorm",
    "hnorm": "hidden_layernorm",
    "eh_proj": "input_proj",
    "shared_head.norm": "final_layernorm",
}


def random_module(target: DecoderConfig, seed: int = 0) -> dict[str, Tensor]:
    """Tensors under DeepSeek's names without their prefix, float64. Norms and biases are random too."""
    g = torch.Generator().manual_seed(seed)
    hidden, inner = target.hidden_size, target.intermediate_size
    rows = {"q": target.num_heads * target.head_dim, "k": target.num_kv_heads * target.head_dim}
    rows["v"] = rows["k"]

    def r(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64) * 0.2

    tensors = {
        "eh_proj.weight": r(hidden, 2 * hidden),
        "self_attn.o_proj.weight": r(hidden, rows["q"]),
        "mlp.gate_proj.weight": r(inner, hidden),
        "mlp.up_proj.weight": r(inner, hidden),
        "mlp.down_proj.weight": r(hidden, inner),
        **{f"self_attn.{name}_proj.weight": r(n, hidden) for name, n in rows.items()},
    }
    for name in ("enorm", "hnorm", "input_layernorm", "post_attention_layernorm", "shared_head.norm"):
        tensors[f"{name}.weight"] = 1 + r(hidden)
    if target.qkv_bias:
        tensors |= {f"self_attn.{name}_proj.bias": r(n) for name, n in rows.items()}
    if target.qk_norm:
        tensors |= {f"self_attn.{name}_norm.weight": 1 + r(target.head_dim) for name in "qk"}
    return tensors


def deepseek(tensors: dict[str, Tensor], layer: int) -> dict[str, Tensor]:
    """The names of a module behind ``layer`` layers."""
    return {f"model.layers.{layer}.{name}": tensor for name, tensor in tensors.items()}


def mimo(tensors: dict[str, Tensor], number: int = 0) -> dict[str, Tensor]:
    """MiMo's names of its module ``number``."""

    def own(name: str) -> str:
        part = name.removesuffix(".weight")
        return f"{MIMO_NAMES[part]}.weight" if part in MIMO_NAMES else name

    return {f"model.mtp_layers.{number}.{own(name)}": tensor for name, tensor in tensors.items()}


def write(directory: Path, tensors: dict[str, Tensor]) -> Path:
    """A module alone: no config."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors")
    return directory


def write_into(directory: Path, tensors: dict[str, Tensor], *, sharded: bool = False) -> Path:
    """Add a module to the model in ``directory``; sharded: spread over two files of what was one."""
    everything = load_file(directory / "model.safetensors") | tensors
    if not sharded:
        return write(directory, everything)
    files = ("model-1.safetensors", "model-2.safetensors")
    shard_of = {name: files[i % 2] for i, name in enumerate(sorted(everything))}
    for file in files:
        shard = {name: everything[name].contiguous() for name, its in shard_of.items() if its == file}
        save_file(shard, directory / file)
    (directory / "model.safetensors").unlink()
    (directory / INDEX).write_text(json.dumps({"weight_map": shard_of}))
    return directory


class SlowModule(SlowHead):
    """The module written out plainly: no cache, no merged weights, one pair after another in one causal sequence.

    ``run`` and ``log_prob`` take features [m, 1, d].
    """

    def __init__(
        self, tensors: dict[str, Tensor], target: Decoder, *, embedding_first: bool, feed_normed: bool = True
    ) -> None:
        config = target.config
        shared = {"embed_tokens.weight": target.embedding, "shared_head.head.weight": target.lm_head_weight}
        tensors = shared | tensors
        names = {"shared_head.norm.weight": "norm.weight", "shared_head.head.weight": "lm_head.weight"}
        super().__init__(
            {names.get(name, name): tensor for name, tensor in tensors.items()},
            tensors["embed_tokens.weight"],
            heads=config.num_heads,
            head_dim=config.head_dim,
            theta=config.rope["rope_theta"],
            eps=config.rms_norm_eps,
            feed_normed=feed_normed,
        )
        self.embedding_first = embedding_first

    def fuse(self, features: Tensor) -> Tensor:
        return features[:, 0]

    def run(self, hidden: Tensor, tokens: list[int]) -> Tensor:
        m, t = len(tokens), self.t
        embedded = self.norm(self.embedding[tokens], t["enorm.weight"])
        state = self.norm(hidden, t["hnorm.weight"])
        x = torch.cat([embedded, state] if self.embedding_first else [state, embedded], -1) @ t["eh_proj.weight"].T
        read = self.norm(x, t["input_layernorm.weight"])

        def split(name: str) -> Tensor:
            y = read @ t[f"self_attn.{name}_proj.weight"].T + t.get(f"self_attn.{name}_proj.bias", torch.zeros(1))
            y = y.view(m, -1, self.head_dim).transpose(0, 1)
            norm = t.get(f"self_attn.{name}_norm.weight")
            return y if norm is None else self.norm(y, norm)

        q, k, v = self.rope(split("q")), self.rope(split("k")), split("v")
        k, v = (y.repeat_interleave(self.heads // y.shape[0], 0) for y in (k, v))
        scores = (q @ k.transpose(1, 2)) / self.head_dim**0.5
        weights = scores.masked_fill(~torch.ones(m, m, dtype=torch.bool).tril(), -torch.inf).softmax(-1)
        x = x + (weights @ v).transpose(0, 1).reshape(m, -1) @ t["self_attn.o_proj.weight"].T
        z = self.norm(x, t["post_attention_layernorm.weight"])
        gated = torch.nn.functional.silu(z @ t["mlp.gate_proj.weight"].T) * (z @ t["mlp.up_proj.weight"].T)
        return x + gated @ t["mlp.down_proj.weight"].T
