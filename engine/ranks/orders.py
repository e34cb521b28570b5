"""What rank 0 tells the others: plain picklable records, carried out in the order in which they come.

Pages are numbered alike in all ranks, so an order names pages, and each rank moves its own heads' part of them.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.config import EngineConfig
from engine.interfaces import Tap, Window
from engine.page_table import PageTable
from engine.tree import DraftTree


@dataclass(frozen=True)
class Start:
    """What a rank is started with, before any order. address: where the ranks meet."""

    config: EngineConfig
    address: str

    def tidy(self) -> None:
        """Rank 0 had no time to: remove where the ranks have met."""
        shutil.rmtree(Path(self.address.removeprefix("file://")).parent, ignore_errors=True)


@dataclass(frozen=True)
class Loaded:
    """A rank's only answer. error: what its share could not be loaded for, in words; empty: it is there."""

    error: str = ""


@dataclass(frozen=True)
class Share:
    """One window of a forward. pages, length: of its cache. parents: of its tree's nodes; None where it is a chain."""

    pages: tuple[int, ...]
    length: int
    tokens: tuple[int, ...]
    parents: tuple[int, ...] | None
    computed: int

    @staticmethod
    def of(window: Window) -> Share:
        cache, tree = window.cache, window.tree
        parents = None if tree.causal else tuple(tree.parents.tolist())
        return Share(cache.pages, cache.length, tuple(tree.tokens.tolist()), parents, window.computed)

    def window(self, page_tokens: int) -> Window:
        """The window again. Nobody here wants its logits."""
        cache, n = PageTable(page_tokens, self.pages, self.length), len(self.tokens)
        if self.parents is None:
            tree = DraftTree.chain(torch.tensor(self.tokens))
        else:
            tree = DraftTree.of(self.tokens, self.parents, [1.0] * n, 0)
        return Window(cache, tree, "none", self.computed)


@dataclass(frozen=True)
class Prepare:
    """Make the static steps of a target with these taps. sink: the slot where rows write that nobody reads."""

    taps: tuple[Tap, ...]
    sink: int


@dataclass(frozen=True)
class Forward:
    """``Target.forward`` of these windows."""

    windows: tuple[Share, ...]
    taps: tuple[Tap, ...]


@dataclass(frozen=True)
class CopyPages:
    """As ``PageMover.copy_pages``; ``CopySlots`` as its ``copy_slots``."""

    sources: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass(frozen=True)
class CopySlots:
    sources: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass(frozen=True)
class CopyOut:
    """Pages to host memory, where the copy has this number from now on."""

    copy: int
    pages: tuple[int, ...]


@dataclass(frozen=True)
class CopyBack:
    copy: int
    pages: tuple[int, ...]


@dataclass(frozen=True)
class Forget:
    """The copy of this number is not wanted back."""

    copy: int


Order = Prepare | Forward | CopyPages | CopySlots | CopyOut | CopyBack | Forget
