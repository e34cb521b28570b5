"""Puts an EAGLE-3 head beside its target."""

from __future__ import annotations

from pathlib import Path

from engine.models.decoder import Decoder
from engine.proposers.eagle3.checkpoint import read_head
from engine.proposers.eagle3.head import Head
from engine.proposers.pairs.proposer import PairProposer
from engine.proposers.setup import Setup, needed


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
) -> PairProposer:
    """Load a published head. rope_theta and taps (residual-stream indices) override what its config says.

    Raises ModelError by name where the head does not fit the target.
    """
    directory = Path(directory)
    config, tensors = read_head(directory, target.whole, rope_theta=rope_theta, taps=taps)
    head = Head(config, tensors, target, directory)
    return PairProposer("eagle3", head, pool_tokens=pool_tokens, page_tokens=page_tokens, source=source, chain=chain)


def load(path: Path | None, setup: Setup) -> PairProposer:
    """The table's way in. Raises ModelError by name."""
    return load_eagle3(
        needed(path, "eagle3"),
        setup.target,
        pool_tokens=setup.pool_tokens,
        page_tokens=setup.page_tokens,
        rope_theta=setup.rope_theta,
        taps=setup.taps,
        source=setup.source,
        chain=setup.chain,
    )
