"""Which page of a pool is taken next, against the rule written out."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.cache import Geometry, PagePool

PAGES = 24


def longest_free_run(used: set[int]) -> tuple[int, int]:
    best, start = (0, 0), 0
    for page in range(PAGES + 1):
        if page == PAGES or page in used:
            if page - start > best[1]:
                best = (start, page - start)
            start = page + 1
    return best


@given(st.lists(st.tuples(st.booleans(), st.integers(0, PAGES - 1), st.integers(1, PAGES)), max_size=60))
def test_a_page_is_taken_behind_another_or_where_there_is_most_room(moves: list[tuple[bool, int, int]]) -> None:
    pool = PagePool(Geometry(1, 1, 2, torch.float32, torch.device("cpu")), PAGES, 4)
    used: set[int] = set()
    for takes, number, room in moves:
        if takes and len(used) < PAGES:
            after = number if number in used else None
            if after is not None and after + 1 < PAGES and after + 1 not in used:
                wanted = after + 1
            else:
                start, length = longest_free_run(used)
                middle = start + length // 2
                wanted = start if start == 0 or start + length - middle < room else middle
            assert pool.allocate(after, room) == wanted
            used.add(wanted)
        elif not takes and used:
            page = sorted(used)[number % len(used)]
            pool.release(page)
            used.remove(page)
        assert pool.free_pages == PAGES - len(used)
