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
from torch import Tensor

from engine.cache import Geometry, KVCache, PagePool
from engine.errors import ModelError
from engine.interfaces import Output, Tap, Window
from engine.kernels import Ops, PagedPlace, ops_for
from engine.kernels.describe import rows_of
from engine.models.config import DecoderConfig, read_config
from engine.models.layers import HeadNorms, Place, Places, Rotary, Weight, WritesAndAttends, linear, rms_norm
from engine.parallel import Shard, ShardedTensors, sharing, summing
from engine.quantize import ReadMatrix, packed, reader
from engine.weights import TensorSource, Weights, pack


@dataclass(frozen=True, eq=False)
class Layer:
    """One block's weights, projections that read the same input merged."""

    attention_norm: Tensor
    qkv: Weight
    qkv_bias: Tensor | None
    head_norms: HeadNorms | None
    output: Weight
    output_bias: Tensor | None
    mlp_norm: Tensor
    gate_up: Weight
    down: Weight


class Decoder:
    """A target (``engine.interfaces.Target``).

    kernels: what computes the parts beside the matrix products, as ``engine.kernels.ops_for`` names it. whole: the
    shape of the model of which ``config`` is one rank's share; None where there is one rank.
    """

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
        kernels: str = "auto",
        whole: DecoderConfig | None = None,
    ) -> None:
        self.config = config
        self.whole = whole or config
        self.ops: Ops = ops_for(embedding.device, kernels, dtype=embedding.dtype, head_dim=config.head_dim)
        self._max_context_tokens = min(config.max_positions, max_context_tokens or config.max_positions)
        self.embedding = embedding
        self.lm_head_weight = lm_head
        self.pool = PagePool(
            Geometry(config.num_layers, config.num_kv_heads, config.head_dim, embedding.dtype, embedding.device),
            max(1, pool_tokens // page_tokens),
            page_tokens,
        )
        self.layers = layers
        self.norm_weight = norm
        self.rotary = Rotary(config.rope, config.head_dim, config.max_positions, embedding.dtype, embedding.device)

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
        ids = [window.tree.tokens[window.computed :] for window in windows]
        tokens = (ids[0] if len(ids) == 1 else torch.cat(ids)).to(self.device)
        x, tapped = self.trunk(tokens, self._place(windows), taps)
        rows = [len(some) for some in ids]
        wanted = [{"all": count, "last": 1, "none": 0}[w.logits] for w, count in zip(windows, rows, strict=True)]
        chosen = _last_rows(tapped["norm"] if "norm" in taps else x, rows, wanted)
        if "norm" not in taps:
            chosen = self.final_norm(chosen)
        logits = torch.split(self.logits(chosen), wanted) if any(wanted) else [None] * len(windows)
        features = torch.split(torch.stack([tapped[tap] for tap in taps], 1), rows) if taps else [None] * len(windows)
        pairs = zip(logits, features, strict=True)
        return [Output(some if some is not None and len(some) else None, feature) for some, feature in pairs]

    def trunk(
        self, tokens: Tensor, place: WritesAndAttends, taps: Sequence[Tap] = ()
    ) -> tuple[Tensor, dict[Tap, Tensor]]:
        """(the stream behind the last layer [n, d], the states that are tapped) of tokens [n] on the device."""
        x, delta = self.embedding[tokens], None
        tapped: dict[Tap, Tensor] = {0: x} if 0 in taps else {}
        for index, layer in enumerate(self.layers):
            x, delta = self._block(x, delta, layer, self.pool.kv[index], place)
            if index + 1 in taps:
                x, delta = x + delta, None
                tapped[index + 1] = x
        if delta is not None:
            x = x + delta
        if "norm" in taps:
            tapped["norm"] = self.final_norm(x)
        return x, tapped

    def final_norm(self, x: Tensor) -> Tensor:
        """What the LM head reads: [n, d] -> [n, d]."""
        return rms_norm(x, self.norm_weight, self.config.rms_norm_eps)

    def logits(self, normed: Tensor) -> Tensor:
        """[n, d] -> [n, V]"""
        return linear(normed, self.lm_head_weight)

    def block(self, x: Tensor, layer: Layer, kv: Tensor, place: WritesAndAttends) -> Tensor:
        """One pre-norm block: [n, d] -> [n, d]. kv: this layer's [2, slots, kv_heads, head_dim]."""
        x, delta = self._block(x, None, layer, kv, place)
        return x + delta

    def _block(
        self, x: Tensor, delta: Tensor | None, layer: Layer, kv: Tensor, place: WritesAndAttends
    ) -> tuple[Tensor, Tensor]:
        """A block that leaves its last addition to the next one's norm: (x, delta) in and out, their sum the stream."""
        ops, eps = self.ops, self.config.rms_norm_eps
        x, normed = ops.add_norm(x, delta, layer.attention_norm, eps)
        qkv = linear(normed, layer.qkv, layer.qkv_bias).view(x.shape[0], -1, self.config.head_dim)
        query = place.write(qkv, layer.head_norms, kv)
        attended = linear(place.attend(query, kv), layer.output, layer.output_bias)
        x, normed = ops.add_norm(x, attended, layer.mlp_norm, eps)
        return x, linear(ops.gate(linear(normed, layer.gate_up)), layer.down)

    def _place(self, windows: Sequence[Window]) -> WritesAndAttends:
        if self.ops.paged:
            return PagedPlace(rows_of(windows, self.device, self.pool.page_tokens), self.rotary, self.ops)
        return Places.of([Place.of(window.cache, window.tree, self.rotary, window.computed) for window in windows])


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
    kernels: str = "auto",
    precision: str = "full",
    shard: Shard | None = None,
) -> Decoder:
    """Load a Hugging Face checkpoint directory. Raises ModelError by name for whatever cannot be served.

    max_context_tokens: of one session, no more than the model's own limit; 0 takes that. kernels: of
    ``engine.kernels.ops_for``. precision: what the layers' matrices are made into (``engine.quantize.PRECISIONS``).
    shard: this rank's share of the model, where several hold it.
    """
    directory = Path(directory)
    config = read_config(directory)
    with Weights(directory, dtype, torch.device(device)) as weights:
        if not config.tied and "lm_head.weight" not in weights.names:
            raise ModelError(f"{directory}: tensor lm_head.weight is missing")
        read = reader(precision, config.scheme)
        if shard is not None:
            read = summing(read if config.scheme is None else sharing(read, shard))
        target = assemble(
            config if shard is None else shard.config(config),
            weights if shard is None else ShardedTensors(weights, shard),
            pool_tokens=pool_tokens,
            page_tokens=page_tokens,
            max_context_tokens=max_context_tokens,
            kernels=kernels,
            read=read,
            whole=config,
        )
        unused = {n for n in weights.unused() if "rotary_emb" not in n and n != "lm_head.weight"}
        if config.scheme is not None:
            unused = {name for name in unused if not config.scheme.ignores(name)}
        unused -= _drafters(weights.names, config.num_layers)
    if unused:
        raise ModelError(f"{directory}: unexpected tensors: {', '.join(sorted(unused)[:5])}")
    return target


def assemble(
    config: DecoderConfig,
    weights: TensorSource,
    *,
    pool_tokens: int,
    page_tokens: int = 16,
    max_context_tokens: int = 0,
    kernels: str = "auto",
    decoder: type[Decoder] = Decoder,
    read: ReadMatrix = packed,
    whole: DecoderConfig | None = None,
) -> Decoder:
    """A decoder, of the given class, of whatever gives its tensors by their names. read: the layers' matrices.
    whole: as ``Decoder`` has it.
    """
    shape = (config.vocab_size, config.hidden_size)
    embedding = weights.take("model.embed_tokens.weight", shape)
    layers = [load_layer(weights, config, index, read) for index in range(config.num_layers)]
    return decoder(
        config,
        embedding,
        layers,
        weights.take("model.norm.weight", (config.hidden_size,)),
        pack(embedding if config.tied else weights.take("lm_head.weight", shape)),
        pool_tokens=pool_tokens,
        page_tokens=page_tokens,
        max_context_tokens=max_context_tokens,
        kernels=kernels,
        whole=whole,
    )


def _drafters(names: set[str], num_layers: int) -> set[str]:
    """Tensors that a checkpoint brings for drafting: Medusa heads and MTP modules.

    A layer past the last is a module where it projects two states; else ``num_hidden_layers`` is wrong.
    """
    projections = (re.fullmatch(r"(model\.layers\.(\d+)\.)eh_proj\.weight", name) for name in names)
    modules = [found[1] for found in projections if found and int(found[2]) >= num_layers]
    return {name for name in names if name.startswith(("medusa_head.", "model.mtp_layers.", *modules))}


def load_layer(weights: TensorSource, config: DecoderConfig, index: int, read: ReadMatrix = packed) -> Layer:
    prefix = f"model.layers.{index}."
    hidden, inner = config.hidden_size, config.intermediate_size
    q_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    projections = [f"{prefix}self_attn.{name}_proj" for name in "qkv"]
    rows = [q_rows, kv_rows, kv_rows]

    def head_norm(name: str) -> Tensor:
        return weights.take(f"{prefix}self_attn.{name}.weight", (config.head_dim,))

    def matrix(names: list[str], shapes: list[tuple[int, ...]]) -> Weight:
        return read(weights, [f"{name}.weight" for name in names], shapes)

    return Layer(
        attention_norm=weights.take(prefix + "input_layernorm.weight", (hidden,)),
        qkv=matrix(projections, [(r, hidden) for r in rows]),
        qkv_bias=weights.merge([f"{name}.bias" for name in projections], [(r,) for r in rows])
        if config.qkv_bias
        else None,
        head_norms=HeadNorms(head_norm("q_norm"), head_norm("k_norm"), config.rms_norm_eps) if config.qk_norm else None,
        output=matrix([prefix + "self_attn.o_proj"], [(hidden, q_rows)]),
        output_bias=weights.take(prefix + "self_attn.o_proj.bias", (hidden,)) if config.output_bias else None,
        mlp_norm=weights.take(prefix + "post_attention_layernorm.weight", (hidden,)),
        gate_up=matrix([prefix + f"mlp.{name}_proj" for name in ("gate", "up")], [(inner, hidden)] * 2),
        down=matrix([prefix + "mlp.down_proj"], [(hidden, inner)]),
    )
