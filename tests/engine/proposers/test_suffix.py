"""Self-speculation: its index against a search of the whole text, what it drafts, and what it learns."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.proposers.suffix import (
    LONGEST,
    MOST_MATCHES,
    ORDERS,
    TRIED,
    MatchStatistics,
    SuffixDraft,
    SuffixIndex,
    SuffixProposer,
    Trie,
)
from engine.tree import DraftTree

EDITS = st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 3), max_size=12), st.integers(0, 20)), max_size=12)


def search(text: list[int], root: int) -> list[tuple[int, int]]:
    """``SuffixIndex.matches`` without an index."""
    whole = [*text, root]
    found: dict[int, int] = {}
    for order, tried in zip(ORDERS, TRIED, strict=True):
        ends = [p for p in range(order - 1, len(text)) if whole[-order:] == text[p - order + 1 : p + 1]]
        for place in ends[::-1][:tried]:
            length = 0
            while length < LONGEST and place >= length and text[place - length] == whole[len(text) - length]:
                length += 1
            found[place] = length
        if len(found) >= MOST_MATCHES:
            break
    return sorted(found.items(), key=lambda match: (-match[1], -match[0]))[:MOST_MATCHES]


@settings(max_examples=150, deadline=None)
@given(EDITS, st.integers(0, 3))
def test_matches_are_those_of_a_search_after_any_appends_and_rewinds(
    edits: list[tuple[bool, list[int], int]], root: int
) -> None:
    index, text = SuffixIndex(), list[int]()
    for forked, tokens, rewind in edits:
        for token in tokens:
            index.append(token)
        text += tokens
        if forked:
            index = index.copy()
        index.truncate(max(0, len(text) - rewind))
        del text[max(0, len(text) - rewind) :]
        assert index.tokens == text
        assert index.matches(root) == search(text, root)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 40), st.integers(0, 3_900), st.integers(0, 600))
def test_what_stood_once_is_found_however_long_ago(seed: int, length: int, at: int, rewound: int) -> None:
    """A phrase in four thousand words, wherever it stood, and whatever came behind it and was taken back."""
    random = Random(seed)
    text = [random.randrange(5_000) for _ in range(4_000)]
    phrase = [10_000 + random.randrange(50) for _ in range(length)]
    text[at : at + length] = phrase
    text[at - 1 if at else -2], text[-1] = 20_000, 30_000  # no more than the phrase agrees
    index = SuffixIndex()
    for token in text:
        index.append(token)
    for token in [*phrase, *range(rewound)]:
        index.append(token)
    index.truncate(len(text) + length - 1)
    assert index.matches(phrase[-1])[0] == (at + length - 1, min(LONGEST, length))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=60), st.integers(0, 2), st.integers(1, 20), st.integers(0, 40))
def test_no_match_is_much_longer_than_the_first(phrase: list[int], root: int, repeats: int, start: int) -> None:
    """Whatever stands often behind it: one of the largest order that agrees anywhere is found, and the longest of all
    where that order's run did not end at more places than are tried.
    """
    text = [*phrase, *(phrase[start % len(phrase) :] * repeats), *phrase]
    index = SuffixIndex()
    for token in text:
        index.append(token)
    whole = [*text, root]
    agreeing = [
        next(
            (n for n in range(min(LONGEST, place + 1)) if text[place - n] != whole[len(text) - n]),
            min(LONGEST, place + 1),
        )
        for place in range(len(text))
    ]
    longest = max(agreeing)
    found = index.matches(root)
    if not longest:
        assert found == []
        return
    order = max(order for order in ORDERS if order <= longest)
    assert found[0][1] >= order
    if sum(length >= order for length in agreeing) <= TRIED[ORDERS.index(order)]:
        assert found[0][1] == longest


def test_a_fork_does_not_hear_of_its_parent() -> None:
    index = SuffixIndex()
    for token in (1, 2, 3):
        index.append(token)
    child = index.copy()
    child.append(1)
    index.truncate(1)
    assert child.matches(2) == [(1, 2)] and index.matches(2) == []


@given(st.lists(st.integers(0, 2), min_size=2, max_size=20), st.integers(0, 2), st.integers(1, 30))
def test_a_continuation_goes_round_where_the_text_ends(text: list[int], root: int, count: int) -> None:
    index = SuffixIndex()
    for token in text:
        index.append(token)
    for place in range(len(text)):
        grown = [*text, root]
        for i in range(count):
            grown.append(grown[place + 1 + i])
        assert index.continuation(place, root, count) == grown[place + 1 : place + 1 + count]


def drafted(text: list[int], root: int, budget: int, *, chain: bool = False) -> DraftTree:
    proposer = SuffixProposer(source=3, chain=chain)
    draft = proposer.start()
    proposer.observe(draft, torch.tensor(text), None, None)
    tree = proposer.propose([draft], [root], [None], budget)[0]
    tree.check()
    return tree


def test_what_followed_the_longest_match_comes_first_and_shorter_ones_beside_it() -> None:
    text = [5, 6, 7, 1, 2, 9, 7, 3, 4, 9, 5, 6]
    chain = drafted(text, 7, 4, chain=True)
    assert chain.tokens.tolist() == [7, 1, 2, 9] and chain.causal
    tree = drafted(text, 7, 20)
    first = (tree.parents == 0).nonzero()[:, 0]
    score = dict(zip(tree.tokens[first].tolist(), tree.score[first].tolist(), strict=True))
    assert set(score) == {1, 3}, "after 5 6 7 came 1, after 9 7 came 3"
    assert score[1] > score[3]
    assert set(tree.source.tolist()) == {-1, 3}


@pytest.mark.parametrize("budget", [1, 2, 5, 16])
def test_a_tree_keeps_its_budget_and_text_that_is_new_drafts_nothing(budget: int) -> None:
    assert len(drafted([1, 2, 3, 1, 2, 4, 1, 2, 5, 1, 2], 3, budget)) <= budget
    assert len(drafted([1, 2, 3], 9, budget)) == 1


def test_scores_fall_along_a_path_and_siblings_share_what_there_is() -> None:
    tree = drafted([1, 2, 3, 1, 2, 4, 1, 2, 5, 1, 2, 6, 1], 2, 40)
    for node in range(1, len(tree)):
        assert tree.score[node] <= tree.score[int(tree.parents[node])]
    for parent in range(len(tree)):
        assert float(tree.score[tree.parents == parent].sum()) <= float(tree.score[parent]) + 1e-6


def test_a_trie_drops_what_is_hardly_probable() -> None:
    trie = Trie(0)
    trie.add([1, 2, 3], [0.5, 0.5, 0.01], least=0.02)
    trie.add([1, 4], [0.9, 0.5], least=0.02)
    assert trie.tokens == [0, 1, 2, 4] and trie.scores == pytest.approx([1.0, 0.5, 0.25, 0.5 * 0.5 * 0.5])


def test_matches_that_hold_are_trusted_more_and_those_that_do_not_less() -> None:
    proposer = SuffixProposer()
    for right in (True, False):
        draft = proposer.start()
        assert isinstance(draft, SuffixDraft)
        text = [*range(10, 30), *range(40, 50)]
        proposer.observe(draft, torch.tensor([*text, 10]), None, None)
        before = MatchStatistics()
        for at in range(11, 20):
            if right:
                proposer.propose([draft], [at], [None], 4)
                proposer.observe(draft, torch.tensor([at]), None, None)
            else:  # 10 was said, and something else comes behind it than ever before
                proposer.propose([draft], [10], [None], 4)
                proposer.observe(draft, torch.tensor([10, at + 60]), None, None)
        change = [draft.statistics.rate(n) - before.rate(n) for n in range(1, 12)]
        assert max(change) > 0.02 if right else min(change) < -0.02


def test_an_append_touches_as_much_of_a_long_text_as_of_a_short_one() -> None:
    """By the tokens that are looked at: the runs at its end, however long the text is."""

    class Counted(list[int]):
        touched = 0

        def __getitem__(self, at: Any) -> Any:
            self.touched += len(range(*at.indices(len(self)))) if isinstance(at, slice) else 1
            return super().__getitem__(at)

        def __iter__(self) -> Iterator[int]:
            raise AssertionError("the whole text is read")

    index = SuffixIndex()
    index.tokens = text = Counted()
    costs = []
    for token in itertools.islice(itertools.cycle((1, 2, 3, 1, 2, 4)), 4000):
        text.touched = 0
        index.append(token)
        costs.append(text.touched)
    assert set(costs[50:]) == {costs[50]} and costs[50] <= 2 * sum(ORDERS)
    text.touched = 0
    assert len(index.matches(1)) == MOST_MATCHES
    assert text.touched <= sum(ORDERS) + (1 + 2 * LONGEST) * sum(TRIED)
