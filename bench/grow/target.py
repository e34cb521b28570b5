"""Grows a whole decoder: a target, or a draft model."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.grow.files import CONFIG, MODEL, grown_config, read_config, read_tensors, write
from bench.grow.padding import BLOCK, Padding, Ways, grow_part, identity_block

AROUND: Ways = {
    "model.embed_tokens.weight": Padding.embeds,
    "model.norm.weight": Padding.norm,
    "lm_head.weight": Padding.answers,
}
"""What stands around a decoder's layers."""


@dataclass(frozen=True)
class Growth:
    """What was done to a target, for its drafters to follow. places: where its real layers now stand."""

    model: Path
    places: list[int]
    num_layers: int
    dtype: torch.dtype
    pad: Padding

    def tap(self, tap: int) -> int:
        """Where the state of the residual stream that was at ``tap`` is now: behind the layer that wrote it."""
        return self.places[tap - 1] + 1 if tap else 0


def spread(num_real: int, num_layers: int) -> list[int]:
    """Where the real layers stand among the grown model's, first and last included.

    Raises ValueError where they are more than there is room for.
    """
    if num_layers < num_real:
        raise ValueError(f"{num_real} layers cannot grow to {num_layers}")
    return [round(i * (num_layers - 1) / max(1, num_real - 1)) for i in range(num_real)]


def grow_target(source: Path, out: Path, num_layers: int, dtype: torch.dtype, pad: Padding) -> Growth:
    """Write the grown decoder, and copy the files beside it, such as its tokenizer's."""
    config = read_config(source)
    weights = read_tensors(source / MODEL)
    if config.get("tie_word_embeddings", False):
        weights.pop("lm_head.weight", None)
    places = spread(config["num_hidden_layers"], num_layers)
    old = [f"model.layers.{index}." for index in range(len(places))]
    around = {name: weight for name, weight in weights.items() if not name.startswith(tuple(old))}
    grown = grow_part(around, "", "", AROUND, pad)
    for layer in range(num_layers):
        new = f"model.layers.{layer}."
        if layer in places:
            grown |= grow_part(weights, old[places.index(layer)], new, BLOCK, pad)
        else:
            grown |= identity_block(weights, old[0], new, pad)
    write(out, grown_config(config) | {"num_hidden_layers": num_layers}, grown, dtype)
    for file in source.iterdir():
        if file.is_file() and file.name not in (CONFIG, MODEL):
            shutil.copy(file, out / file.name)
    return Growth(source, places, num_layers, dtype, pad)
