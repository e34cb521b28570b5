"""What every drafter is loaded with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.errors import ModelError
from engine.models.decoder import Decoder


@dataclass(frozen=True)
class Setup:
    """What a drafter is loaded beside.

    model: directory of the target. source: the drafter's index in the trees of a cascade. rope_theta, taps: override
    what an EAGLE-3 head's config says. chain: draft one continuation instead of a tree. kernels: of
    ``engine.kernels.ops_for``, for drafters that are models of their own.
    """

    target: Decoder
    model: Path
    pool_tokens: int
    page_tokens: int = 16
    source: int = 0
    rope_theta: float | None = None
    taps: tuple[int, ...] | None = None
    chain: bool = False
    kernels: str = "auto"


def needed(path: Path | None, name: str) -> Path:
    """The checkpoint of a drafter that cannot do without. Raises ModelError where none was given."""
    if path is None:
        raise ModelError(f"drafter {name} needs a checkpoint: {name}:DIRECTORY")
    return path
