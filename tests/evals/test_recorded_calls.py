"""The recorded calls: what is in the file, and that a recogniser keeps the order of events that it is modelled on."""

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from evals.calls import FILE, Kind, from_line, read, to_line
from evals.calls.__main__ import record
from evals.calls.recogniser import speak

SEEDS = st.integers(0, 2**32)
LINES = st.lists(st.sampled_from(["could", "you", "tell", "me,", "please?", "9:30", "I", "ah."]), min_size=1).map(
    " ".join
)


def test_the_file_is_what_is_written_from_the_seeds():
    calls = list(read())
    assert len(calls) >= 100 and len({call.name for call in calls}) == len(calls)
    assert calls[3] == record(3, talkative=False) and calls[-1] == record(len(calls) - 1, talkative=True)
    assert all(call.turns and call.system and call.tools for call in calls)
    assert "".join(to_line(call) + "\n" for call in calls) == FILE.read_text(encoding="utf-8")


def test_calls_have_corrections_pauses_and_both_kinds_of_recogniser():
    turns = [turn for call in read() for turn in call.turns]
    partials = [[heard.text for heard in turn.events if heard.kind is Kind.PARTIAL] for turn in turns]
    revised = sum(any(not b.startswith(a) for a, b in pairwise(texts)) for texts in partials)
    resumed = sum(any(heard.kind is Kind.RESUMED for heard in turn.events) for turn in turns)
    eager = [turn for turn in turns if turn.eager_ms is not None]
    other = sum(turn.events[-2].text != turn.text for turn in eager)
    stated = sum(any(heard.stable is not None for heard in turn.events) for turn in turns)
    assert revised > len(turns) / 4 and resumed > len(turns) / 20
    assert len(turns) / 2 < len(eager) < len(turns) and 0 < other < len(eager) / 5
    assert 0 < stated < len(turns)


@given(SEEDS, LINES)
def test_a_turn_as_a_recogniser_tells_it(seed, line):
    turn = speak(random.Random(seed), line, says_stable=True)
    *before, final = turn.events
    assert final.kind is Kind.FINAL and all(heard.kind is not Kind.FINAL for heard in before)
    assert all(a.at_ms <= b.at_ms for a, b in pairwise(turn.events))
    for heard, after in pairwise(turn.events):
        if heard.kind is Kind.RESUMED:
            assert not heard.text
        if heard.kind is Kind.EAGER and after.kind is Kind.EAGER:
            raise AssertionError("an eager end stands until the caller goes on")
    resumed = [heard for heard in before if heard.kind is Kind.RESUMED]
    ends = [heard for heard in before if heard.kind is Kind.EAGER]
    assert len(ends) - 1 <= len(resumed) <= len(ends)


@given(SEEDS, LINES)
def test_what_is_called_stable_is_never_revised(seed, line):
    turn = speak(random.Random(seed), line, says_stable=True)
    partials = [heard for heard in turn.events if heard.kind is Kind.PARTIAL]
    for at, heard in enumerate(partials):
        assert all(after.text.startswith(heard.text[: heard.stable]) for after in partials[at:])
        assert line.startswith(heard.text[: heard.stable])


@given(SEEDS, LINES)
def test_a_recording_is_read_as_it_was_written(seed, line):
    call = record(1, talkative=False)
    spoken = speak(random.Random(seed), line, says_stable=seed % 2 == 0)
    written = type(call)(call.name, call.system, call.tools, call.results, (spoken,))
    assert from_line(to_line(written)) == written
