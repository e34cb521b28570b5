"""Rank 0's side: what it has the other ranks do beside it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from torch import Tensor

from engine.host_pages import PageMover
from engine.interfaces import Output, Tap, Target, Window
from engine.ranks.orders import CopyBack, CopyOut, CopyPages, CopySlots, Forget, Forward, Order, Share
from engine.wrapped import WrappedTarget

Tell = Callable[[Order], None]
"""Has the other ranks carry out an order, and does not wait until they have."""


class LeadingTarget(WrappedTarget):
    """A ``Target`` whose forwards every rank joins."""

    def __init__(self, target: Target, tell: Tell) -> None:
        super().__init__(target)
        self._tell = tell

    def forward(self, windows: Sequence[Window], taps: Sequence[Tap] = ()) -> list[Output]:
        self._tell(Forward(tuple(map(Share.of, windows)), tuple(taps)))
        return self.wrapped.forward(windows, taps)


class LeadingMover(PageMover):
    """A ``PageMover`` whose every copy is made by each rank of its own part of the pages."""

    def __init__(self, kv: Tensor, page_tokens: int, tell: Tell) -> None:
        super().__init__(kv, page_tokens)
        self._tell = tell
        self._numbers = itertools.count()
        self._number_of: dict[int, int] = {}
        """By ``id`` of a copy in host memory, which lives until it is forgotten."""

    def copy_pages(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        self._tell(CopyPages(tuple(sources), tuple(targets)))
        super().copy_pages(sources, targets)

    def copy_slots(self, sources: Tensor, targets: Tensor) -> None:
        self._tell(CopySlots(tuple(sources.tolist()), tuple(targets.tolist())))
        super().copy_slots(sources, targets)

    def copy_out(self, pages: Sequence[int]) -> Tensor:
        copy, number = super().copy_out(pages), next(self._numbers)
        self._number_of[id(copy)] = number
        self._tell(CopyOut(number, tuple(pages)))
        return copy

    def copy_back(self, copy: Tensor, pages: Sequence[int]) -> None:
        self._tell(CopyBack(self._number_of[id(copy)], tuple(pages)))
        super().copy_back(copy, pages)

    def forget(self, copy: Tensor) -> None:
        self._tell(Forget(self._number_of.pop(id(copy))))
