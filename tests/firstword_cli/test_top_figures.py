"""Percentiles of histograms, and what is counted between two looks."""

from __future__ import annotations

import io
import math
from bisect import bisect_left

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from firstword.top.app import Window
from firstword.top.figures import LATENCIES, QUANTILES, Figures, Share, Store, figures, latency
from firstword.top.scrape import Snapshot, parse
from firstword.top.view import render

BOUNDS = [0.01, 0.05, 0.1, 0.25, 1.0]
NAME = LATENCIES["first token"]


def exposition(values: list[float], mode: str = "plain") -> str:
    buckets = [(str(bound), sum(value <= bound for value in values)) for bound in BOUNDS] + [("+Inf", len(values))]
    lines = [f'{NAME}_bucket{{firstword_mode="{mode}",le="{bound}"}} {count}' for bound, count in buckets]
    return "\n".join([f"# TYPE {NAME} histogram", *lines, ""])


@given(st.lists(st.floats(0.001, 0.999), min_size=1, max_size=50))
def test_a_percentile_lies_in_the_bucket_of_the_value_that_it_stands_for(values: list[float]) -> None:
    found = latency(parse(exposition(values), 0.0), NAME)
    assert found.count == len(values)
    for q, percentile in zip(QUANTILES, found.percentiles, strict=True):
        assert percentile is not None
        true = sorted(values)[math.ceil(q * len(values) - 1e-9) - 1]
        at = bisect_left(BOUNDS, true)
        assert ([0.0, *BOUNDS][at]) <= percentile <= BOUNDS[at]


def test_beyond_the_last_bound_it_is_that() -> None:
    assert latency(parse(exposition([3.0, 4.0]), 0.0), NAME).percentiles == (1.0, 1.0, 1.0)
    assert latency(parse("", 0.0), NAME).percentiles == (None, None, None)


def test_halfway_into_a_bucket() -> None:
    """Two of four values in 0.05 to 0.1: the median is at the first bound, 0.95 of them nine tenths into the second."""
    found = latency(parse(exposition([0.02, 0.03, 0.07, 0.08]), 0.0), NAME)
    assert found.percentiles[0] == 0.05
    assert found.percentiles[1] is not None and math.isclose(found.percentiles[1], 0.05 + 0.05 * 0.9)


def snapshot(at: float, turns: float, active: float) -> Snapshot:
    text = f"""# TYPE firstword_turns counter
firstword_turns_total{{firstword_answer_ahead="false"}} {turns}
# TYPE firstword_calls_active gauge
firstword_calls_active {active}
"""
    return parse(text, at)


def test_counters_are_those_between_two_looks_and_gauges_those_of_now() -> None:
    grown = figures(snapshot(20.0, 12, 2).since(snapshot(10.0, 5, 7)))
    assert (grown.turns, grown.calls) == (7, 2)


STORE = """# TYPE firstword_store_behind gauge
firstword_store_behind 1
# TYPE firstword_store_records_unwritten gauge
firstword_store_records_unwritten 12
# TYPE firstword_store_records_kept gauge
firstword_store_records_kept 40
# TYPE firstword_store_lag_seconds gauge
firstword_store_lag_seconds 2.5
# TYPE firstword_store_memory_used_bytes gauge
firstword_store_memory_used_bytes 9e8
# TYPE firstword_store_memory_limit_bytes gauge
firstword_store_memory_limit_bytes 1e9
# TYPE firstword_store_failures counter
firstword_store_failures_total 3
# TYPE firstword_calls_resumed counter
firstword_calls_resumed_total{firstword_resume_kind="here"} 0
firstword_calls_resumed_total{firstword_resume_kind="taken_over"} 2
# TYPE firstword_calls_resume_refused counter
firstword_calls_resume_refused_total{error_type="UNKNOWN_CALL"} 1
firstword_calls_resume_refused_total{error_type="WARM_ELSEWHERE"} 4
"""


def shown(found: Figures) -> str:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(render(found, "here"))
    return console.export_text()


def test_a_store_that_does_not_keep_up_and_calls_that_come_back() -> None:
    found = figures(parse(STORE, 0.0))
    assert found.store == Store(True, 12, 40, 2.5, latency(parse("", 0.0), NAME), Share(9e8, 1e9), 3, 0, 0)
    assert (found.resumed, found.sent_on, found.sent_back) == ({"taken_over": 2}, 4, {"UNKNOWN_CALL": 1})
    text = shown(found)
    assert "store behind  records to write 12  not safe yet 40  oldest 2.50 s" in text
    assert "memory 90%  failures 3" in text and "fenced" not in text
    assert "came back taken_over 2  sent on to the warm server 4" in text
    assert "came back in vain UNKNOWN_CALL 1" in text and "WARM_ELSEWHERE" not in text


def test_nothing_is_shown_of_a_store_that_is_not_there() -> None:
    found = figures(snapshot(20.0, 3, 2))
    assert found.store is None
    assert "store" not in shown(found) and "came back" not in shown(found)


def test_a_counter_that_went_back_is_another_process() -> None:
    assert figures(snapshot(20.0, 3, 2).since(snapshot(10.0, 5, 7))).turns == 3


def test_the_window_is_a_minute() -> None:
    window = Window()
    told = [window.add(snapshot(at, at * 2, 1)) for at in (0.0, 30.0, 59.0, 95.0)]
    assert [figures(grown).turns for grown, _ in told] == [0, 60, 118, 72]
    assert [span for _, span in told] == [
        "since the instance started",
        "the last 30 s",
        "the last 59 s",
        "the last 36 s",
    ]
    restarted, span = window.add(snapshot(96.0, 1, 1))
    assert (figures(restarted).turns, span) == (1, "since the instance started")
