"""Calls beyond the page pool hear what they hear alone; and figures that miss what was asked for are said to."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.hibernation import __main__ as bench
from bench.hibernation import conversing, memory, page, wakes
from bench.hibernation.conversing import TURNS, Talk
from bench.hibernation.memory import Sample
from bench.kept import Kept
from engine import records

MODEL = Path("models/receptionist").resolve()
FLAT = "**Met**"


def pair(cold: float, *, same: bool = True) -> wakes.Pair:
    return wakes.Pair((cold, 2 * cold), (1.0, 2.0), 0.1, same)


def talk(calls: int, tokens: int = 64) -> Talk:
    texts = {f"{number}, {turn}": "hello" for number in range(calls) for turn in range(TURNS)}
    return Talk(texts, Counter(), {number: [tokens] * TURNS for number in range(calls)}, {"woken_from_log": 7})


def samples(mib: Callable[[int], float], process: int = 1, errors: int = 0) -> list[Sample]:
    return [Sample(process, closed, 100.0, mib(closed), errors) for closed in range(50, 5001, 50)]


def test_both_replies_begin_with_caches_that_were_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[str] = []

    class Watched(wakes.Caches):
        def clear(self) -> None:
            timed.append("cleared")
            super().clear()

    caches, host = Watched(), wakes.host_for(MODEL, 200, 1 << 30)
    handle = host.handle

    def watched(command: records.Command) -> list[records.Event]:
        timed.append(type(command).__name__)
        return handle(command)

    monkeypatch.setattr(host, "handle", watched)
    found = wakes.one_round(host, wakes.WAYS[0], tuple(range(5, 205)), tuple(range(90, 106)), caches, cold_first=True)
    assert [what for what in timed if what in ("cleared", "Wake", "Submit")] == [
        "Wake",
        *("cleared", "Submit"),
        *("cleared", "Submit"),
    ]
    assert found.same and found.waking > 0.0
    assert caches.read_bytes >= wakes.LEAST_READ


def test_wakes_from_the_log_stand_apart_and_what_was_asked_for_has_a_verdict() -> None:
    ways = {way.name: [pair(1.1), pair(1.2, same=way.announced)] for way in wakes.WAYS}
    text = page.wakes({(200, name): pairs for name, pairs in ways.items()}, 2, 128 << 20)
    host, log = text.split("### Woken from the token log")
    assert "token log, announced" not in host and "host memory, announced" not in log
    assert "Replies other than the warm call's: 2 of 8." in host and "128 MiB of something else" in host
    assert "**Met**: 1.15 with 200 tokens." in host
    late = page.soon({(200, "host memory, announced"): [pair(1.1)], (800, "host memory, announced"): [pair(1.4)]})
    assert "**Missed** with 800 tokens: 1.10 with 200 tokens; 1.40 with 800 tokens." in late
    assert "**Met**" in page.soon(
        {(200, "token log, announced"): [pair(9.0)], (200, "host memory, announced"): [pair(1)]}
    )


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("none", "**Met**: 10.0 times as many; errors: 0; turns that went otherwise: 0 of 480;"),
        ("other text", "**Missed**: 10.0 times as many; errors: 0; turns that went otherwise: 1 of 480;"),
        ("no text", "turns that went otherwise: 0 of 479; turns without two texts to compare: 1."),
        ("error", "**Missed**: 10.0 times as many; errors: 2 CallFailed;"),
    ],
)
def test_a_crowd_is_held_against_the_same_calls_alone(fault: str, said: str) -> None:
    crowd, alone = talk(160), talk(160)
    if fault == "other text":
        crowd.texts["3, 1"] = "good bye"
    if fault == "no text":
        del crowd.texts["3, 1"]
    if fault == "error":
        crowd.errors["CallFailed"] += 2
    assert said in page.conversing(crowd, alone, 160, 1024)
    assert ("**Met**" in page.conversing(crowd, alone, 160, 1024)) == (fault == "none")


def test_fewer_than_ten_pools_of_calls_are_not_enough() -> None:
    assert "**Missed**: 9.9 times as many" in page.conversing(talk(159), talk(159), 159, 1024)


def test_calls_beyond_the_pool_hear_what_they_hear_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversing, "AT_A_TIME", 2)
    monkeypatch.setattr(conversing, "TURNS", 2)
    crowd = asyncio.run(conversing.together(MODEL, 14, pool_tokens=512, host_bytes=2 << 20))
    alone = asyncio.run(conversing.alone(MODEL, 14))
    assert not crowd.errors and not alone.errors
    assert conversing.differing(crowd, alone) == (0, 28)
    assert crowd.moved["woken_from_host"] and crowd.moved["woken_from_log"]
    assert Talk.of({"texts": {}, "errors": {}, "tokens": {"1": [40, 70], "2": [60, 90]}, "moved": {}}).mean_tokens == 50


def test_memory_that_stays_is_flat_and_memory_that_a_call_leaves_behind_is_not() -> None:
    steady = page.memory(samples(lambda closed: 300.0 + closed % 3), 5000)
    assert FLAT in steady and "engine +0.0" in steady and "at 301 MiB" in steady
    leaking = page.memory(samples(lambda closed: 300.0 + 0.01 * closed + closed % 3), 5000)
    assert "**Missed**" in leaking and "engine +10.0" in leaking
    warming = page.memory(samples(lambda closed: 300.0 if closed > 500 else 200.0 + 0.2 * closed), 5000)
    assert FLAT in warming  # pools and caches that are being filled
    noisy = page.memory(samples(lambda closed: 300.0 + 200.0 * (closed // 50 % 7 == 3)), 5000)
    assert "**Missed**" in noisy  # nothing can be said


def test_errors_and_calls_that_there_was_no_time_for_miss_what_was_asked_for() -> None:
    assert "**Missed**" in page.memory(samples(lambda closed: 300.0, errors=1), 5000)
    short = page.memory(samples(lambda closed: 300.0)[:60], 5000)
    assert "**Missed**" in short and "There was no time for more than 3,000 calls." in short
    assert "too few samples to tell" in page.memory(samples(lambda closed: 300.0)[:12], 5000)


def test_processes_have_a_height_each_and_one_slope() -> None:
    first = samples(lambda closed: 300.0)[:50]
    second = samples(lambda closed: 250.0, process=2)[:50]
    text = page.memory([*first, *second], 5000)
    assert FLAT in text and "other processes, 2 in all" in text and "Memory over 5,000 calls" in text
    slope = memory.fitted([*first, *second], lambda sample: sample.engine_mib, 500)
    assert slope is not None and slope.each == 0.0


def test_a_watch_that_was_cut_off_goes_on_with_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def measure(
        model: Path, calls: int, process: int, every: int, deadline: float, take: Callable[[Sample], None]
    ) -> None:
        asked.append((calls, process))
        for closed in range(every, calls + 1, every):
            take(Sample(process, closed, 100.0, 300.0, 0))
            if process == 1 and closed == 600:
                raise KeyboardInterrupt

    monkeypatch.setattr(memory, "measure", measure)
    kept = Kept(tmp_path / "runs.jsonl", {}, resume=False)
    with pytest.raises(KeyboardInterrupt):
        bench.measure_memory(MODEL, 1000, 1.0, kept)
    kept = Kept(tmp_path / "runs.jsonl", {}, resume=True)
    assert "Memory over 1,000 calls" in bench.measure_memory(MODEL, 1000, 1.0, kept)
    bench.measure_memory(MODEL, 1000, 1.0, kept)
    assert asked == [(1000, 1), (400, 2)]


def test_a_short_watch_is_of_as_many_calls_as_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "OPEN", 10)
    found: list[Sample] = []
    asyncio.run(memory.measure(MODEL, 12, 1, 4, float("inf"), found.append))
    assert [sample.closed for sample in found][:3] == [4, 8, 12] and found[-1].closed >= 12
    assert found[-1].errors == 0 and min(found[-1].service_mib, found[-1].engine_mib) > 20.0


def test_the_plan_is_over_within_35_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["bench.hibernation"])
    given: Namespace = bench.arguments()
    assert sum(bench.most_seconds(given).values()) <= 35 * 60
