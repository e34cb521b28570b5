"""Paged keys and values: one pool per geometry, one page table per session.

Rewinding is a change of ``length``, a fork shares pages by reference count and copies the one it writes to, and a draft
tree's keys are scratch behind ``length`` until ``commit`` keeps a path of them. Knows no model and no token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from engine.errors import OutOfPages
from engine.host_pages import HostPages, PageMover
from engine.page_table import PageTable

ABSENT = -1
"""In a page table: the page is in host memory."""


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
        self._used = bytearray(num_pages)
        """A byte a page, so that runs are found at the speed of a search in memory."""
        self._num_free = num_pages
        self.releases = 0
        """Counts pages that became free, so that whoever waits for one knows when to try again."""
        self.mover = PageMover(self.kv, page_tokens)
        self.relief: Callable[[PagePool, int, KVCache], None] | None = None
        """Asked to free pages, so that so many are free for this cache, before it is told that there are none."""

    @property
    def pages_in_use(self) -> int:
        return self.num_pages - self._num_free

    @property
    def free_pages(self) -> int:
        return self._num_free

    @property
    def bytes_per_page(self) -> int:
        return self.page_tokens * self.geometry.bytes_per_token

    def require(self, num_pages: int, cache: KVCache | None = None) -> None:
        """Raises OutOfPages unless that many are free, or can be freed for the cache that wants them."""
        if num_pages > self._num_free and self.relief is not None and cache is not None:
            self.relief(self, num_pages, cache)
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
        self._used[page] = 1
        self._num_free -= 1
        return page

    def share(self, page: int) -> None:
        self._refs[page] += 1

    def release(self, page: int) -> None:
        self._refs[page] -= 1
        if self._refs[page] == 0:
            self._used[page] = 0
            self._num_free += 1
            self.releases += 1

    def is_shared(self, page: int) -> bool:
        return self._refs[page] > 1

    def copy_page(self, source: int, target: int) -> None:
        self.copy_pages([source], [target])

    def copy_pages(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """None of them is among both. Runs are copied at once."""
        self.mover.copy_pages(sources, targets)

    def _longest_free_run(self) -> tuple[int, int]:
        """(its first page, pages in it), of several the first."""
        longest = max(self._used.split(b"\x01"), key=len)
        return self._used.find(longest), len(longest)

    def _roomiest_page(self, room: int) -> int:
        """Middle of the longest free run; its start where nobody grows into it, or else ``room`` pages would not fit.

        A run that begins right behind a used page is that page's room to grow, so a newcomer starts in its middle.
        """
        start, length = self._longest_free_run()
        middle = start + length // 2
        return start if start == 0 or start + length - middle < room else middle


class KVCache(PageTable):
    """One session's page table and length. Passed to forwards as an argument; holds no tensor of its own.

    Positions ``[0, length)`` are committed; ``[length, length + scratch)`` are a draft tree's keys, by node index.
    ``offload`` moves its pages to host memory; the next ``reserve`` brings them back.
    """

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self._host: HostPages | None = None
        super().__init__(pool.page_tokens)

    @property
    def num_pages(self) -> int:
        """Pages of the pool that it holds, shared ones included."""
        return len(self._pages) - self._num_absent

    @property
    def resident(self) -> bool:
        """Whether all its pages are in the pool."""
        return self._host is None

    @property
    def movable_pages(self) -> int:
        """Pages that ``offload`` would free: those of its own."""
        return len(self._own_pages()) if self.resident else 0

    def reserve(self, num_tokens: int) -> None:
        """Make ``num_tokens`` positions behind ``length`` present and private, before a forward writes there.

        Copy-on-write, coming back from host memory and running out of pages happen here and nowhere else. Raises
        OutOfPages, and nothing was changed.
        """
        shared, missing, absent = self._to_reserve(num_tokens)
        if shared or missing or absent:
            self.pool.require(len(shared) + missing + absent, self)
        if absent:
            self._bring_back(missing)
        self.pool.mover.wait()
        for index in shared:
            self._make_private(index)
        for room in range(missing, 0, -1):
            self._pages.append(self.pool.allocate(self._page_before(len(self._pages)), room))
        if missing:
            self._note_layout()

    def pages_wanted(self, num_tokens: int) -> int:
        """Pages that ``reserve`` would take of the pool."""
        shared, missing, absent = self._to_reserve(num_tokens)
        return len(shared) + missing + absent

    def _to_reserve(self, num_tokens: int) -> tuple[list[int], int, int]:
        """(places in the table of shared pages that would be written to, pages not there yet, pages in host memory)"""
        size = self.pool.page_tokens
        needed = -(-(self.length + num_tokens) // size)
        present = range(self.length // size, min(needed, len(self._pages)))
        shared = [i for i in present if self._pages[i] != ABSENT and self.pool.is_shared(self._pages[i])]
        return shared, max(0, needed - len(self._pages)), self._num_absent

    def return_scratch(self, num_tokens: int = 0) -> None:
        """Return the pages that drafts have left behind ``length`` and ``num_tokens`` more."""
        self._pop_pages(-(-(self.length + num_tokens) // self.pool.page_tokens))
        self._note_layout()

    def commit(self, path: list[int]) -> None:
        """Keep the scratch positions ``path`` (node indices, increasing) and forget the others."""
        if path[-1] != len(path) - 1:
            slots = self.slots(self.length, self.length + path[-1] + 1)
            self.pool.mover.copy_slots(slots[path], slots[: len(path)])
        self.length += len(path)

    def truncate(self, length: int) -> None:
        """Rewind to the first ``length`` positions. Costs no copy; pages past the next one to write are returned."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate {self.length} positions to {length}")
        self.length = length
        keep = length // self.pool.page_tokens + 1
        self._pop_pages(keep)
        self._note_layout()

    def offload(self) -> None:
        """Move the pages that no other cache shares to host memory. Whoever has the others keeps them where they are,
        and so does this one.
        """
        if self.resident:
            self.return_scratch()
            if own := self._own_pages():
                self._host = HostPages(self.pool.mover, [self._pages[index] for index in own])
                for index in own:
                    self.pool.release(self._pages[index])
                    self._pages[index] = ABSENT
            self._note_layout()

    def unshare(self) -> None:
        """Move to pages of its own that form one run, where the pool has such a run; else to any. Raises OutOfPages,
        and nothing was changed.
        """
        self.restore()
        used = -(-self.length // self.pool.page_tokens)
        self.pool.require(used, self)
        pages: list[int] = []
        for room in range(used, 0, -1):
            pages.append(self.pool.allocate(pages[-1] if pages else None, room))
        self.pool.copy_pages(self._pages[:used], pages)
        self._pop_pages(0)
        self._pages = pages
        self._note_layout()

    def restore(self) -> None:
        """Bring back what is in host memory. Raises OutOfPages, and nothing was changed."""
        if not self.resident:
            self.reserve(0)

    def fork(self) -> KVCache:
        """A cache with the same committed positions that shares every page until one of the two writes to it.

        A last page that is not full is copied at once where there is a page for it: this cache goes on writing there,
        and would have to move out of its run of pages otherwise.
        """
        child = KVCache(self.pool)
        child.length = self.length
        child._pages = self._pages[: -(-self.length // self.pool.page_tokens)]
        for page in child._pages:
            if page != ABSENT:
                self.pool.share(page)
        if self._host is not None and ABSENT in child._pages:
            child._host = self._host.share()
        if self.length % self.pool.page_tokens and child._pages[-1] != ABSENT and self.pool.free_pages:
            child._make_private(len(child._pages) - 1)
        child._note_layout()
        return child

    def close(self) -> None:
        """Return all pages. Idempotent, and the cache is as a new one."""
        self.length = 0
        self._pop_pages(0)
        self._note_layout()

    @property
    def _num_absent(self) -> int:
        return 0 if self._host is None else self._pages.count(ABSENT)

    def _own_pages(self) -> list[int]:
        """Places in the table of pages that hold something and that no other cache shares."""
        used = -(-self.length // self.pool.page_tokens)
        return [index for index, page in enumerate(self._pages[:used]) if not self.pool.is_shared(page)]

    def _pop_pages(self, keep: int) -> None:
        """Return the pages behind the first ``keep``."""
        while len(self._pages) > keep:
            if (page := self._pages.pop()) != ABSENT:
                self.pool.release(page)
        if self._host is not None and ABSENT not in self._pages:
            self._host.release()
            self._host = None

    def _bring_back(self, room: int) -> None:
        """Give every absent page a place in the pool. room: pages that will be wanted behind them."""
        assert self._host is not None
        absent = [index for index, page in enumerate(self._pages) if page == ABSENT]
        for done, index in enumerate(absent):
            self._pages[index] = self.pool.allocate(self._page_before(index), len(absent) - done + room)
        self._host.copy_back([self._pages[index] for index in absent])
        self._host.release()
        self._host = None
        self._note_layout()

    def _page_before(self, index: int) -> int | None:
        return self._pages[index - 1] if index and self._pages[index - 1] != ABSENT else None

    def _make_private(self, index: int) -> None:
        shared = self._pages[index]
        page = self.pool.allocate(self._page_before(index))
        self.pool.copy_page(shared, page)
        self.pool.release(shared)
        self._pages[index] = page
        self._note_layout()

    def _note_layout(self) -> None:
        if self._host is None:  # else nobody looks before ``reserve``
            super()._note_layout()
