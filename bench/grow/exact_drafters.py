"""What drafts for a target that was grown to an exact shape: an EAGLE-3 head, an MTP module, Medusa heads, each as wide
as the target and with its function unchanged. Of vocabularies that were added nothing can be drafted.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from bench.grow import files
from bench.grow.drafters import MEDUSA
from bench.grow.exact import Grown, GrownTensors
from engine.models.config import DecoderConfig
from engine.models.decoder import Decoder
from engine.proposers.eagle3.checkpoint import read_head
from engine.proposers.eagle3.head import Head
from engine.proposers.medusa.checkpoint import Source, read_layout
from engine.proposers.medusa.heads import Heads
from engine.proposers.medusa.proposer import MedusaProposer
from engine.proposers.mtp import Module, ModuleWeights
from engine.proposers.pairs.proposer import PairProposer

DRAFT_VOCAB = 32_000
"""Of the published heads."""


def masked(size: int, real: int, device: torch.device) -> Tensor:
    """float32 [size]: added to logits, it leaves the first ``real``."""
    mask = torch.zeros(size, device=device)
    mask[real:] = -torch.inf
    return mask


class MaskedHead(Head):
    """A grown head, of whose draft vocabulary only the first tokens are real."""

    mask: Tensor | None = None

    def predict(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert self.mask is not None
        return super().predict(x, self.mask if noise is None else noise + self.mask)


def head_matrices(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the matrices in the block of an EAGLE-3 head as wide as its target."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "self_attn.q_proj.weight": (q_rows, 2 * hidden),
        "self_attn.k_proj.weight": (kv_rows, 2 * hidden),
        "self_attn.v_proj.weight": (kv_rows, 2 * hidden),
        "self_attn.o_proj.weight": (hidden, q_rows),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }


def grow_head(directory: Path, grown: Grown, pool_tokens: int) -> PairProposer:
    """The EAGLE-3 head in proportion: as wide as the target, with the draft vocabulary of the published heads."""
    target, small, source, layers = grown.target, grown.small, grown.source, grown.layers
    head, tensors = read_head(directory, small)
    config, hidden = target.config, target.config.hidden_size
    taps = tuple(layers[tap - 1] + 1 if tap else 0 for tap in head.taps)
    real = tensors["lm_head.weight"].shape[0]
    vocab = min(DRAFT_VOCAB, real + config.vocab_size - small.vocab_size)
    shapes = head_matrices(config)
    wide = {}
    for name, tensor in tensors.items():
        if name == "fc.weight":
            wide[name] = source.joins(tensor.float(), len(taps))
        elif name == "lm_head.weight":
            wide[name] = source.answers(tensor.float(), vocab)
        elif name.endswith("norm.weight"):
            wide[name] = source.block_tensor(name, tensor.float(), (hidden,), streams=1)
        elif name in shapes:
            streams = 2 if name.split(".")[-2][0] in "qkv" and "attn" in name else 1
            wide[name] = source.block_tensor(name, tensor.float(), shapes[name], streams=streams)
    ids = torch.arange(real) + tensors["d2t"].long()
    spare = torch.arange(small.vocab_size, small.vocab_size + vocab - real)
    wide["d2t"] = torch.cat([ids, spare]) - torch.arange(vocab)
    large_head = replace(
        head,
        hidden_size=hidden,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        rms_norm_eps=head.rms_norm_eps * small.hidden_size / hidden,
        taps=taps,
    )
    made = MaskedHead(large_head, wide, target, directory)
    made.mask = masked(vocab, real, target.device)
    return PairProposer("eagle3", made, pool_tokens=pool_tokens)


class MaskedModule(Module):
    """A grown module, which drafts the target's own tokens."""

    mask: Tensor | None = None

    def predict(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert self.mask is not None
        return super().predict(x, self.mask if noise is None else noise + self.mask)


class GrownModule:
    """``ModuleWeights`` of a module, grown as its target was."""

    def __init__(self, weights: ModuleWeights, grown: Grown) -> None:
        self.layout = weights.layout
        self._weights, self._grown = weights, grown

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        part = name.removeprefix(f"model.layers.{self._grown.target.num_layers}.")
        weight, source = self._weights.raw(self._weights.own(part)).float(), self._grown.source
        if part == "eh_proj.weight":
            return source.joins(weight, 2)
        return source.block_tensor(part, weight, shape, streams=1)

    def merge(self, names: list[str], shapes: list[tuple[int, ...]]) -> Tensor:
        return torch.cat([self.take(name, shape) for name, shape in zip(names, shapes, strict=True)])

    def shared(self, name: str, targets: Tensor) -> Tensor:
        """Raises ValueError for a module that brings its own: the embedded model's does not."""
        if self._weights.own(name) in self._weights.names:
            raise ValueError(f"{name} of a module's own cannot be grown")
        return targets

    def refuse_unused(self) -> None:
        self._weights.refuse_unused()


def grow_module(directory: Path, small: Decoder, grown: Grown, pool_tokens: int) -> PairProposer:
    """The MTP module in ``directory``, which belongs to the target ``small``."""
    with ModuleWeights(directory, small) as weights:
        module = MaskedModule(cast(ModuleWeights, GrownModule(weights, grown)), grown.target)
    module.mask = masked(grown.target.vocab_size, grown.small.vocab_size, grown.target.device)
    return PairProposer("mtp", module, pool_tokens=pool_tokens)


class MaskedHeads(Heads):
    """Grown Medusa heads, which draft the target's own tokens."""

    mask: Tensor | None = None

    def log_probs(self, state: Tensor, count: int, noise: Tensor | None = None) -> Tensor:
        assert self.mask is not None
        added = self.mask.expand(count, -1).clone()
        if noise is not None:
            added[: noise.shape[0]] += noise[:count]
        return super().log_probs(state, count, added)


class GrownHeads:
    """The ``Source`` of Medusa heads, grown as their target was."""

    def __init__(self, tensors: dict[str, Tensor], source: GrownTensors) -> None:
        self.names = set(tensors)
        self._tensors, self._source = tensors, source

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        weight = self._tensors[name].float()
        if name.endswith("linear.weight"):
            return self._source.joins(weight, 1)
        if name.endswith("linear.bias"):  # what is added to the stream must stay zero
            wide = torch.zeros(shape, dtype=self._source.dtype, device=self._source.device)
            wide[: weight.numel()] = weight
            return wide
        return self._source.answers(weight, shape[0])


def grow_medusa(directory: Path, grown: Grown) -> MedusaProposer:
    source = GrownHeads(files.read_tensors(directory / MEDUSA), grown.source)
    heads = MaskedHeads(cast(Source, source), read_layout(source.names, directory), grown.target)
    heads.mask = masked(grown.target.vocab_size, grown.small.vocab_size, grown.target.device)
    return MedusaProposer(heads)
