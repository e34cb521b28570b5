"""Token recycling's whole trees against its definition written out, over texts that grow, are rewound and forked."""

from __future__ import annotations

from typing import NamedTuple

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.proposers.recycling import LEAST_SCORE, RankStatistics, RecyclingProposer
from tests.engine.proposers.trees import Paths, check_best

WORDS, SOURCE = 9, 2


class Seen(NamedTuple):
    """A token of the text, and the target's choices behind it, where they were computed. linked: whether it is known
    what stood before it; not where the text was rewound to there.
    """

    token: int
    choices: tuple[int, ...] = ()
    linked: bool = True


class SlowRecycling:
    """The definition. Keeps no table, only the text as it stands, and every rank that ever came of it."""

    def __init__(self, *, chain: bool) -> None:
        self.seen: list[Seen] = []
        self.ranks: list[int] = []
        self.width = 1 if chain else len(RankStatistics.GUESS)

    def observe(self, token: int, choices: tuple[int, ...], *, linked: bool) -> None:
        if linked and len(row := self.row(self.seen[-1].token)) > 1:
            self.ranks.append(row.index(token) if token in row else -1)
        self.seen.append(Seen(token, choices, linked))

    def row(self, token: int) -> tuple[int, ...]:
        """The successors known of a token from the text: the target's latest choices, or without any the first token
        that followed it."""
        for seen in reversed(self.seen):
            if seen.token == token and seen.choices:
                return seen.choices
        for at, seen in enumerate(self.seen):
            if at and seen.linked and self.seen[at - 1].token == token:
                return (seen.token,)
        return ()

    def rates(self) -> list[float]:
        """How often each rank of the target's choices was what came, a guess counting for a few times."""
        weight = RankStatistics.WEIGHT
        return [
            (guess * weight + self.ranks.count(rank)) / (weight + len(self.ranks))
            for rank, guess in enumerate(RankStatistics.GUESS)
        ]

    def nodes(self, root: int) -> Paths:
        """All that a tree may hold."""
        rates, found = self.rates()[: self.width], Paths()

        def grow(path: tuple[int, ...], last: int, score: float) -> None:
            for rate, token in zip(rates, self.row(last), strict=False):
                if score * rate >= LEAST_SCORE:
                    found[(*path, token)] = score * rate
                    grow((*path, token), token, score * rate)

        grow((), root, 1.0)
        return found


class Move(NamedTuple):
    """One step of a session: a rewind or not, tokens with or without the target's choices, then a tree or none."""

    rewound: int
    tokens: list[int]
    choices: list[int] | None
    caught_up: bool
    forked: bool
    asked: bool
    root: int
    budget: int


TOKENS = st.lists(st.integers(0, WORDS - 1), max_size=8)
MOVES = st.lists(
    st.builds(
        Move,
        st.sampled_from([0, 0, 0, 1, 3]),
        TOKENS,
        st.none() | st.lists(st.integers(0, 3), min_size=8, max_size=8),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.integers(0, WORDS - 1),
        st.integers(1, 60),
    ),
    min_size=1,
    max_size=8,
)
CHOICES = st.lists(st.permutations(range(WORDS)), min_size=4, max_size=4)


@settings(max_examples=80, deadline=None)
@given(CHOICES, st.integers(2, RecyclingProposer.top_k), MOVES, st.booleans())
def test_a_tree_is_the_best_of_all_successors_of_successors(
    choices: list[list[int]], top_k: int, moves: list[Move], chain: bool
) -> None:
    """choices: what the target may choose behind a token, by number."""
    proposer, slow = RecyclingProposer(SOURCE, chain=chain), SlowRecycling(chain=chain)
    draft, length = proposer.start(), 0
    linked = False
    for move in moves:
        if move.rewound and length:
            length = max(0, length - move.rewound)
            draft.truncate(length)
            del slow.seen[length:]
            linked = False
        rows = [tuple(choices[number][:top_k]) for number in (move.choices or [])[: len(move.tokens)]]
        for i, token in enumerate(move.tokens):
            slow.observe(token, rows[i] if move.choices is not None else (), linked=linked)
            linked = True
        top_ids = torch.tensor(rows, dtype=torch.long).view(len(rows), top_k) if move.choices is not None else None
        proposer.observe(draft, torch.tensor(move.tokens, dtype=torch.long), None, top_ids)
        length += len(move.tokens)
        if move.caught_up:
            proposer.catch_up(draft)
        if move.forked:
            draft = draft.fork()
        assert draft.length == length
        if move.asked:
            tree = proposer.propose([draft], [move.root], [None], move.budget)[0]
            check_best(tree, move.root, slow.nodes(move.root), move.budget, SOURCE)
