"""The policy drafts where it pays, stops where it does not, and notices when that changes."""

from __future__ import annotations

import random

import pytest
import torch

from engine.policy import FixedPolicy, MeasuredPolicy, StepCosts
from engine.tree import DraftTree

NODES = (1, 4, 8, 16, 32)


def costs(per_node: float, draft: float) -> StepCosts:
    """A step that costs 1 and ``per_node`` more for each node beyond the first; drafting costs ``draft``."""
    return StepCosts(NODES, tuple(1 + per_node * (n - 1) for n in NODES), (0.0, *[draft] * (len(NODES) - 1)))


def play(policy: MeasuredPolicy, acceptance: float, steps: int, rng: random.Random) -> tuple[float, list[int]]:
    """(tokens per unit of time, budgets chosen) over chains whose every token is accepted with ``acceptance``."""
    tokens, seconds, budgets = 0, 0.0, []
    for _ in range(steps):
        budget = policy.budget(100, 50)
        budgets.append(budget)
        arm = policy.costs.nodes.index(budget)
        tree = DraftTree.chain(torch.arange(budget), score=torch.tensor([acceptance**i for i in range(budget)]))
        tree = policy.prune(tree)
        accepted = 0
        while accepted < len(tree) - 1 and rng.random() < acceptance:
            accepted += 1
        if budget > 1:
            policy.observe(tree, range(accepted + 1))
        tokens += accepted + 1
        seconds += policy.costs.draft[arm] + policy.costs.verify_seconds(len(tree))
    return tokens / seconds, budgets


def best_fixed(costs: StepCosts, acceptance: float) -> float:
    """Tokens per unit of time of the best chain length there is."""
    expected = [sum(acceptance**i for i in range(n)) for n in range(1, NODES[-1] + 1)]
    plain = 1 / costs.verify_seconds(1)
    drafted = [e / (costs.verify_seconds(n) + costs.draft[1]) for n, e in enumerate(expected, start=1) if n > 1]
    return max(plain, *drafted)


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.6, 0.8, 0.95])
@pytest.mark.parametrize(("per_node", "draft"), [(0.0, 0.1), (0.02, 0.3), (0.3, 0.5), (1.0, 1.0)])
def test_it_comes_near_the_best_fixed_choice(acceptance: float, per_node: float, draft: float) -> None:
    policy = MeasuredPolicy(costs(per_node, draft))
    rng = random.Random(1)
    play(policy, acceptance, 600, rng)
    rate, _ = play(policy, acceptance, 2000, rng)
    assert rate > 0.88 * best_fixed(policy.costs, acceptance)


def test_it_does_not_draft_where_nothing_is_accepted_and_comes_back_when_it_is() -> None:
    policy = MeasuredPolicy(costs(0.1, 0.4))
    rng = random.Random(2)
    play(policy, 0.0, 500, rng)
    _, budgets = play(policy, 0.0, 1000, rng)
    assert sum(budget > 1 for budget in budgets) < 0.03 * len(budgets)
    play(policy, 0.95, 3000, rng)
    _, budgets = play(policy, 0.95, 1000, rng)
    assert sum(budget > 1 for budget in budgets) > 0.9 * len(budgets)


def test_pruning_keeps_a_tree_and_its_best_nodes() -> None:
    policy = MeasuredPolicy(costs(0.2, 0.1))
    rng = random.Random(3)
    for _ in range(200):
        n = rng.randint(2, 24)
        parents = [-1] + [rng.randrange(i) for i in range(1, n)]
        score = [1.0]
        for parent in parents[1:]:
            score.append(score[parent] * rng.random())
        tree = DraftTree(torch.arange(n), torch.tensor(parents), torch.tensor(score), torch.zeros(n).long())
        policy.budget(10, 10)
        pruned = policy.prune(tree)
        pruned.check()
        kept = {int(token) for token in pruned.tokens}
        for token, parent in zip(pruned.tokens[1:].tolist(), pruned.parents[1:].tolist(), strict=True):
            assert int(tree.parents[token]) == int(pruned.tokens[parent])
        if len(kept) > 1:
            worst = min(score[token] for token in kept)
            dropped = [score[token] for token in range(1, n) if token not in kept and parents[token] in kept]
            assert all(value <= 2 * worst for value in dropped)


def test_no_room_means_no_draft() -> None:
    assert MeasuredPolicy(costs(0.0, 0.0)).budget(100, 0) == 1
    assert FixedPolicy(24).budget(100, 0) == 1


def test_costs_between_measured_sizes_are_interpolated() -> None:
    measured = StepCosts((1, 4, 8), (1.0, 2.0, 4.0), (0.0, 1.0, 1.0))
    assert [measured.verify_seconds(n) for n in (1, 4, 6, 8, 16)] == [1.0, 2.0, 3.0, 4.0, 8.0]
