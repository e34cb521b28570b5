"""Puts Medusa heads beside their target."""

from __future__ import annotations

from pathlib import Path

from engine.proposers.medusa.checkpoint import find, read_layout
from engine.proposers.medusa.heads import Heads
from engine.proposers.medusa.proposer import MedusaProposer
from engine.proposers.setup import Setup


def load(path: Path | None, setup: Setup) -> MedusaProposer:
    """The heads at ``path``, or inside the target's own checkpoint. Raises ModelError by name where they do not fit."""
    directory = path or setup.model
    source = find(directory, setup.target)
    heads = Heads(source, read_layout(source.names, directory), setup.target)
    chain = [(0,) * depth for depth in range(1, len(heads) + 1)] if setup.chain else None
    return MedusaProposer(heads, source=setup.source, choices=chain)
