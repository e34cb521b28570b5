"""How the engine's tests load a target: small pools, so that running out is never far."""

from __future__ import annotations

from pathlib import Path

import torch

from engine.models.decoder import Decoder, load_target


def load(directory: Path, dtype: torch.dtype, *, pool_tokens: int = 2048, page_tokens: int = 16) -> Decoder:
    return load_target(directory, dtype=dtype, pool_tokens=pool_tokens, page_tokens=page_tokens)
