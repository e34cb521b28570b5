"""Drafters that learn from a session's text learn nothing from another's: two sessions meet in the same words and go on
with words of their own, and each drafts what it would have drafted alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.interfaces import Draft, Proposer
from engine.proposers.cascade import Cascade
from engine.proposers.recycling import TOP_K, RecyclingProposer
from engine.proposers.suffix import SuffixProposer
from engine.tree import DraftTree

SHARED, OWN = 3, 10
"""Words that all sessions say, and words that each says alone."""


@dataclass
class Call:
    """One session of a proposer. life: sessions opened one after another under the same name have their own words."""

    proposer: Proposer
    life: int
    draft: Draft

    @staticmethod
    def of(proposer: Proposer, life: int) -> Call:
        return Call(proposer, life, proposer.start())

    def word(self, number: int) -> int:
        """Small numbers are the shared words, the others this session's own."""
        return number if number < SHARED else self.life * OWN + number

    def own(self) -> set[int]:
        return {self.word(number) for number in range(SHARED, OWN)}

    def say(self, numbers: list[int]) -> None:
        choices = [[self.word((number + i) % OWN) for i in range(1, TOP_K + 1)] for number in numbers]
        tokens = torch.tensor([self.word(number) for number in numbers])
        self.proposer.observe(self.draft, tokens, None, torch.tensor(choices))

    def ask(self, root: int, budget: int) -> DraftTree:
        tree = self.proposer.propose([self.draft], [root], [None], budget)[0]
        assert set(tree.tokens[1:].tolist()) <= self.own() | set(range(SHARED))
        return tree


def cascade() -> Cascade:
    return Cascade([SuffixProposer(0), RecyclingProposer(1)])


@pytest.mark.parametrize("make", [SuffixProposer, RecyclingProposer, cascade])
def test_after_the_same_words_each_session_drafts_its_own(make: Callable[[], Proposer]) -> None:
    proposer = make()
    one, two = Call.of(proposer, 1), Call.of(proposer, 2)
    for call in (one, two) * 3:
        call.say([0, 1, 2, 5, 6, 7, 8])
    for call in (one, two, one, two):
        for root in range(SHARED):
            assert call.own() & set(call.ask(root, 24).tokens.tolist())
    assert len(two.ask(one.word(5), 24)) == 1, "a word that only the other says"
    one.draft.close()
    again = Call.of(proposer, 3)
    for root in (0, 1, 2, one.word(5), two.word(5)):
        assert len(again.ask(root, 24)) == 1, "a session that has said nothing"
    again.say([0, 1, 4, 0, 1])
    for call in (two, again):
        assert call.own() & set(call.ask(0, 24).tokens.tolist())


class Move(NamedTuple):
    """What one of the two sessions does: it goes on, is rewound, goes on as a fork, or ends and is opened anew; and
    then drafts behind one of the shared words, of its own or of the other's."""

    two: bool
    does: str
    numbers: list[int]
    root: int
    others: bool
    budget: int


MOVES = st.lists(
    st.builds(
        Move,
        st.booleans(),
        st.sampled_from(["say", "say", "say", "rewind", "fork", "reopen"]),
        st.lists(st.sampled_from([0, 1, 2, 0, 1, 2, 4, 5, 6]), min_size=1, max_size=8),
        st.integers(0, OWN - 1),
        st.booleans(),
        st.integers(1, 24),
    ),
    min_size=2,
    max_size=16,
)


@pytest.mark.parametrize("make", [SuffixProposer, RecyclingProposer])
@settings(max_examples=40, deadline=None)
@given(MOVES)
def test_a_session_drafts_what_it_would_draft_alone(make: Callable[[], Proposer], moves: list[Move]) -> None:
    shared = make()
    together = [Call.of(shared, 1), Call.of(shared, 2)]
    alone = [Call.of(make(), 1), Call.of(make(), 2)]
    lives = 2
    for move in moves:
        if move.does == "reopen":
            lives += 1
            together[move.two].draft.close()
            together[move.two], alone[move.two] = Call.of(shared, lives), Call.of(make(), lives)
        pair = together[move.two], alone[move.two]
        for call in pair:
            if move.does == "rewind":
                call.draft.truncate(max(0, call.draft.length - len(move.numbers)))
            elif move.does == "fork":
                parent, call.draft = call.draft, call.draft.fork()
                if call is pair[0]:  # the parent goes on as somebody else, and ends
                    lives += 1
                    Call(shared, lives, parent).say(move.numbers)
                    parent.close()
            call.say(move.numbers)
        root = (together[not move.two] if move.others else pair[0]).word(move.root)
        one, two = (call.ask(root, move.budget) for call in pair)
        assert one.tokens.tolist() == two.tokens.tolist() and one.parents.tolist() == two.parents.tolist()
        assert one.score.tolist() == two.score.tolist()
