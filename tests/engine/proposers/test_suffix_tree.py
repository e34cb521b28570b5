"""Self-speculation's whole trees against its definition written out, over texts that grow, are rewound and forked."""

from __future__ import annotations

from typing import NamedTuple

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.proposers.suffix import DEEPEST, LEAST_SCORE, LONGEST, MOST_MATCHES, MatchStatistics, SuffixProposer
from tests.engine.proposers.test_suffix import search
from tests.engine.proposers.trees import Paths, check_best

WORDS = st.integers(0, 2)
SOURCE = 3
Said = tuple[tuple[int, ...], list[float]]
"""What one match says, and how probable each of its tokens is behind those before it."""


class SlowSuffix:
    """The definition. Keeps the text, how often matches of each length held, and what the longest of them said last.

    said: (token, length of the match) by position.
    """

    def __init__(self, *, chain: bool) -> None:
        self.text: list[int] = []
        self.said: dict[int, tuple[int, int]] = {}
        self.held = [0] * len(MatchStatistics.GUESS)
        self.settled = [0] * len(MatchStatistics.GUESS)
        self.most = 1 if chain else MOST_MATCHES

    def observe(self, tokens: list[int]) -> None:
        for token in tokens:
            said = self.said.pop(len(self.text), None)
            if said is not None:
                self.count(said[1], said[0] == token)
                if said[0] != token:
                    self.said.clear()
            self.text.append(token)

    def rewind(self, count: int) -> None:
        if count and self.text:
            self.said.clear()
            del self.text[-count:]

    def count(self, length: int, right: bool) -> None:
        self.held[self.kind(length)] += right
        self.settled[self.kind(length)] += 1

    @staticmethod
    def kind(length: int) -> int:
        """Matches are alike up to each of these lengths; the last kind has no end."""
        return min(i for i, most in enumerate((1, 2, 3, 4, 6, 9, 14, length)) if length <= most)

    def rate(self, length: int) -> float:
        kind, weight = self.kind(length), MatchStatistics.WEIGHT
        return (MatchStatistics.GUESS[kind] * weight + self.held[kind]) / (weight + self.settled[kind])

    def nodes(self, root: int, depth: int) -> Paths:
        """All that a tree may hold that is ``depth`` deep."""
        matches = search(self.text, root)[: self.most] if depth else []
        following = [self.following(root, place, depth) for place, _ in matches]
        if matches:
            self.say(root, following[0], matches[0][1])
        said = [
            (tokens, [self.rate(min(LONGEST, length + i)) for i in range(depth)])
            for tokens, (_, length) in zip(following, matches, strict=True)
        ]
        found: Paths = {}
        self.grow((), 1.0, said, found)
        return found

    def following(self, root: int, place: int, depth: int) -> tuple[int, ...]:
        """What stands behind a place, and where the text ends, what was just read from there once more."""
        grown = [*self.text, root]
        while len(grown) <= place + depth:
            grown.append(grown[len(grown) - len(self.text) + place])
        return tuple(grown[place + 1 : place + 1 + depth])

    def say(self, root: int, tokens: tuple[int, ...], length: int) -> None:
        """What was said before stays said while it is right."""
        before = self.said.get(len(self.text))
        if before is not None and before[0] == root:
            return
        if before is not None:
            self.count(before[1], False)
        self.said = {len(self.text) + 1 + i: (token, length + i) for i, token in enumerate(tokens)}

    def grow(self, path: tuple[int, ...], score: float, said: list[Said], found: Paths) -> None:
        """The children of one node. said: by the matches that lead here, the longest first; each gives its token a
        share of what those before it leave over, and the first to name a token decides its share.
        """
        left, children = 1.0, dict[int, list[Said]]()
        for tokens, rates in said:
            if len(path) == len(tokens):
                return
            token, rate = tokens[len(path)], rates[len(path)]
            if token not in children:
                if score * left * rate < LEAST_SCORE:
                    continue
                found[(*path, token)] = score * left * rate
                left *= 1 - rate
            children.setdefault(token, []).append((tokens, rates))
        for token, lead_there in children.items():
            self.grow((*path, token), found[(*path, token)], lead_there, found)


class Move(NamedTuple):
    """One step of a session: the text goes on as was drafted for ``accepted`` tokens and with ``tokens`` behind them,
    or is rewound; then a tree is drafted."""

    rewound: int
    accepted: int
    tokens: list[int]
    forked: bool
    root: int
    budget: int


MOVES = st.lists(
    st.builds(
        Move,
        st.sampled_from([0, 0, 0, 1, 2, 5, 20]),
        st.integers(0, 30),
        st.lists(WORDS, max_size=5),
        st.booleans(),
        WORDS,
        st.integers(1, 40),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(WORDS, max_size=12), st.integers(0, 6), MOVES, st.booleans())
def test_a_tree_is_what_the_matches_say_in_their_order(
    begun: list[int], times: int, moves: list[Move], chain: bool
) -> None:
    proposer, slow = SuffixProposer(SOURCE, chain=chain), SlowSuffix(chain=chain)
    draft, pending = proposer.start(), begun * times
    for move in moves:
        if move.rewound:
            slow.rewind(move.rewound)
            draft.truncate(max(0, draft.length - move.rewound))
            pending = []
        said = [token for position, (token, _) in sorted(slow.said.items()) if position > len(slow.text)]
        new = [*pending, *said[: move.accepted], *move.tokens]
        proposer.observe(draft, torch.tensor(new, dtype=torch.long), None, None)
        slow.observe(new)
        if move.forked:  # a fork starts a reply of its own, and nothing was said in that yet
            draft, slow.said = draft.fork(), {}
        tree = proposer.propose([draft], [move.root], [None], move.budget)[0]
        wanted = slow.nodes(move.root, min(move.budget - 1, DEEPEST))
        check_best(tree, move.root, wanted, move.budget, SOURCE)
        pending = [move.root]
