"""Every way of drafting, by the name that a configuration gives it. Nothing else in the engine learns these names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from engine.config import split_drafters
from engine.errors import ModelError
from engine.interfaces import Proposer
from engine.proposers import draft_model, mtp, recycling, suffix
from engine.proposers.cascade import Cascade
from engine.proposers.eagle3 import load as eagle3
from engine.proposers.medusa import load as medusa
from engine.proposers.none import NoProposer
from engine.proposers.setup import Setup

Load = Callable[[Path | None, Setup], Proposer]


class Kind(NamedTuple):
    """How a drafter is loaded, whether a checkpoint may be named for it, and whether it runs no model."""

    load: Load
    takes_checkpoint: bool = True
    frugal: bool = False


PROPOSERS: dict[str, Kind] = {
    "none": Kind(lambda path, setup: NoProposer(), takes_checkpoint=False),
    "suffix": Kind(suffix.load, takes_checkpoint=False, frugal=True),
    "recycling": Kind(recycling.load, takes_checkpoint=False, frugal=True),
    "draft": Kind(draft_model.load),
    "medusa": Kind(medusa.load),
    "mtp": Kind(mtp.load),
    "eagle3": Kind(eagle3.load),
}


def parse(spec: str) -> list[tuple[str, Path | None]]:
    """``eagle3:DIR+suffix`` as (name, checkpoint) of every drafter. Raises ModelError for names that are not known."""
    found = []
    for name, path in split_drafters(spec):
        if name not in PROPOSERS:
            hint = f"; for an EAGLE-3 head write eagle3:{name}" if "/" in name else ""
            raise ModelError(f"drafter {name!r} is not known; these are: {', '.join(PROPOSERS)}{hint}")
        if path and not PROPOSERS[name].takes_checkpoint:
            raise ModelError(f"drafter {name} takes no checkpoint, so {path} would go unused")
        found.append((name, Path(path) if path else None))
    return found


def load_drafters(spec: str, setup: Setup) -> Proposer:
    """What ``spec`` names: one drafter, or several joined by ``+`` and merged into one tree, asked in that order.

    Raises ModelError by name for what is not known or does not fit the target.
    """
    named = parse(spec)
    parts = [PROPOSERS[name].load(path, replace(setup, source=i)) for i, (name, path) in enumerate(named)]
    frugal = [i for i, (name, _) in enumerate(named) if PROPOSERS[name].frugal]
    return parts[0] if len(parts) == 1 else Cascade(parts, frugal)


def cheaper_ways(proposer: Proposer) -> list[Proposer]:
    """Other ways to draft from a proposer's drafts, for when its own costs more than it saves."""
    cheaper = proposer.cheaper if isinstance(proposer, Cascade) else None
    return [] if cheaper is None else [cheaper]
