"""Where a session's positions lie in a pool: all that a forward reads of a cache."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


class PageTable:
    """The pages of ``page_tokens`` positions each that hold a session, in order, and how much of it is committed."""

    def __init__(self, page_tokens: int, pages: Sequence[int] = (), length: int = 0) -> None:
        self.page_tokens = page_tokens
        self.length = length
        self._pages = list(pages)
        self._first_slot = 0
        self._contiguous = True
        self._note_layout()

    @property
    def num_pages(self) -> int:
        return len(self._pages)

    @property
    def pages(self) -> tuple[int, ...]:
        """The page table, in order of the positions that its pages hold."""
        return tuple(self._pages)

    def slots(self, start: int, stop: int) -> Tensor:
        """int64 [stop - start]: where positions ``start`` to ``stop`` live in ``PagePool.kv``."""
        positions = torch.arange(start, stop)
        if self._contiguous:
            return positions + self._first_slot
        size = self.page_tokens
        return torch.tensor(self._pages)[positions // size] * size + positions % size

    def view(self, stop: int) -> slice | None:
        """The slice of ``PagePool.kv`` that holds positions ``[0, stop)``, or None when the pages form no single
        run.
        """
        if not self._contiguous:
            return None
        return slice(self._first_slot, self._first_slot + stop)

    def _note_layout(self) -> None:
        pages = self._pages
        self._contiguous = not pages or (pages[-1] - pages[0] == len(pages) - 1 and _is_run(pages))
        self._first_slot = pages[0] * self.page_tokens if pages else 0


def _is_run(pages: Sequence[int]) -> bool:
    return all(b == a + 1 for a, b in itertools.pairwise(pages))
