"""Puts Medusa heads beside their target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from engine.errors import ModelError
from engine.models.config import read_json
from engine.proposers.medusa.checkpoint import find, read_layout
from engine.proposers.medusa.heads import Heads
from engine.proposers.medusa.proposer import MedusaProposer
from engine.proposers.setup import Setup

Choices = Sequence[Sequence[int]]


def load(path: Path | None, setup: Setup) -> MedusaProposer:
    """The heads at ``path``, or inside the target's own checkpoint. Raises ModelError by name where they do not fit."""
    directory = path or setup.model
    source = find(directory, setup.target)
    heads = Heads(source, read_layout(source.names, directory), setup.target)
    if setup.chain:
        choices: Choices | None = [(0,) * depth for depth in range(1, len(heads) + 1)]
    else:
        choices = configured_choices(directory)
    try:
        return MedusaProposer(heads, source=setup.source, choices=choices)
    except (TypeError, ValueError, IndexError) as error:
        raise ModelError(f"{directory}: medusa_choices: {error}") from error


def configured_choices(directory: Path) -> Choices | None:
    """The fixed tree that the heads' config.json asks for (``medusa_choices``: paths of ranks), if it does. Raises
    ModelError where it cannot be read.
    """
    file = directory / "config.json"
    choices = read_json(file).get("medusa_choices") if file.exists() else None
    if choices is not None and not _are_paths(choices):
        raise ModelError(f"{directory}: medusa_choices: paths of ranks, as [[0], [0, 0], [1]]")
    return cast("Choices | None", choices)


def _are_paths(choices: object) -> bool:
    return isinstance(choices, list) and all(
        isinstance(path, list) and all(isinstance(rank, int) for rank in path) for path in choices
    )
