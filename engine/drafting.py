"""The trees of one step: who drafts how much, what was drafted, what of it is left to verify.

Knows proposers, the policy and each turn's own limits; knows no forward and no cache.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence

import torch

from engine.errors import EngineError, OutOfPages, ReplyFailed
from engine.interfaces import Draft, Proposer
from engine.pace import Pace
from engine.policy import Ask, Choice, DraftPolicy, Given
from engine.sampling import Sampler
from engine.session import Turn
from engine.tree import DraftTree

log = logging.getLogger(__name__)

CATCH_UP_TOKENS = 256
"""Of a step that others share, what drafters that were off may read of what they missed."""
ALONE_TOKENS = 1024
"""The same, of a step that nobody shares: whoever comes next waits for it."""
FORCED_NODES = 16
"""Nodes of a step that drafts nothing, where a grammar leaves no choice: they are all kept."""


def catch_up(proposer: Proposer, draft: Draft) -> bool:
    """Let a drafter read a piece of what it missed. Says whether there is more to be read now: where it fails, or finds
    no pages, it kept its queue, and ``propose`` tries again.
    """
    try:
        return proposer.catch_up(draft)
    except OutOfPages:
        pass
    except Exception:
        log.exception("catching up failed")
    return False


class Drafting:
    """ways: proposers over the drafts of the first of them, the dearest first. coupled: above temperature 0 they are
    given the turn's noise. pace: learns what drafting takes. max_context_tokens: of the target.
    """

    def __init__(
        self,
        ways: Sequence[Proposer],
        policy: DraftPolicy,
        sampler: Sampler,
        pace: Pace,
        max_context_tokens: int,
        *,
        coupled: bool,
    ) -> None:
        self.ways = list(ways)
        self.policy = policy
        self.coupled = coupled
        self._sampler = sampler
        self._pace = pace
        self._max_context_tokens = max_context_tokens
        self._owes_a_piece = False
        """Whether a drafter that missed more than a step may read had nothing of the last one's share."""

    def trees(self, turns: Sequence[Turn], urgent: Sequence[bool], given: Given) -> list[DraftTree | EngineError]:
        """A tree behind the last token of each turn's session, no deeper than the context has room for; or why there is
        none.

        given: what shares the forward.
        """
        rooms = [self.room(turn) for turn in turns]
        asks = [Ask(room, hurry) for room, hurry in zip(rooms, urgent, strict=True)]
        choices = self.policy.choose(asks, given)
        for at, turn in enumerate(turns):
            if turn.probe is not None and rooms[at] > 0:
                choices[at], turn.probe = turn.probe, None
        share = CATCH_UP_TOKENS if len(turns) + given.windows > 1 else ALONE_TOKENS
        put_off = self._put_off(turns, choices, share)
        trees = self._propose(turns, choices)
        if any(choice.drafts for choice in choices):
            trees = self.policy.prune(choices, trees, given)
        found: list[DraftTree | EngineError] = []
        for at, (turn, tree, choice, room) in enumerate(zip(turns, trees, choices, rooms, strict=True)):
            turn.choice = choice
            mode = self.ways[choice.way].name if choice.drafts else "plain"
            turn.stats.drafting(mode, choice.reason, passing=choice.probing or room <= 0 or at in put_off)
            found.append(self._narrowed(turn, self._held(turn, tree), choice, room))
        return found

    def observe(self, turn: Turn, tree: DraftTree, path: Sequence[int]) -> None:
        """What came of a turn's tree."""
        assert turn.choice is not None
        self.policy.observe(turn.choice, tree, path)

    def room(self, turn: Turn) -> int:
        """Tokens that the reply may gain beyond the next one."""
        most = turn.max_tokens if turn.hold is None else min(turn.hold, turn.max_tokens)
        return min(self.context_room(turn), most - turn.num_tokens - 1)

    def context_room(self, turn: Turn) -> int:
        """Tokens that the context has room for."""
        return self._max_context_tokens - len(turn.session.tokens)

    def _put_off(self, turns: Sequence[Turn], choices: list[Choice], share: int) -> set[int]:
        """Which of the turns do not draft yet, because others would stand still while a drafter that was off reads all
        that it missed. What is nearly there comes first; of what is too much for any step one reads a piece, where all
        of the share is left to it, and in every other step at least it is.

        share: tokens of what was missed that the step may read.
        """
        missed = {
            at: behind
            for at, (turn, choice) in enumerate(zip(turns, choices, strict=True))
            if choice.drafts and (behind := self.ways[choice.way].behind(turn.session.draft)) > choice.nodes
        }
        put_off: set[int] = set()
        room, read = share, False
        owed, self._owes_a_piece = self._owes_a_piece, False
        for at in sorted(missed, key=lambda at: (owed and missed[at] <= share, missed[at])):
            turn, choice = turns[at], choices[at]
            if missed[at] <= room:
                room -= missed[at]
                continue
            if room == share:
                if not self._catch_up(turn, choice.way):
                    continue  # it drafts as well as it can without
                room, read = 0, True
            elif missed[at] > share and not read:
                self._owes_a_piece = True
            if choice.probing:
                turn.probe = choice
            choices[at] = Choice(1, choice.way, f"{self.ways[choice.way].name} catches up", urgent=choice.urgent)
            put_off.add(at)
        return put_off

    def _catch_up(self, turn: Turn, way: int) -> bool:
        """Let the turn's drafter read a piece of what it missed. Whether it did: it may find no pages."""
        started, proposer, draft = time.monotonic(), self.ways[way], turn.session.draft
        missed = proposer.behind(draft)
        catch_up(proposer, draft)
        turn.stats.draft_seconds += time.monotonic() - started
        return proposer.behind(draft) < missed

    def _propose(self, turns: Sequence[Turn], choices: list[Choice]) -> list[DraftTree]:
        """What the turns' drafters guess: those who draft alike are asked together.

        Drafting is a luxury: where it fails the replies go on without it, and their choices are made plain.
        """
        trees = [DraftTree.chain(torch.tensor(turn.session.tokens[-1:])) for turn in turns]
        together: dict[tuple[int, int], list[int]] = {}
        for at, (turn, choice) in enumerate(zip(turns, choices, strict=True)):
            budget = min(choice.nodes, self.context_room(turn) + 1)  # n nodes are at most n - 1 deep
            if budget > 1:
                together.setdefault((choice.way, budget), []).append(at)
        for (way, budget), group in together.items():
            drafts = [turns[at].session.draft for at in group]
            kept_up = all(self.ways[way].behind(draft) <= budget for draft in drafts)
            started = time.monotonic()
            roots = [turns[at].session.tokens[-1] for at in group]
            try:
                noise = [self._noise(turns[at], way, budget) for at in group]
                for at, tree in zip(group, self.ways[way].propose(drafts, roots, noise, budget), strict=True):
                    trees[at] = tree
            except Exception as error:
                if not isinstance(error, OutOfPages):
                    log.exception("drafting failed")
                for at in group:
                    choices[at] = Choice(1, reason=f"{self.ways[way].name} failed: {type(error).__name__}")
            seconds = time.monotonic() - started
            if kept_up:  # what was missed is read once, and is no part of what a draft costs
                self._pace.observe_draft(way, budget, len(group), seconds)
            for at in group:
                turns[at].stats.draft_seconds += seconds / len(group)
        return trees

    def _noise(self, turn: Turn, way: int, budget: int) -> torch.Tensor | None:
        """What the target's choices will be perturbed by, for a drafter that perturbs its own alike (coupling, Daliri
        et al. 2024, arXiv 2408.07978).
        """
        levels = min(self.ways[way].noise_levels, budget)
        if not self.coupled or turn.sampling.greedy or levels == 0:
            return None
        return turn.noise(self._sampler, levels)[:levels] * turn.sampling.temperature

    def _held(self, turn: Turn, tree: DraftTree) -> DraftTree:
        """The tree as deep as the reply may go before it is released. (What is right behind ``max_tokens`` ends it.)"""
        if turn.hold is None or (deepest := turn.hold - turn.num_tokens - 1) >= len(tree) - 1:
            return tree
        return tree.subtree((tree.depth <= deepest).nonzero()[:, 0].tolist())

    def _narrowed(self, turn: Turn, tree: DraftTree, choice: Choice, room: int) -> DraftTree | EngineError:
        if turn.grammar is None or room <= 0:
            return tree
        started = time.monotonic()
        try:
            with as_reply_failed():
                return turn.grammar.narrow(tree, max(choice.nodes, FORCED_NODES), room)
        except ReplyFailed as failed:
            return failed
        finally:
            turn.stats.draft_seconds += time.monotonic() - started


@contextlib.contextmanager
def as_reply_failed() -> Iterator[None]:
    """What is injected into a reply may raise anything: it ends that reply and no other."""
    try:
        yield
    except Exception as error:
        raise ReplyFailed(f"{type(error).__name__}: {error}") from error
