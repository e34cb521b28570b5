"""A dense decoder-only transformer: Llama 3.x, Mistral, Qwen2/2.5 and Qwen3 differ in data (``config.FAMILIES``).

Owns the weights and the pool of pages. The windows of a forward share one pass over the weights, whatever they are:
prefill, trees, single nodes. Knows nothing of drafting, sampling or sessions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.cache import Geometry, KVCache, PagePool
from engine.errors import ModelError
from engine.interfaces import Output, Tap, Window
from engine.models.config import DecoderConfig, read_config
from engine.models.layers import Place, Places, Rotary, rms_norm, rotate, swiglu
from engine.weights import Weights, pack


@dataclass(frozen=True, eq=False)
class Layer:
    """One block's weights, projections that read the same input merged."""

    attention_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    output: Tensor
    output_bias: Tensor | None
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


class Decoder:
    """A target (``engine.interfaces.Target``)."""

    def __init__(
        self,
        config: DecoderConfig,
        embedding: Tensor,
        layers: Sequence[Layer],
        norm: Tensor,
        lm_head: Tensor,
        *,
        pool_tokens: int,
        page_tokens: int,
        max_context_tokens: int = 0,
    ) -> None:
        self.config = config
        self._max_context_tokens = min(config.max_positions, max_context_tokens or config.max_positions)
        self.embedding = embedding
        self.lm_head_weight = lm_head
        self.pool = PagePool(
            Geometry(config.num_layers, config.num_kv_heads, config.head_dim, embedding.dtype, embedding.device),
            max(1, pool_tokens // page_tokens),
            page_tokens,
        )
        self._layers = layers
        self._norm = norm
        self._rotary = Rotary(config.rope, config.head_dim, config.max_positions, embedding.dtype, embedding.device)

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def num_layers(self) -> int:
        return self.config.num_layers

    @property
    def max_context_tokens(self) -> int:
        return self._max_context_tokens

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    def new_cache(self) -> KVCache:
        return KVCache(self.pool)

    def forward(self, windows: Sequence[Window], taps: Sequence[Tap] = ()) -> list[Output]:
        for tap in taps:
            if tap != "norm" and not 0 <= tap <= self.num_layers:
                raise ModelError(f"tap {tap} is not in the residual stream of {self.num_layers} layers")
        places = [Place.of(window.cache, window.tree, self._rotary, window.computed) for window in windows]
        place = Places.of(places)
        ids = [window.tree.tokens[window.computed :] for window in windows]
        x = self.embedding[(ids[0] if len(ids) == 1 else torch.cat(ids)).to(self.device)]
        tapped: dict[Tap, Tensor] = {0: x} if 0 in taps else {}
        for index, layer in enumerate(self._layers):
            x = self.block(x, layer, self.pool.kv[index], place)
            if index + 1 in taps:
                tapped[index + 1] = x
        rows = [len(some) for some in ids]
        wanted = [{"all": count, "last": 1, "none": 0}[w.logits] for w, count in zip(windows, rows, strict=True)]
        normed = x
        if "norm" in taps:
            normed = tapped["norm"] = rms_norm(x, self._norm, self.config.rms_norm_eps)
        chosen = _last_rows(normed, rows, wanted)
        if "norm" not in taps:
            chosen = rms_norm(chosen, self._norm, self.config.rms_norm_eps)
        logits = torch.split(F.linear(chosen, self.lm_head_weight), wanted) if any(wanted) else [None] * len(windows)
        features = torch.split(torch.stack([tapped[tap] for tap in taps], 1), rows) if taps else [None] * len(windows)
        pairs = zip(logits, features, strict=True)
        return [Output(some if some is not None and len(some) else None, feature) for some, feature in pairs]

    def block(self, x: Tensor, layer: Layer, kv: Tensor, place: Place | Places) -> Tensor:
        """One pre-norm block: [n, d] -> [n, d]. kv: this layer's [2, slots, kv_heads, head_dim]."""
        config = self.config
        heads, kv_heads, eps = config.num_heads, config.num_kv_heads, config.rms_norm_eps
        qkv = F.linear(rms_norm(x, layer.attention_norm, eps), layer.qkv, layer.qkv_bias)
        qkv = qkv.view(x.shape[0], heads + 2 * kv_heads, config.head_dim)
        if layer.q_norm is not None and layer.k_norm is not None:
            q = rms_norm(qkv[:, :heads], layer.q_norm, eps)
            k = rms_norm(qkv[:, heads : heads + kv_heads], layer.k_norm, eps)
            qk = rotate(torch.cat([q, k], 1), place.cos, place.sin)
        else:
            qk = rotate(qkv[:, : heads + kv_heads], place.cos, place.sin)
        place.put(kv, qk[:, heads:], qkv[:, heads + kv_heads :])
        x = x + F.linear(place.attend(qk[:, :heads], kv), layer.output, layer.output_bias)
        return x + swiglu(rms_norm(x, layer.mlp_norm, eps), layer.gate_up, layer.down)


def _last_rows(x: Tensor, rows: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """The last ``wanted`` of each window's ``rows``, one after the other."""
    if list(rows) == list(wanted):
        return x
    if len(rows) == 1:
        return x[rows[0] - wanted[0] :]
    return torch.cat(
        [some[len(some) - count :] for some, count in zip(torch.split(x, list(rows)), wanted, strict=True)]
    )


def load_target(
    directory: Path | str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    pool_tokens: int = 65_536,
    page_tokens: int = 16,
    max_context_tokens: int = 0,
) -> Decoder:
    """Load a Hugging Face checkpoint directory. Raises ModelError by name for whatever cannot be served.

    max_context_tokens: of one session, no more than the model's own limit; 0 takes that.
    """
    directory = Path(directory)
    config = read_config(directory)
    with Weights(directory, dtype, torch.device(device)) as weights:
        shape = (config.vocab_size, config.hidden_size)
        embedding = weights.take("model.embed_tokens.weight", shape)
        layers = [load_layer(weights, config, index) for index in range(config.num_layers)]
        norm = weights.take("model.norm.weight", (config.hidden_size,))
        tied = config.tied or "lm_head.weight" not in weights.names
        if tied and not config.tied:
            raise ModelError(f"{directory}: tensor lm_head.weight is missing")
        lm_head = pack(embedding if tied else weights.take("lm_head.weight", shape))
        unused = {n for n in weights.unused() if "rotary_emb" not in n and n != "lm_head.weight"}
        unused -= _drafters(weights.names, config.num_layers)
    if unused:
        raise ModelError(f"{directory}: unexpected tensors: {', '.join(sorted(unused)[:5])}")
    return Decoder(
        config,
        embedding,
        layers,
        norm,
        lm_head,
        pool_tokens=pool_tokens,
        page_tokens=page_tokens,
        max_context_tokens=max_context_tokens,
    )


def _drafters(names: set[str], num_layers: int) -> set[str]:
    """Tensors that a checkpoint brings for drafting: Medusa heads and MTP modules.

    A layer past the last is a module where it projects two states; else ``num_hidden_layers`` is wrong.
    """
    projections = (re.fullmatch(r"(model\.layers\.(\d+)\.)eh_proj\.weight", name) for name in names)
    modules = [found[1] for found in projections if found and int(found[2]) >= num_layers]
    return {name for name in names if name.startswith(("medusa_head.", "model.mtp_layers.", *modules))}


def load_layer(weights: Weights, config: DecoderConfig, index: int) -> Layer:
    prefix = f"model.layers.{index}."
    hidden, inner = config.hidden_size, config.intermediate_size
    q_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    projections = [f"{prefix}self_attn.{name}_proj" for name in "qkv"]
    rows = [q_rows, kv_rows, kv_rows]

    def head_norm(name: str) -> Tensor | None:
        return weights.take(f"{prefix}self_attn.{name}.weight", (config.head_dim,)) if config.qk_norm else None

    return Layer(
        attention_norm=weights.take(prefix + "input_layernorm.weight", (hidden,)),
        qkv=pack(weights.merge([f"{name}.weight" for name in projections], [(r, hidden) for r in rows])),
        qkv_bias=weights.merge([f"{name}.bias" for name in projections], [(r,) for r in rows])
        if config.qkv_bias
        else None,
        q_norm=head_norm("q_norm"),
        k_norm=head_norm("k_norm"),
        output=pack(weights.take(prefix + "self_attn.o_proj.weight", (hidden, q_rows))),
        output_bias=weights.take(prefix + "self_attn.o_proj.bias", (hidden,)) if config.output_bias else None,
        mlp_norm=weights.take(prefix + "post_attention_layernorm.weight", (hidden,)),
        gate_up=pack(
            weights.merge([prefix + f"mlp.{name}_proj.weight" for name in ("gate", "up")], [(inner, hidden)] * 2)
        ),
        down=pack(weights.take(prefix + "mlp.down_proj.weight", (hidden, inner))),
    )
