"""Grows a target and whatever drafts for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from bench.grow.drafters import grow_draft, grow_eagle3, grow_medusa, grow_mtp
from bench.grow.padding import Padding
from bench.grow.target import Growth, grow_target

DRAFTERS: dict[str, Callable[[Path, Path, Growth], None]] = {
    "eagle3": grow_eagle3,
    "medusa": grow_medusa,
    "mtp": grow_mtp,
    "draft": grow_draft,
}
"""By the engine's names for them, which are also those of their directories."""


def grow(
    model: Path,
    out: Path,
    *,
    num_layers: int = 24,
    draft_layers: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    drafters: Mapping[str, Path] | None = None,
) -> None:
    """Grow the target in ``model``, and the drafters in its directories ``eagle3``, ``medusa``, ``mtp`` and ``draft``.

    drafters: directories of drafters elsewhere, by kind, grown to directories of those names in ``out``; they take the
    place of the model's own. draft_layers: of the draft model, by default in the target's proportion. Raises ValueError
    for what cannot be grown.
    """
    found = {kind: model / kind for kind in DRAFTERS if (model / kind).is_dir()} | dict(drafters or {})
    if unknown := found.keys() - DRAFTERS:
        raise ValueError(f"{', '.join(unknown)} cannot be grown; {', '.join(DRAFTERS)} can")
    growth = grow_target(model, out, num_layers, dtype, Padding(0.02, torch.Generator().manual_seed(seed)))
    ways = DRAFTERS | {"draft": partial(grow_draft, num_layers=draft_layers)}
    for kind, source in found.items():
        ways[kind](source, out / kind, growth)
