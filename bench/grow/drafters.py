"""Grows what drafts for a target, in proportion to it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.grow import files
from bench.grow.padding import BLOCK, Padding, Ways, grow_part
from bench.grow.target import Growth, grow_target
from engine.models.config import read_config
from engine.proposers.eagle3.checkpoint import read_head
from engine.proposers.medusa.checkpoint import FILES, read_layout

TAPS = "eagle_aux_hidden_state_layer_ids"
MEDUSA = FILES[0]
EAGLE_BLOCK: Ways = {
    **BLOCK,
    **{f"self_attn.{name}_proj.weight": partial(Padding.reads, blocks=2) for name in "qkv"},
    "hidden_norm.weight": Padding.norm,
}
"""Its attention reads [embedding, state]."""
MODULE: Ways = {
    **BLOCK,
    "enorm.weight": Padding.norm,
    "hnorm.weight": Padding.norm,
    "eh_proj.weight": partial(Padding.joins, blocks=2),
    "shared_head.norm.weight": Padding.norm,
    "embed_tokens.weight": Padding.embeds,
    "shared_head.head.weight": Padding.answers,
}
"""By DeepSeek's names, behind the number of the layer."""
MEDUSA_HEAD: Ways = {"linear.weight": Padding.reads, "linear.bias": Padding.silences, "weight": Padding.answers}


def grow_eagle3(source: Path, out: Path, growth: Growth) -> None:
    """The head, its taps moved to where the states that it reads now are."""
    taps = read_head(source, read_config(growth.model))[0].taps
    tensors = files.read_tensors(source / files.MODEL)
    maps = {name: tensors.pop(name) for name in ("d2t", "t2d") if name in tensors}
    block = {name: tensors.pop(name) for name in list(tensors) if name.startswith("midlayer.")}
    around: Ways = {
        "fc.weight": partial(Padding.joins, blocks=len(taps)),
        "norm.weight": Padding.norm,
        "lm_head.weight": Padding.answers,
        "embed_tokens.weight": Padding.embeds,
    }
    grown = grow_part(tensors, "", "", around, growth.pad)
    grown |= grow_part(block, "midlayer.", "midlayer.", EAGLE_BLOCK, growth.pad)
    config = files.grown_config(files.read_config(source))
    name_taps(config, [growth.tap(tap) for tap in taps], growth.num_layers)
    files.write(out, config, grown | maps, growth.dtype)


def name_taps(config: dict[str, Any], taps: list[int], num_layers: int) -> None:
    """Write ``taps``, residual-stream indices, where the engine will not take them for EAGLE's own choice.

    At the top of a config an id is that index, inside ``eagle_config`` one less; but where the other reading would give
    EAGLE's own choice, the engine believes that the ids were written in the wrong place.
    """
    nested = config.pop("eagle_config", None) or {}
    nested.pop(TAPS, None)
    config.pop(TAPS, None)
    if [tap + 1 for tap in taps] == [2, num_layers // 2, num_layers - 3]:
        nested[TAPS] = [tap - 1 for tap in taps]
    else:
        config[TAPS] = taps
    if nested:
        config["eagle_config"] = nested


def grow_medusa(source: Path, out: Path, growth: Growth) -> None:
    """Heads of Medusa-1. They read the target's normed state, whose real places are what they were.

    The added units of a residual block would write into the others, so their bias drives their SiLU to zero.
    """
    tensors = files.read_tensors(source / MEDUSA)
    layout = read_layout(set(tensors), source)
    grown: dict[str, Tensor] = {}
    for head in range(layout.heads):
        for block in range(layout.blocks + layout.own_output):
            prefix = f"{head}.{block}."
            grown |= grow_part(tensors, prefix, prefix, MEDUSA_HEAD, growth.pad)
    files.write(out, files.read_config(source), grown, growth.dtype, file=MEDUSA)


def grow_mtp(source: Path, out: Path, growth: Growth) -> None:
    """A module in DeepSeek's layout, which counts it behind the target's layers and reads [embedding, state]."""
    tensors = files.read_tensors(source / files.MODEL)
    old = f"model.layers.{len(growth.places)}."
    if foreign := [name for name in tensors if not name.startswith(old)]:
        raise ValueError(f"{source} holds {foreign[0]}, a module behind {len(growth.places)} layers was expected")
    grown = grow_part(tensors, old, f"model.layers.{growth.num_layers}.", MODULE, growth.pad)
    config = files.grown_config(files.read_config(source)) | {"num_hidden_layers": growth.num_layers}
    files.write(out, config, grown, growth.dtype)


def grow_draft(source: Path, out: Path, growth: Growth, num_layers: int | None = None) -> None:
    """A draft model. num_layers: by default in the target's proportion, so that it costs the same share of a step."""
    real = files.read_config(source)["num_hidden_layers"]
    in_proportion = max(real, round(real * growth.num_layers / len(growth.places)))
    grow_target(source, out, num_layers or in_proportion, growth.dtype, growth.pad)
