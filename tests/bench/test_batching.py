"""Replies that share steps say what they say alone, whoever drafts; each is counted once, and figures become words."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import pytest

from bench import harness
from bench.batching import page
from bench.batching.__main__ import Bench, Part, arguments, body_of, measured, parts_of
from bench.batching.runs import (
    HEAD,
    OURS,
    PLAIN,
    SELF,
    Contender,
    Found,
    HeadPace,
    Replies,
    asked,
    contenders,
    differing,
    head_step,
    run,
    stop,
)
from bench.drafters.counts import HELD_OUT, prompts_of
from bench.drafters.methods import Method
from bench.kept import Kept
from engine.pace import StepCosts
from engine.sampling import Sampling

MODEL = Path("models/receptionist")
TREE = "EAGLE-3, 4 nodes"


@pytest.fixture(scope="module")
def made() -> list[Contender]:
    return contenders(MODEL, [TREE, PLAIN], calls=3)


@pytest.fixture(scope="module")
def replies() -> Replies:
    prompts = asked(prompts_of(HELD_OUT, Method("", "", MODEL), 2))
    return Replies(prompts, Sampling(temperature=0.7), harness.stop_tokens(MODEL))


def test_contenders_say_the_same_at_every_load(made: list[Contender], replies: Replies) -> None:
    found = [run(one, replies, calls, 1.0) for one, calls in zip(made, (3, 1), strict=True)]
    for one in made:
        stop(one)
    different, compared = differing(found)
    assert (different, compared > 0) == (0, True)
    assert all(not one.engine.sessions for one in made)
    drafted, plain = found
    assert set(plain.modes) == {"plain"}
    assert drafted.modes[HEAD] > 0


def test_replies_go_on_from_run_to_run(made: list[Contender], replies: Replies) -> None:
    plain = made[1]
    first = run(plain, replies, 2, 0.05)
    going = dict(plain.going)
    second = run(plain, replies, 3, 0.05)
    assert len(plain.going) == 3 and not set(first.texts) & set(second.texts)
    assert all(number in plain.going or str(number) in second.texts for number in going)
    assert list(run(plain, replies, 1, 0.05).modes.values()) != [0] and len(plain.going) == 1
    stop(plain)


def test_what_a_drafter_reads_of_the_newest_lines_is_left_for_the_time_that_counts(
    made: list[Contender], replies: Replies
) -> None:
    drafted = made[0]
    number = next(n for n, prompt in enumerate(replies.prompts) if 8 < prompt.known < len(prompt.ids) - 8)
    prompt, turn = replies.prompts[number], replies.begin(drafted.engine, number)
    behind = drafted.engine.proposer.behind(turn.session.draft)
    assert turn.session.num_pending == 1
    assert len(prompt.ids) - prompt.known - 2 <= behind <= len(prompt.ids) - prompt.known + 1
    drafted.engine.close(turn.session)


def test_a_prompt_is_known_as_far_as_the_one_before_it() -> None:
    prompts = [harness.Prompt(ids, tool=False) for ids in ([1, 2, 3], [1, 2, 3, 4, 5], [1, 9], [0] * 2000, [0, 1])]
    assert [(one.ids, one.known) for one in asked(prompts)] == [
        ([1, 2, 3], 1),
        ([1, 2, 3, 4, 5], 3),
        ([1, 9], 1),
        ([0, 1], 1),
    ]


def test_a_reply_said_otherwise_is_found() -> None:
    runs = [("a", {"0": "x", "1": "y", "2": "z"}), ("b", {"0": "x", "1": "other"}), ("a", {"2": "changed"})]
    assert differing([Found(name, 1, 1.0, {}, texts) for name, texts in runs]) == (2, 3)


def test_the_heads_time_counts_as_it_is_told_to() -> None:
    costs = StepCosts(nodes=(1, 4), verify=(1.0, 1.0), draft=((0.0, 0.2), (0.0, 0.1)))
    pace = HeadPace(costs, ["suffix+eagle3", "suffix"], head=3.0)
    assert pace.draft(0, 4) == pytest.approx(0.6)
    assert pace.draft(1, 4) == pytest.approx(0.1)
    for _ in range(50):
        pace.observe_draft(0, 4, 1, 0.4)
        pace.observe_draft(1, 4, 1, 0.1)
    assert pace.draft(0, 4) == pytest.approx(1.2, rel=0.01)
    assert pace.draft(1, 4) == pytest.approx(0.1, rel=0.01)


def test_what_the_head_takes_counts_as_much_more_as_it_is_told_to(made: list[Contender], replies: Replies) -> None:
    drafted = replace(made[0], going={}, begun=500)
    as_here = run(drafted, replies, 1, 1.0)
    drafted.head = 100.0
    dearer = run(drafted, replies, 1, 20.0)
    stop(drafted)
    assert dearer.tokens_per_second < as_here.tokens_per_second / 3


def test_a_scaled_head_is_known_to_the_policy(replies: Replies) -> None:
    (ours,) = contenders(MODEL, [OURS], calls=1, step=5.0)
    assert ours.head > 1.0
    assert head_step(ours.engine) > 1.0  # about 5: the costs were measured twice
    found = run(ours, replies, 1, 2.0)
    stop(ours)
    assert found.modes.get("suffix+eagle3", 0) < sum(found.modes.values()) / 2, found.modes


def runs_of(calls: int, speeds: dict[str, float], mode: str) -> list[Found]:
    """Two rounds, of which the second is twice as fast for all."""
    return [
        Found(name, calls, speed * times, {mode: 3, "plain": 1})
        for times in (1.0, 2.0)
        for name, speed in speeds.items()
    ]


NAMES = [OURS, PLAIN, SELF, TREE, "EAGLE-3, 8 nodes"]


def speeds(*values: float) -> dict[str, float]:
    return dict(zip(NAMES, values, strict=True))


def test_the_band_is_where_ours_drafts_by_self_speculation_and_is_ahead_of_all() -> None:
    runs = runs_of(1, speeds(5, 1, 2, 4, 4), "suffix+eagle3") + runs_of(8, speeds(2, 1, 3, 1.4, 1.2), "suffix")
    runs += runs_of(16, speeds(2, 1, 1.5, 1.4, 1.2), "plain") + runs_of(32, speeds(1.3, 1, 1.5, 1.4, 1.2), "suffix")
    loads = [1, 8, 16, 32]
    text = page.band(runs, NAMES, loads)
    assert "by the median over rounds: at 1, 8, 16 at a time; in every round: at 1, 8, 16 at a time" in text
    assert "by self-speculation: at 8, 32 at a time" in text and "**Chosen and ahead: at 8 at a time.**" in text
    assert page.in_band(runs, NAMES, loads) == [8]
    # that self-speculation alone is ahead of all counts for nothing where ours is not
    assert "**Chosen and ahead: nowhere.**" in page.band(runs, NAMES, [1, 16, 32])
    assert page.in_band(runs, NAMES, [1, 16, 32]) == []
    assert page.band(runs, [OURS, PLAIN, SELF], [8]) == "" and page.in_band(runs, [OURS, PLAIN, SELF], [8]) == []


def test_a_lead_that_one_round_lacks_is_said_to_be_one_of_the_median() -> None:
    rounds = [(3, 1, 2, 1), (3, 1, 2, 1.5), (0.9, 1, 2, 0.5)]
    runs = [
        Found(name, 4, speed, {"suffix": 1})
        for each in rounds
        for name, speed in zip([OURS, PLAIN, SELF, TREE], each, strict=True)
    ]
    assert "rounds: at 4 at a time; in every round: nowhere." in page.band(runs, [OURS, PLAIN, SELF, TREE], [4])


def test_the_floor_has_a_verdict_that_names_the_loads_that_miss_it() -> None:
    good = runs_of(1, speeds(2, 1, 1, 1, 1), "suffix") + runs_of(8, speeds(0.96, 1, 1, 1, 1), "plain")
    text = page.floor(good, [1, 8])
    assert "**Met**" in text and "is 0.96, at 8 at a time" in text
    bad = good + runs_of(16, speeds(0.94, 1, 1, 1, 1), "plain")
    assert "**Missed at 16 at a time**" in page.floor(bad, [1, 8, 16])


def test_switches_are_told_from_load_to_load() -> None:
    runs = [Found(OURS, calls, 1.0, {mode: 2}) for calls, mode in ((1, "suffix+eagle3"), (4, "suffix"), (8, "plain"))]
    assert "is seen: as replies join, ours drafts with suffix+eagle3, suffix from 4 on, plain from 8 on." in (
        page.switches(runs, [1, 4, 8])
    )
    assert page.switches(runs, [1, 8]).startswith("No switch to self-speculation is seen")
    assert page.switches(runs, [4, 8]).startswith("No switch to self-speculation is seen")


def test_ratios_are_of_the_same_round() -> None:
    runs = [("ours", 30.0), ("plain", 10.0), ("ours", 8.0), ("plain", 8.0), ("ours", 40.0), ("plain", 20.0)]
    found = [Found(name, 2, speed, {}) for name, speed in runs]
    assert page.ratios(found, "ours", 2) == (2.0, 1.0, 3.0)


def test_a_bench_that_was_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds that are there are not made again, and the page has all of them."""
    part = Part(HELD_OUT, (OURS, PLAIN), (1,), rounds=1)
    kept = Kept(tmp_path / "runs.jsonl", {"seconds": 0.1}, resume=False)
    Bench(MODEL, 0.7, 0.1, kept, learn=0.1).measure(part)
    lines = (tmp_path / "runs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "runs.jsonl").write_text("".join(lines[:-1]) + lines[-1][:20])
    kept = Kept(tmp_path / "runs.jsonl", {"seconds": 0.1}, resume=True)
    before = {key: kept[key] for key in (part.key(1, 1, name) for name in part.names) if key in kept}
    assert len(before) == 1
    bench = Bench(MODEL, 0.7, 0.1, kept, learn=0.1)
    bench.measure(part)
    assert len(bench.found(part)) == 2 and all(kept[key] == run for key, run in before.items())
    monkeypatch.setattr("bench.batching.__main__.contenders", None)
    bench.measure(part)  # nothing is missing
    given = Namespace(temperature=0.7, rounds=1, seconds=0.1, name="batching")
    text = body_of(bench, [part], given)
    assert "Costs as measured here: drafter suffix+eagle3 or suffix" in text and "Asked: ours at no load" in text


def test_where_no_band_is_the_page_has_the_run_with_the_scaled_head_and_its_switch(tmp_path: Path) -> None:
    kept, part = Kept(tmp_path / "runs.jsonl", {}, resume=False), Part(HELD_OUT, (OURS, PLAIN, TREE), (1, 8), 1)
    scaled = replace(part, step=0.14)
    for of, modes in ((part, ("suffix+eagle3", "plain")), (scaled, ("suffix+eagle3", "suffix"))):
        kept.put(f"{of.title} | costs", ["drafter ...", 0.08])
        for calls, mode in zip(part.calls, modes, strict=True):
            for name, speed in ((OURS, 3.0), (PLAIN, 1.0), (TREE, 2.0)):
                kept.put(of.key(calls, 1, name), asdict(Found(name, calls, speed, {mode: 1})))
    given = Namespace(temperature=0.7, rounds=1, seconds=0.1, name="batching")
    text = body_of(Bench(MODEL, 0.7, 0.1, kept), [part, scaled], given)
    real, head = text.split("## With the draft head's cost scaled")
    assert "A step of the head takes 0.08 of a plain forward" in real and "**Chosen and ahead: nowhere.**" in real
    assert "There is no band of self-speculation above" in head and "for 0.14 of a forward (as on a GPU)" in head
    assert "switch to self-speculation is seen: as replies join, ours drafts with suffix+eagle3, suffix from 8" in head
    assert "**Chosen and ahead: at 8 at a time.**" in head


def test_the_head_is_made_dearer_until_there_is_a_band() -> None:
    parts = [Part(HELD_OUT, (OURS, PLAIN, TREE), (8,), 1, step) for step in (None, 0.14, 0.28, 0.56)]

    class Measured:
        def measure(self, part: Part) -> None:
            pass

        def found(self, part: Part) -> list[Found]:
            return runs_of(8, dict(zip(part.names, (3.0, 1.0, 2.0), strict=True)), modes[part.step])

    modes = {None: "suffix", 0.14: "plain", 0.28: "suffix", 0.56: "suffix"}
    assert measured(cast("Bench", Measured()), parts) == parts[:3]
    modes[0.28] = "plain"
    assert measured(cast("Bench", Measured()), parts) == parts


def test_the_plan_is_over_within_fifty_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["bench.batching"])
    given = arguments()
    assert sum(part.most_seconds(given.seconds) for part in parts_of(given)) <= 50 * 60
