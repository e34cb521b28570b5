"""The replay of recorded calls: that every mode hears the same answers, and how its figures are made."""

import asyncio
from collections import Counter
from dataclasses import replace
from itertools import count

import pytest

from bench.turns import page
from bench.turns.__main__ import measure
from bench.turns.modes import ANSWER, FINAL_ONLY, PREFILL, modes
from bench.turns.replay import Results
from evals.calls import read
from tests.engine.embedded import MODEL


@pytest.fixture(scope="module")
def replays():
    """Three turns of two calls, ten times as fast as they were spoken."""
    calls = [replace(call, turns=call.turns[:3]) for call, _ in zip(read(), range(2), strict=False)]
    return asyncio.run(measure(MODEL, calls, modes([80]), speed=10))


def test_every_mode_hears_the_same(replays):
    by_mode, socket = replays
    assert len(by_mode) == 4 and len(socket) > 100 and min(socket) > 0
    said = [{key: answer.said for key, answer in replay.answers.items()} for replay in by_mode.values()]
    assert said[0] and all(other == said[0] for other in said[1:])
    for replay in by_mode.values():
        assert all(0 < answer.first_ms <= answer.clause_ms for answer in replay.answers.values())


def test_what_was_told_ahead_was_used(replays):
    by_mode, _ = replays
    ahead = {
        mode: [answer.reported.usage.prefilled_ahead_tokens for answer in replay.answers.values()]
        for mode, replay in by_mode.items()
    }
    assert not any(ahead[FINAL_ONLY]) and any(ahead[PREFILL])
    released = [answer.reported.answered_ahead for answer in by_mode[ANSWER].answers.values()]
    assert any(released) and sum(released) == by_mode[ANSWER].states["released"]
    assert not any(answer.reported.answered_ahead for answer in by_mode[PREFILL].answers.values())


def test_the_tables_are_made_of_the_replays(replays, tmp_path):
    by_mode, socket = replays
    words = count(10, 10)
    lengths = page.by_length(by_mode[FINAL_ONLY], by_mode.values(), lambda text: next(words))
    assert sum(map(len, lengths.values())) == len(by_mode[FINAL_ONLY].answers)
    table = page.main_table(by_mode, lengths)
    assert table.count("\n") == 1 + len(lengths) * len(by_mode) and "1.00 [1.00, 1.00]" in table
    assert "released" in page.ahead_table(by_mode[ANSWER], socket)
    assert page.partials_table(by_mode).count("\n") == 4
    page.plot(by_mode, lengths, tmp_path / "turns.svg")
    assert (tmp_path / "turns.svg").stat().st_size > 1000


def test_percentiles():
    assert page.percentiles([3.0]) == (3.0, 3.0)
    assert page.percentiles([float(n) for n in range(101)]) == (50.0, 95.0)


def test_tools_answer_as_they_were_recorded_again_and_again():
    call = next(call for call in read() if len({tool for tool, _ in call.results}) < len(call.results))
    tool = Counter(name for name, _ in call.results).most_common(1)[0][0]
    outputs = [output for name, output in call.results if name == tool]
    results = Results(call)
    assert [results.of(tool) for _ in range(len(outputs) + 1)] == [*outputs, outputs[0]]
    assert results.of("unknown") == '{"ok": true}'
