"""Puts an EAGLE-3 head beside its target."""

from __future__ import annotations

from pathlib import Path

from engine.models.decoder import Decoder
from engine.proposers.eagle3.checkpoint import read_head
from engine.proposers.eagle3.head import Head
from engine.proposers.eagle3.proposer import Eagle3Proposer


def load_eagle3(
    directory: Path | str,
    target: Decoder,
    *,
    pool_tokens: int,
    page_tokens: int = 16,
    rope_theta: float | None = None,
    taps: tuple[int, ...] | None = None,
    source: int = 0,
    chain: bool = False,
) -> Eagle3Proposer:
    """Load a published head. rope_theta and taps (residual-stream indices) override what its config says.

    Raises ModelError by name where the head does not fit the target.
    """
    directory = Path(directory)
    config, tensors = read_head(directory, target.config, rope_theta=rope_theta, taps=taps)
    head = Head(config, tensors, target, directory)
    return Eagle3Proposer(head, pool_tokens=pool_tokens, page_tokens=page_tokens, source=source, chain=chain)
