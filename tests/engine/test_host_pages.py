"""A cache that goes to host memory and back holds what one that never went does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from engine.cache import ABSENT, Geometry, KVCache, PagePool
from engine.errors import OutOfPages

PAGE_TOKENS = 3


def pool(pages: int, device: str = "cpu") -> PagePool:
    return PagePool(Geometry(2, 1, 2, torch.float32, torch.device(device)), pages, PAGE_TOKENS)


def content(cache: KVCache) -> Tensor:
    """[layers, 2, length, heads, dim]"""
    cache.restore()
    cache.pool.mover.wait()
    return cache.pool.kv[:, :, cache.slots(0, cache.length)].cpu()


class Moved(RuleBasedStateMachine):
    """Caches of a pool that is nearly too small, each beside a twin in a pool of its own that never moves."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = pool(24)
        self.twins_pool = pool(400)
        self.pairs: list[tuple[KVCache, KVCache]] = []
        self.written = 0

    @initialize()
    def first(self) -> None:
        self.open()

    @precondition(lambda self: len(self.pairs) < 4)
    @rule()
    def open(self) -> None:
        self.pairs.append((KVCache(self.pool), KVCache(self.twins_pool)))

    def pick(self, data: st.DataObject) -> tuple[KVCache, KVCache]:
        return data.draw(st.sampled_from(self.pairs))

    @precondition(lambda self: self.pairs)
    @rule(
        data=st.data(), nodes=st.integers(1, 9), kept=st.lists(st.integers(0, 8), min_size=1, max_size=9, unique=True)
    )
    def write(self, data: st.DataObject, nodes: int, kept: set[int]) -> None:
        """Scratch of a tree, and some of it kept."""
        moved, twin = self.pick(data)
        try:
            moved.reserve(nodes)
        except OutOfPages:
            return
        twin.reserve(nodes)
        self.written += 1
        values = self.written + torch.rand(2, 2, nodes, 1, 2)
        path = sorted(node for node in kept if node < nodes) or [0]
        for cache in (moved, twin):
            assert cache.resident
            cache.pool.kv[:, :, cache.slots(cache.length, cache.length + nodes)] = values
            cache.commit(path)

    @precondition(lambda self: self.pairs)
    @rule(data=st.data())
    def offload(self, data: st.DataObject) -> None:
        moved, _ = self.pick(data)
        shared = {page for other, _ in self.pairs if other is not moved for page in other._pages} - {ABSENT}
        moved.offload()
        assert set(moved._pages) - {ABSENT} <= shared

    @precondition(lambda self: self.pairs)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        moved, _ = self.pick(data)
        before = (moved.num_pages, moved.length, self.pool.pages_in_use)
        try:
            moved.restore()
        except OutOfPages:
            assert (moved.num_pages, moved.length, self.pool.pages_in_use) == before

    @precondition(lambda self: self.pairs)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """And compute it again, or as much of it as there is room for."""
        moved, twin = self.pick(data)
        moved.close()
        with contextlib.suppress(OutOfPages):
            moved.reserve(twin.length)
            moved.pool.kv[:, :, moved.slots(0, twin.length)] = content(twin)
            moved.length = twin.length
        twin.truncate(moved.length)

    @precondition(lambda self: self.pairs)
    @rule(data=st.data(), share=st.floats(0, 1))
    def truncate(self, data: st.DataObject, share: float) -> None:
        moved, twin = self.pick(data)
        for cache in (moved, twin):
            cache.truncate(int(share * cache.length))

    @precondition(lambda self: 0 < len(self.pairs) < 4)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        moved, twin = self.pick(data)
        self.pairs.append((moved.fork(), twin.fork()))

    @precondition(lambda self: self.pairs)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        pair = self.pick(data)
        for cache in pair:
            cache.close()
        self.pairs.remove(pair)

    @rule()
    def all_hold_what_their_twins_do(self) -> None:
        for moved, twin in self.pairs:
            with contextlib.suppress(OutOfPages):
                torch.testing.assert_close(content(moved), content(twin), atol=0, rtol=0)

    @invariant()
    def every_page_and_every_byte_is_somebodys(self) -> None:
        held = {page for moved, _ in self.pairs for page in moved._pages} - {ABSENT}
        assert self.pool.pages_in_use == len(held)
        copies = {id(moved._host): moved._host for moved, _ in self.pairs if moved._host is not None}
        assert self.pool.mover.bytes_held == sum(copy._num_bytes for copy in copies.values())
        assert all((ABSENT in moved._pages) != moved.resident for moved, _ in self.pairs)

    def teardown(self) -> None:
        for pair in self.pairs:
            for cache in pair:
                cache.close()
        assert self.pool.pages_in_use == self.twins_pool.pages_in_use == self.pool.mover.bytes_held == 0


TestMoved = Moved.TestCase
TestMoved.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture
def on_cuda() -> Iterator[PagePool]:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: pinned copies on a stream of their own cannot be run")
    yield pool(64, "cuda")


def test_pinned_copies_are_whole_though_pages_are_written_again_at_once(on_cuda: PagePool) -> None:
    cache, other = KVCache(on_cuda), KVCache(on_cuda)
    for round_ in range(20):
        values = torch.rand(2, 2, 150, 1, 2) + round_
        cache.reserve(150)
        on_cuda.kv[:, :, cache.slots(0, 150)] = values.cuda()
        cache.commit(list(range(150)))
        cache.offload()
        other.reserve(150)
        on_cuda.kv[:, :, other.slots(0, 150)] = 0.0
        other.close()
        torch.testing.assert_close(content(cache), values, atol=0, rtol=0)
        cache.close()
