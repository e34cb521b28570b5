"""Features that wait, against a list of single rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engine.proposers.pairs import waiting as waiting_module
from engine.proposers.pairs.waiting import BLOCK, LATEST, RAW_MOST, Waiting

TAPS, WIDTH = 3, 2


def fuse(features: Tensor) -> Tensor:
    return features.sum(1)


def rows(waiting: Waiting, start: int, stop: int) -> list[list[float]]:
    """What the head would make of each."""
    return [row.tolist() for piece in waiting.rows(start, stop) for row in (fuse(piece) if piece.dim() == 3 else piece)]


ACTIONS = ["extend", "cut", "drop", "project", "surplus", "fork"]


@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 300))), st.sampled_from([1, 40, 1024]))
def test_whatever_is_done_each_position_keeps_its_feature(steps: list[tuple[str, int]], prompt_raw: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(waiting_module, "PROMPT_RAW", prompt_raw)
        follow(steps, prompt_raw)


def follow(steps: list[tuple[str, int]], prompt_raw: int) -> None:
    waiting, start, known = Waiting(), 0, list[list[float]]()
    for number, (what, count) in enumerate(steps):
        if what == "extend" and count:
            new = torch.arange(count * TAPS * WIDTH, dtype=torch.float64).view(count, TAPS, WIDTH) + 1e4 * number
            waiting.extend(start + len(known), new)
            known += fuse(new).tolist()
        elif what == "cut":
            known = known[: max(0, len(known) - count)]
            waiting.keep(start, start + len(known))
        elif what == "drop":
            count = min(count, len(known))
            start, known = start + count, known[count:]
            waiting.keep(start, start + len(known))
        elif what == "project":
            waiting.project(fuse)
        elif what == "surplus":
            before = waiting.num_raw
            waiting.project_surplus(fuse)
            assert waiting.num_raw == min(before, prompt_raw)
        elif what == "fork":
            other, waiting = waiting, waiting.fork()
            other.extend(other.stop, torch.zeros(2, TAPS, WIDTH, dtype=torch.float64))
        stop = start + len(known)
        assert (waiting.num, waiting.stop if known else stop) == (len(known), stop)
        assert rows(waiting, start, stop) == known
        middle = start + len(known) // 2
        assert rows(waiting, middle, stop) == known[len(known) // 2 :]
        raw = [piece.dim() == 3 for piece in waiting.rows(start, stop) for _ in piece]
        assert raw == sorted(raw) and sum(raw) == waiting.num_raw
        assert waiting.is_raw(stop - waiting.num_raw) and (sum(raw) == len(raw) or not waiting.is_raw(start))


def test_what_waits_for_long_is_projected_and_keeps_no_states_alive() -> None:
    """Of a prompt read in one piece, too, of which a block is projected with each token that is said."""
    waiting = Waiting()
    waiting.extend(0, torch.ones(2 * BLOCK + 7, TAPS, WIDTH))
    for said in range(400):
        waiting.extend(2 * BLOCK + 7 + said, torch.ones(1, TAPS, WIDTH))
        before = waiting.num_raw
        waiting.project(fuse)
        assert before - waiting.num_raw <= BLOCK
        pieces = waiting.rows(0, waiting.stop)
        storages = {piece.untyped_storage().data_ptr(): piece.untyped_storage().nbytes() for piece in pieces}
        assert sum(storages.values()) <= 2 * sum(piece.nbytes for piece in pieces)
    assert LATEST <= waiting.num_raw < RAW_MOST
