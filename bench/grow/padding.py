"""How the tensors of one decoder block and of what stands around it grow, by what they do to the padded stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

WIDTH_FACTOR = 4  # a power of four keeps the norm's square root, and with it every scaling, exact
QUIET = -1024.0
"""Bias of added units behind a SiLU: with noise of unit size in their sum, what comes out is zero in every dtype."""


@dataclass(frozen=True)
class Padding:
    """How a weight's rows and columns grow: real places keep their value, the others get noise or zeros."""

    scale: float
    generator: torch.Generator

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator) * self.scale

    def answers(self, weight: Tensor, blocks: int = 1) -> Tensor:
        """A matrix that reads the padded stream into as many units as before: its own values where the stream is real,
        noise where it is zero.

        ``blocks``: how many padded streams lie side by side in its input.
        """
        rows, columns = weight.shape
        grown = self.random(rows, blocks, columns // blocks * WIDTH_FACTOR)
        grown[:, :, : columns // blocks] = weight.view(rows, blocks, -1)
        return grown.flatten(1)

    def reads(self, weight: Tensor, blocks: int = 1) -> Tensor:
        """As ``answers``, into units that are multiplied too: those that were added say noise."""
        rows, columns = weight.shape
        added = self.random(rows * (WIDTH_FACTOR - 1), columns * WIDTH_FACTOR)
        return torch.cat([self.answers(weight, blocks), added])

    def joins(self, weight: Tensor, blocks: int) -> Tensor:
        """A matrix that makes one padded stream of ``blocks``: nothing into places that must stay zero."""
        rows, columns = weight.shape
        return torch.cat([self.answers(weight, blocks), torch.zeros(rows * (WIDTH_FACTOR - 1), columns * WIDTH_FACTOR)])

    def writes(self, weight: Tensor) -> Tensor:
        """A matrix that writes the padded stream: nothing into places that must stay zero, nothing from added units."""
        rows, columns = weight.shape
        grown = torch.zeros(rows * WIDTH_FACTOR, columns * WIDTH_FACTOR)
        grown[:rows, :columns] = weight
        return grown

    def embeds(self, weight: Tensor) -> Tensor:
        """Embeddings, which are padded streams."""
        rows, width = weight.shape
        return torch.cat([weight, torch.zeros(rows, width * (WIDTH_FACTOR - 1))], 1)

    def norm(self, weight: Tensor) -> Tensor:
        """The weight of an RMSNorm over the padded stream: what is real comes out as it was, what is zero stays so."""
        return torch.cat([weight / WIDTH_FACTOR**0.5, self.random(weight.numel() * (WIDTH_FACTOR - 1))])

    def silences(self, bias: Tensor) -> Tensor:
        """A bias ahead of a SiLU whose added units write the padded stream, and must write zero."""
        return torch.cat([bias, torch.full((bias.numel() * (WIDTH_FACTOR - 1),), QUIET)])


Ways = Mapping[str, Callable[[Padding, Tensor], Tensor]]
"""How tensors grow, by their names behind a prefix."""

BLOCK: Ways = {
    "input_layernorm.weight": Padding.norm,
    "post_attention_layernorm.weight": Padding.norm,
    **{f"self_attn.{name}_proj.weight": Padding.reads for name in "qkv"},
    "self_attn.o_proj.weight": Padding.writes,
    "mlp.gate_proj.weight": Padding.reads,
    "mlp.up_proj.weight": Padding.reads,
    "mlp.down_proj.weight": Padding.writes,
}


def grow_part(weights: Mapping[str, Tensor], old: str, new: str, ways: Ways, pad: Padding) -> dict[str, Tensor]:
    """The tensors whose names begin with ``old``, renamed to begin with ``new``.

    Raises ValueError for those that nothing is known of, such as biases: without them it would be another function.
    """
    grown: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if name.startswith(old):
            part = name.removeprefix(old)
            if part not in ways:
                raise ValueError(f"{name} cannot be grown: how is not known")
            grown[new + part] = ways[part](pad, weight)
    return grown


def identity_block(template: Mapping[str, Tensor], old: str, new: str, pad: Padding) -> dict[str, Tensor]:
    """A layer of the same shape that adds nothing: its output projections are zero, the rest is noise."""
    layer = grow_part(template, old, new, BLOCK, pad)
    for name in layer:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            layer[name] = torch.zeros_like(layer[name])
        else:
            layer[name] = pad.random(*layer[name].shape)
    return layer
