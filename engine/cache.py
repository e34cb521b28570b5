"""Paged keys and values: one pool per geometry, one page table per session.

Rewinding is a change of ``length``, a fork shares pages by reference count and copies the one it writes to, and a draft
tree's keys are scratch behind ``length`` until ``commit`` keeps a path of them. Knows no model and no token.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import OutOfPages


@dataclass(frozen=True)
class Geometry:
    """The shape of one model's keys and values."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values per position over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize


class PagePool:
    """``num_pages`` pages of ``page_tokens`` positions each, with reference counts.

    Storage is one tensor ``kv`` [num_layers, 2, num_pages * page_tokens, num_kv_heads, head_dim]: consecutive pages are
    consecutive memory, so a session whose pages form one run is read as a view.
    """

    def __init__(self, geometry: Geometry, num_pages: int, page_tokens: int = 16) -> None:
        if num_pages < 1 or page_tokens < 1:
            raise ValueError("a page pool needs at least one page of at least one token")
        self.geometry = geometry
        self.num_pages = num_pages
        self.page_tokens = page_tokens
        slots = num_pages * page_tokens
        self.kv = torch.zeros(
            geometry.num_layers,
            2,
            slots,
            geometry.num_kv_heads,
            geometry.head_dim,
            dtype=geometry.dtype,
            device=geometry.device,
        )
        self._refs = [0] * num_pages
        self._num_free = num_pages
        self.releases = 0
        """Counts pages that became free, so that whoever waits for one knows when to try again."""

    @property
    def pages_in_use(self) -> int:
        return self.num_pages - self._num_free

    def require(self, num_pages: int) -> None:
        """Raises OutOfPages unless that many are free."""
        if num_pages > self._num_free:
            used, size = self.pages_in_use, self.page_tokens
            raise OutOfPages(f"{num_pages} pages of {size} tokens are wanted, {used} of {self.num_pages} are in use")

    def allocate(self, after: int | None, room: int = 1) -> int:
        """Take a free page: the one behind ``after`` where possible, else where there is most room to grow.

        room: pages that will be wanted from there on. Raises OutOfPages when none is free.
        """
        self.require(1)
        page = after + 1 if after is not None else -1
        if not (0 <= page < self.num_pages and self._refs[page] == 0):
            page = self._roomiest_page(room)
        self._refs[page] = 1
        self._num_free -= 1
        return page

    def share(self, page: int) -> None:
        self._refs[page] += 1

    def release(self, page: int) -> None:
        self._refs[page] -= 1
        if self._refs[page] == 0:
            self._num_free += 1
            self.releases += 1

    def is_shared(self, page: int) -> bool:
        return self._refs[page] > 1

    def copy_page(self, source: int, target: int) -> None:
        size = self.page_tokens
        self.kv[:, :, target * size : (target + 1) * size] = self.kv[:, :, source * size : (source + 1) * size]

    def _longest_free_run(self) -> tuple[int, int]:
        best_start, best_length, start = 0, 0, 0
        for page in range(self.num_pages + 1):
            if page == self.num_pages or self._refs[page]:
                if page - start > best_length:
                    best_start, best_length = start, page - start
                start = page + 1
        return best_start, best_length

    def _roomiest_page(self, room: int) -> int:
        """Middle of the longest free run; its start where nobody grows into it, or else ``room`` pages would not fit.

        A run that begins right behind a used page is that page's room to grow, so a newcomer starts in its middle.
        """
        start, length = self._longest_free_run()
        middle = start + length // 2
        return start if start == 0 or start + length - middle < room else middle


class KVCache:
    """One session's page table and length. Passed to forwards as an argument; holds no tensor of its own.

    Positions ``[0, length)`` are committed; ``[length, length + scratch)`` are a draft tree's keys, by node index.
    """

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self.length = 0
        self._pages: list[int] = []
        self._first_slot = 0
        self._contiguous = True

    @property
    def num_pages(self) -> int:
        return len(self._pages)

    def reserve(self, num_tokens: int) -> None:
        """Make ``num_tokens`` positions behind ``length`` present and private, before a forward writes there.

        Copy-on-write and running out of pages happen here and nowhere else. Raises OutOfPages, and nothing was changed.
        """
        size = self.pool.page_tokens
        needed = -(-(self.length + num_tokens) // size)
        present = range(self.length // size, min(needed, len(self._pages)))
        shared = [index for index in present if self.pool.is_shared(self._pages[index])]
        missing = max(0, needed - len(self._pages))
        if shared or missing:
            self.pool.require(len(shared) + missing)
        for index in shared:
            self._make_private(index)
        for room in range(missing, 0, -1):
            self._grow(room)

    def commit(self, path: list[int]) -> None:
        """Keep the scratch positions ``path`` (node indices, increasing) and forget the others."""
        if path[-1] != len(path) - 1:
            slots = self.slots(self.length, self.length + path[-1] + 1)
            source, target = slots[path], slots[: len(path)]
            kv = self.pool.kv
            kv[:, :, target] = kv[:, :, source]
        self.length += len(path)

    def truncate(self, length: int) -> None:
        """Rewind to the first ``length`` positions. Costs no copy; pages past the next one to write are returned."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate {self.length} positions to {length}")
        self.length = length
        keep = length // self.pool.page_tokens + 1
        while len(self._pages) > keep:
            self.pool.release(self._pages.pop())
        self._note_layout()

    def fork(self) -> KVCache:
        """A cache with the same committed positions that shares every page until one of the two writes to it.

        A last page that is not full is copied at once where there is a page for it: this cache goes on writing there,
        and would have to move out of its run of pages otherwise.
        """
        child = KVCache(self.pool)
        child.length = self.length
        child._pages = self._pages[: -(-self.length // self.pool.page_tokens)]
        for page in child._pages:
            self.pool.share(page)
        if self.length % self.pool.page_tokens and self.pool.pages_in_use < self.pool.num_pages:
            child._make_private(len(child._pages) - 1)
        child._note_layout()
        return child

    def close(self) -> None:
        """Return all pages. Idempotent."""
        self.length = 0
        while self._pages:
            self.pool.release(self._pages.pop())

    def slots(self, start: int, stop: int) -> Tensor:
        """int64 [stop - start]: where positions ``start`` to ``stop`` live in ``pool.kv``."""
        positions = torch.arange(start, stop)
        if self._contiguous:
            return positions + self._first_slot
        size = self.pool.page_tokens
        return torch.tensor(self._pages)[positions // size] * size + positions % size

    def view(self, stop: int) -> slice | None:
        """The slice of ``pool.kv`` that holds positions ``[0, stop)``, or None when the pages form no single run."""
        if not self._contiguous:
            return None
        return slice(self._first_slot, self._first_slot + stop)

    def _grow(self, room: int) -> None:
        """Add one page, the first of ``room`` that are wanted."""
        self._pages.append(self.pool.allocate(self._pages[-1] if self._pages else None, room))
        self._note_layout()

    def _make_private(self, index: int) -> None:
        shared = self._pages[index]
        page = self.pool.allocate(self._pages[index - 1] if index else None)
        self.pool.copy_page(shared, page)
        self.pool.release(shared)
        self._pages[index] = page
        self._note_layout()

    def _note_layout(self) -> None:
        pages = self._pages
        self._contiguous = not pages or (pages[-1] - pages[0] == len(pages) - 1 and _is_run(pages))
        self._first_slot = pages[0] * self.pool.page_tokens if pages else 0


def _is_run(pages: list[int]) -> bool:
    return all(b == a + 1 for a, b in itertools.pairwise(pages))
