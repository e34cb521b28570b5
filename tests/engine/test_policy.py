"""The policy drafts where it pays, stops where it does not, and notices when that changes; for one call and many."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
import torch

from engine.measured_policy import MeasuredPolicy
from engine.pace import Pace, StepCosts
from engine.policy import Ask, Choice, FixedPolicy, Given
from engine.tree import DraftTree

NODES = (1, 4, 8, 16, 32)
WAYS = ("copy+head", "copy")


PLAIN_S = 0.005
"""A plain step of one call, in which the costs here are given."""


def costs(per_node: float, *drafts: float) -> StepCosts:
    """A step that costs 1 and ``per_node`` more for each node beyond the first; drafting costs the same at any size."""
    verify = tuple(PLAIN_S * (1 + per_node * (n - 1)) for n in NODES)
    return StepCosts(NODES, verify, tuple((0.0, *[PLAIN_S * draft] * (len(NODES) - 1)) for draft in drafts))


def play(
    policy: MeasuredPolicy,
    known: StepCosts,
    acceptance: Callable[[int], float],
    steps: int,
    calls: int,
    rng: random.Random,
) -> tuple[float, list[Choice]]:
    """(tokens per unit of time, what was chosen) over chains whose every token is accepted with ``acceptance(way)``."""
    tokens, seconds, chosen = 0, 0.0, []
    for _ in range(steps):
        choices = policy.choose([Ask(50)] * calls)
        trees = [
            DraftTree.chain(
                torch.arange(choice.nodes),
                score=torch.tensor([acceptance(choice.way) ** i for i in range(choice.nodes)]),
            )
            for choice in choices
        ]
        pruned = policy.prune(choices, trees)
        for choice, tree in zip(choices, pruned, strict=True):
            accepted = 0
            while accepted < len(tree) - 1 and rng.random() < acceptance(choice.way):
                accepted += 1
            policy.observe(choice, tree, range(accepted + 1))
            tokens += accepted + 1
            seconds += known.draft_seconds(choice.way, choice.nodes) if choice.drafts else 0.0
        seconds += known.verify_seconds(sum(map(len, pruned)))
        chosen += choices
    return tokens / seconds, chosen


def best_fixed(known: StepCosts, acceptance: float, calls: int = 1, way: int = 0) -> float:
    """Tokens per unit of time of the best chain length there is, the same for all calls."""
    expected = [sum(acceptance**i for i in range(n)) for n in range(1, NODES[-1] + 1)]
    plain = calls / known.verify_seconds(calls)
    drafted = [
        calls * gain / (known.verify_seconds(calls * n) + calls * known.draft[way][1])
        for n, gain in enumerate(expected, start=1)
        if n > 1
    ]
    return max(plain, *drafted)


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.6, 0.8, 0.95])
@pytest.mark.parametrize(("per_node", "draft"), [(0.0, 0.1), (0.02, 0.3), (0.3, 0.5), (1.0, 1.0)])
def test_it_comes_near_the_best_fixed_choice(acceptance: float, per_node: float, draft: float) -> None:
    known = costs(per_node, draft)
    policy, rng = MeasuredPolicy(Pace(known)), random.Random(1)
    play(policy, known, lambda way: acceptance, 600, 1, rng)
    rate, _ = play(policy, known, lambda way: acceptance, 2000, 1, rng)
    assert rate > 0.88 * best_fixed(known, acceptance)


@pytest.mark.parametrize("calls", [1, 3, 16])
def test_it_comes_near_the_best_fixed_way_at_any_load(calls: int) -> None:
    """A head that is dear and good, and copying that is free and less good."""
    known, rate_of = costs(0.04, 0.4, 0.01), {0: 0.8, 1: 0.5}
    policy, rng = MeasuredPolicy(Pace(known), WAYS), random.Random(4)
    play(policy, known, rate_of.__getitem__, 300, calls, rng)
    rate, _ = play(policy, known, rate_of.__getitem__, 300, calls, rng)
    assert rate > 0.85 * max(best_fixed(known, rate_of[way], calls, way) for way in rate_of)


def test_as_calls_join_it_goes_from_the_head_to_copying_to_nothing_and_back() -> None:
    known, rate_of = costs(0.03, 1.2, 0.005), {0: 0.9, 1: 0.6}
    policy, rng = MeasuredPolicy(Pace(known), WAYS), random.Random(5)

    def ways_at(calls: int) -> dict[str, float]:
        play(policy, known, rate_of.__getitem__, 200, calls, rng)
        _, chosen = play(policy, known, rate_of.__getitem__, 100, calls, rng)
        names = [WAYS[choice.way] if choice.drafts else "plain" for choice in chosen if not choice.probing]
        return {name: names.count(name) / len(names) for name in set(names)}

    for calls, wanted in ((1, "copy+head"), (16, "copy"), (64, "plain"), (1, "copy+head")):
        assert ways_at(calls).get(wanted, 0.0) > 0.9, (calls, wanted)


def test_it_does_not_draft_where_nothing_is_accepted_and_comes_back_when_it_is() -> None:
    known = costs(0.1, 0.4)
    policy, rng = MeasuredPolicy(Pace(known)), random.Random(2)
    play(policy, known, lambda way: 0.0, 500, 1, rng)
    _, chosen = play(policy, known, lambda way: 0.0, 1000, 1, rng)
    assert sum(choice.drafts for choice in chosen) < 0.03 * len(chosen)
    play(policy, known, lambda way: 0.95, 2000, 1, rng)
    _, chosen = play(policy, known, lambda way: 0.95, 500, 1, rng)
    assert sum(choice.drafts for choice in chosen) > 0.9 * len(chosen)


def test_one_reply_of_many_probes() -> None:
    policy = MeasuredPolicy(Pace(costs(0.5, 2.0)), probe_every=4)
    probing = [sum(choice.probing for choice in policy.choose([Ask(50)] * 5)) for _ in range(100)]
    assert set(probing) == {0, 1}


def test_callers_who_wait_get_more_of_the_drafting() -> None:
    known, rng = costs(0.1, 0.2), random.Random(6)
    policy = MeasuredPolicy(Pace(known), probe_every=100_000)
    play(policy, known, lambda way: 0.7, 300, 2, rng)
    choices = [Choice(16, urgent=False), Choice(16, urgent=True)]
    trees = [DraftTree.chain(torch.arange(16), score=torch.tensor([0.7**i for i in range(16)])) for _ in choices]
    relaxed, urgent = policy.prune(choices, trees)
    assert len(urgent) > len(relaxed)


def test_relaxed_replies_draft_less_where_others_wait() -> None:
    """Beside callers who wait for a first token in the same step, what costs drafting has to bring more."""
    known, rng = costs(0.02, 0.5), random.Random(8)
    policy = MeasuredPolicy(Pace(known), probe_every=100_000)
    play(policy, known, lambda way: 0.55, 300, 1, rng)
    for _ in range(40):
        assert policy.choose([Ask(50, urgent=False)])[0].drafts
    assert not policy.choose([Ask(50, urgent=False)], Given(windows=4, nodes=40, awaited=4))[0].drafts


def test_one_slow_step_does_not_forbid_a_way_for_good() -> None:
    known, rate_of = costs(0.01, 0.05), {0: 0.9}
    policy, rng = MeasuredPolicy(pace := Pace(known)), random.Random(9)
    play(policy, known, rate_of.__getitem__, 100, 16, rng)
    pace.observe_draft(0, 16, 16, 12 * known.draft_seconds(0, 16, 16))
    drafted = []
    for _ in range(4000):
        pace.observe(16, 32, known.verify_seconds(32))
        choices = policy.choose([Ask(50)] * 16)
        drafted.append(sum(choice.drafts and not choice.probing for choice in choices))
    assert drafted[-1] == 16


@pytest.mark.parametrize("loads", [(2,), (1, 4)], ids=["one load", "two in turn"])
def test_costs_that_go_up_and_down_a_little_do_not_make_it_go_to_and_fro(loads: tuple[int, ...]) -> None:
    """Two ways that are worth about the same: with measurements that differ by a tenth it stays with one for long."""
    known = costs(0.0, 0.5, 0.5)
    policy, rng = MeasuredPolicy(pace := Pace(known), WAYS), random.Random(10)
    ways: dict[int, list[int]] = {calls: [] for calls in loads}
    for step in range(800):
        calls = loads[step % len(loads)]
        _, chosen = play(policy, known, lambda way: 0.7, 1, calls, rng)
        ways[calls] += [choice.way for choice in chosen if choice.drafts and not choice.probing]
        for way in (0, 1) if step % 20 == 0 else ():
            for calls in loads:
                pace.observe_draft(way, 8, calls, PLAIN_S * rng.uniform(0.95, 1.05))
    for taken in ways.values():
        assert sum(one != other for one, other in itertools.pairwise(taken)) <= len(taken) // 100


@pytest.mark.parametrize("draft", [0.4, 0.45])
def test_loads_that_take_turns_are_each_decided_for_as_if_there_were_no_other(draft: float) -> None:
    """Alone a call drafts; where four share a step plain decoding is better, though by little."""
    known = costs(0.05, draft)
    policy, rng = MeasuredPolicy(Pace(known), probe_every=100_000), random.Random(1)
    for calls, steps in ((1, 300), (4, 308)):
        play(policy, known, lambda way: 0.7, steps, calls, rng)
    drafted: dict[int, list[bool]] = {1: [], 4: []}
    for step in range(1000):
        calls = (1, 4)[step % 2]
        _, chosen = play(policy, known, lambda way: 0.7, 1, calls, rng)
        drafted[calls].append(chosen[0].drafts)
    assert all(drafted[1]) and not any(drafted[4])


def test_only_the_forced_way_is_chosen() -> None:
    known = costs(0.5, 3.0, 0.01)
    policy = MeasuredPolicy(Pace(known), WAYS, only=0)
    _, chosen = play(policy, known, lambda way: 0.1, 300, 4, random.Random(7))
    assert {(choice.drafts, choice.way) for choice in chosen} == {(True, 0)}


def test_pruning_keeps_a_tree_and_its_best_nodes() -> None:
    policy = MeasuredPolicy(Pace(costs(0.2, 0.1)))
    rng = random.Random(3)
    for _ in range(200):
        n = rng.randint(2, 24)
        parents = [-1] + [rng.randrange(i) for i in range(1, n)]
        score = [1.0]
        for parent in parents[1:]:
            score.append(score[parent] * rng.random())
        tree = DraftTree(torch.arange(n), torch.tensor(parents), torch.tensor(score), torch.zeros(n).long())
        pruned = policy.prune([Choice(32)], [tree])[0]
        pruned.check()
        kept = {int(token) for token in pruned.tokens}
        for token, parent in zip(pruned.tokens[1:].tolist(), pruned.parents[1:].tolist(), strict=True):
            assert int(tree.parents[token]) == int(pruned.tokens[parent])
        if len(kept) > 1:
            worst = min(score[token] for token in kept)
            dropped = [score[token] for token in range(1, n) if token not in kept and parents[token] in kept]
            assert all(value <= 2 * worst for value in dropped)


def test_no_room_means_no_draft() -> None:
    asks = [Ask(0), Ask(5), Ask(-1)]
    assert [c.drafts for c in MeasuredPolicy(Pace(costs(0.0, 0.0))).choose(asks)] == [False, True, False]
    assert [c.nodes for c in FixedPolicy(24).choose(asks)] == [1, 24, 1]


def test_a_drafter_that_drafts_nothing_leaves_plain_decoding() -> None:
    policy = MeasuredPolicy(Pace(StepCosts((1,), (1.0,), ((0.0,),))))
    assert [choice.drafts for choice in policy.choose([Ask(9), Ask(9)])] == [False, False]
