"""The shapes that are measured, and models of random weights in them, made on the device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bench.grow.exact_drafters import DRAFT_VOCAB, head_matrices
from engine.models.config import DecoderConfig
from engine.models.decoder import Decoder, assemble
from engine.proposers.eagle3.checkpoint import HeadConfig
from engine.proposers.eagle3.head import Head
from engine.proposers.pairs.proposer import PairProposer
from engine.quantize import reader

LLAMA_8B = DecoderConfig(
    architecture="LlamaForCausalLM",
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    rms_norm_eps=1e-5,
    max_positions=32_768,
    rope={"rope_type": "default", "rope_theta": 500_000.0},
    tied=False,
    qkv_bias=False,
    output_bias=False,
    qk_norm=False,
)
LLAMA_70B = replace(LLAMA_8B, hidden_size=8192, intermediate_size=28_672, num_layers=80, num_heads=64)
LLAMA_1B = replace(LLAMA_8B, hidden_size=2048, intermediate_size=8192, num_layers=16, head_dim=64)
"""What drafts for 8B: Llama 3.2's smallest."""
TINY = replace(
    LLAMA_8B,
    vocab_size=2300,
    hidden_size=512,
    intermediate_size=600,
    num_layers=8,
    num_heads=4,
    num_kv_heads=2,
    max_positions=512,
)
"""For ``--dry-run``: large enough for the embedded model to be grown to it."""


@dataclass(frozen=True)
class Sizes:
    """What one run measures. draft: of the draft model of ``small``. nodes: of trees. prefill: tokens at a time.
    copy_bytes, link_bytes: of the bandwidths.
    """

    small: DecoderConfig
    large: DecoderConfig
    draft: DecoderConfig
    dtype: torch.dtype
    nodes: tuple[int, ...]
    budgets: tuple[int, ...]
    contexts: tuple[int, ...]
    histories: tuple[int, ...]
    batches: tuple[int, ...]
    repeats: int
    reply_tokens: int
    prefill: int
    copy_bytes: int
    link_bytes: int


FULL = Sizes(
    small=LLAMA_8B,
    large=LLAMA_70B,
    draft=LLAMA_1B,
    dtype=torch.bfloat16,
    nodes=(1, 2, 4, 8, 16, 24, 32, 64),
    budgets=(8, 16, 24, 32, 60),
    contexts=(1024, 4096, 16_384),
    histories=(1024, 4096, 16_384),
    batches=(1, 2, 4, 8, 16, 32),
    repeats=60,
    reply_tokens=160,
    prefill=1024,
    copy_bytes=4 << 30,
    link_bytes=1 << 30,
)
DRY = Sizes(
    small=TINY,
    large=replace(TINY, num_layers=9),
    draft=replace(TINY, hidden_size=256, num_layers=4, head_dim=64),
    dtype=torch.float32,
    nodes=(1, 8),
    budgets=(8, 24),
    contexts=(48,),
    histories=(40,),
    batches=(1, 2),
    repeats=3,
    reply_tokens=12,
    prefill=64,
    copy_bytes=1 << 20,
    link_bytes=1 << 20,
)


class RandomTensors:
    """A ``TensorSource`` of noise: small enough for the stream to stay finite through all layers."""

    def __init__(self, dtype: torch.dtype, device: torch.device, seed: int = 0) -> None:
        self._dtype, self._device = dtype, device
        self._generator = torch.Generator(device).manual_seed(seed)

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        made = torch.randn(*shape, dtype=self._dtype, device=self._device, generator=self._generator)
        return made.mul_(0.1).add_(1.0) if name.endswith("norm.weight") else made.mul_(0.02)

    def merge(self, names: list[str], shapes: list[tuple[int, ...]]) -> Tensor:
        return torch.cat([self.take(name, shape) for name, shape in zip(names, shapes, strict=True)])


def random_target(
    config: DecoderConfig,
    sizes: Sizes,
    device: torch.device,
    *,
    pool_tokens: int,
    kernels: str,
    precision: str = "full",
) -> Decoder:
    source = RandomTensors(sizes.dtype, device)
    target = assemble(config, source, pool_tokens=pool_tokens, kernels=kernels, read=reader(precision, None))
    target.pool.kv.normal_()  # products of zeros may be faster
    return target


def random_head(target: Decoder, *, pool_tokens: int) -> PairProposer:
    """An EAGLE-3 head in the published heads' proportions: as wide as its target, and 32,000 tokens."""
    config = target.config
    hidden, vocab = config.hidden_size, min(DRAFT_VOCAB, config.vocab_size)
    shapes = {
        "fc.weight": (hidden, 3 * hidden),
        "hidden_norm.weight": (hidden,),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        **head_matrices(config),
        "norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }
    source = RandomTensors(target.dtype, target.device, seed=1)
    tensors = {name: source.take(name, shape) for name, shape in shapes.items()}
    tensors["d2t"] = torch.zeros(vocab, dtype=torch.int64)
    head = HeadConfig(
        hidden_size=hidden,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.rms_norm_eps,
        rope=config.rope,
        taps=(2, config.num_layers // 2, config.num_layers - 3),
        norm_before_residual=False,
        feed_normed=False,
    )
    return PairProposer("eagle3", Head(head, tensors, target, Path("random weights")), pool_tokens=pool_tokens)


def step_bytes(target: Decoder) -> int:
    """Bytes of weights that a step reads: all of them but the table of embeddings."""
    layers = sum(weight_bytes(part) for layer in target.layers for part in vars(layer).values())
    return layers + target.lm_head_weight.numel() * target.lm_head_weight.element_size()


def weight_bytes(part: object) -> int:
    """Of a tensor, or of what holds some."""
    if isinstance(part, Tensor):
        return part.numel() * part.element_size()
    return sum(weight_bytes(inner) for inner in vars(part).values()) if hasattr(part, "__dict__") else 0
