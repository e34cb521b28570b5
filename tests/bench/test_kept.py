"""What a benchmark has measured is there after it was cut off, and figures of two settings are never mixed."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.kept import Kept, KeptError


def test_results_are_taken_and_not_made_again(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "a" / "runs.jsonl", {"seconds": 1.0}, resume=True)
    assert kept.of("one", lambda: (1, 2)) == [1, 2]
    again = Kept(tmp_path / "a" / "runs.jsonl", {"seconds": 1.0}, resume=True)
    assert "one" in again and again.of("one", lambda: pytest.fail("it is there")) == [1, 2]


def test_a_line_that_was_being_written_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    Kept(path, {}, resume=False).put("one", 1)
    path.write_text(path.read_text() + '["two", 2')
    kept = Kept(path, {}, resume=True)
    assert "two" not in kept
    kept.put("two", 3)
    assert Kept(path, {}, resume=True)["two"] == 3


def test_what_is_there_is_refused_without_being_asked_for_or_under_another_setting(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    Kept(path, {"seconds": 1.0}, resume=False)
    with pytest.raises(KeptError, match="--resume"):
        Kept(path, {"seconds": 1.0}, resume=False)
    with pytest.raises(KeptError, match="another setting"):
        Kept(path, {"seconds": 2.0}, resume=True)
