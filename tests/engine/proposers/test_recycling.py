"""Token recycling: the table that it keeps and the trees that it makes of it."""

from __future__ import annotations

import pytest
import torch

from engine.proposers.recycling import TOP_K, RecyclingDraft, RecyclingProposer


def learned(rows: dict[int, list[int]]) -> tuple[RecyclingProposer, RecyclingDraft]:
    proposer = RecyclingProposer(source=2)
    draft = proposer.start()
    tokens = torch.tensor(list(rows))
    proposer.observe(draft, tokens, None, torch.tensor(list(rows.values())))
    return proposer, draft


def test_a_tree_is_successors_of_successors_most_probable_first() -> None:
    proposer, draft = learned({1: [2, 3], 2: [4, 5], 4: [6, 7]})
    tree = proposer.propose([draft], [1], [None], 5)[0]
    tree.check()
    assert tree.tokens.tolist()[:4] == [1, 2, 4, 3]  # .42, .18 and .14 with the guessed rates
    assert tree.parents.tolist()[:4] == [-1, 0, 1, 0]
    assert set(tree.source.tolist()) == {-1, 2}
    for node in range(1, len(tree)):
        assert tree.score[node] <= tree.score[int(tree.parents[node])]


@pytest.mark.parametrize("budget", [1, 2, 9, 60])
def test_a_tree_keeps_its_budget(budget: int) -> None:
    rows = {token: [(token + i) % 20 for i in range(1, TOP_K + 1)] for token in range(20)}
    proposer, draft = learned(rows)
    tree = proposer.propose([draft], [3], [None], budget)[0]
    tree.check()
    assert len(tree) <= budget and (budget == 1 or len(tree) > 1)
    chain = RecyclingProposer(chain=True).propose([draft], [3], [None], budget)[0]
    assert chain.causal and chain.tokens.tolist() == [(3 + i) % 20 for i in range(len(chain))]


def test_an_unknown_root_drafts_nothing() -> None:
    proposer, draft = learned({1: [2, 3]})
    assert len(proposer.propose([draft], [9], [None], 8)[0]) == 1


def test_a_prompt_teaches_what_followed_until_the_target_says_more() -> None:
    proposer = RecyclingProposer()
    draft = proposer.start()
    before = draft.statistics.rates()
    proposer.observe(draft, torch.tensor([7, 8, 9, 7, 5]), None, None)
    proposer.catch_up(draft)
    assert draft.statistics.rates() == before, "ranks are learned from the target's own choices"
    assert draft.rows == {7: (8,), 8: (9,), 9: (7,)}
    proposer.observe(draft, torch.tensor([7]), None, torch.tensor([[5, 6]]))
    draft.read()
    assert draft.rows[7] == (5, 6) and draft.rows[5] == (7,)
    assert draft.length == 6


def test_ranks_that_come_true_are_trusted_more() -> None:
    proposer, draft = learned({1: [2, 3], 3: [1, 4]})
    before = draft.statistics.rates()
    for _ in range(20):
        proposer.observe(draft, torch.tensor([1, 3]), None, torch.tensor([[2, 3], [1, 4]]))
    draft.read()
    after = draft.statistics.rates()
    assert after[1] > before[1] and after[2] < before[2]


def test_rewinds_and_forks() -> None:
    proposer, draft = learned({1: [2, 3], 2: [4, 5]})
    child = draft.fork()
    proposer.observe(child, torch.tensor([9]), None, torch.tensor([[1, 2]]))
    child.read()
    assert 9 in child.rows and 9 not in draft.rows and (draft.length, child.length) == (2, 3)
    child.truncate(1)
    assert child.length == 1
    assert child.rows == {1: (2, 3)}, "what came behind it has told nothing any more"
    proposer.observe(child, torch.tensor([8]), None, None)
    child.read()
    assert child.rows == {1: (2, 3)}, "8 stands behind the token at position 0, which is not known any more"
    draft.close()
    assert draft.length == 0 and not draft.rows
