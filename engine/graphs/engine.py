"""The engine whose drafted steps, where one call is alone, are cycles that stay on the device."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.drafting import Drafting
from engine.engine import Engine, Step, Work
from engine.errors import OutOfPages
from engine.graphs.cycle import Cycle, Outcome
from engine.graphs.draft import GraphProposer, takes
from engine.graphs.steps import Graphs
from engine.kernels import Ops
from engine.pace import Pace
from engine.policy import NOTHING, Ask, Choice, DraftPolicy, Given
from engine.proposers.pairs.draft import PairDraft
from engine.sampling import Sampler, Sampling, signed
from engine.session import Session, Turn
from engine.tree import DraftTree


class OpsSampler(Sampler):
    """A ``Sampler`` with the noise of the kernels, so that it is the same whichever of them chooses."""

    def __init__(self, vocab_size: int, device: torch.device, ops: Ops) -> None:
        super().__init__(vocab_size, device)
        self._ops = ops

    def noise(self, seed: int, first_index: int, count: int) -> Tensor:
        index = torch.arange(first_index, first_index + count, device=self.device)
        return self._ops.noise(torch.full_like(index, signed(seed)), index, self.vocab_size)


@dataclass(frozen=True)
class _Decided:
    """A ``DraftPolicy`` that has chosen for the step; all else is the real one's."""

    real: DraftPolicy
    choices: list[Choice]

    def choose(self, asks: Sequence[Ask], given: Given = NOTHING) -> list[Choice]:
        return self.choices

    def prune(self, choices: Sequence[Choice], trees: Sequence[DraftTree], given: Given = NOTHING) -> list[DraftTree]:
        return self.real.prune(choices, trees, given)

    def observe(self, choice: Choice, tree: DraftTree, path: Sequence[int]) -> None:
        self.real.observe(choice, tree, path)


class GraphEngine(Engine):
    """An ``Engine`` over the static steps of a decoder and a pair head.

    What a cycle cannot do is done by the ordinary loop, over the same caches: grammars, penalties, held replies, the
    end of the context, steps of several calls. A reply may change between the two at every step.
    """

    def __init__(self, graphs: Graphs, policy: DraftPolicy, *, coupled: bool = False, pace: Pace | None = None) -> None:
        assert isinstance(graphs.proposer, GraphProposer)
        super().__init__(graphs.target, graphs.proposer, policy, coupled=coupled, pace=pace)
        decoder = graphs.decoder
        self.sampler = OpsSampler(decoder.vocab_size, decoder.device, decoder.ops)
        longest = decoder.max_context_tokens
        self.drafting = Drafting([graphs.proposer], policy, self.sampler, self.pace, longest, coupled=coupled)
        self.graphs = graphs
        self._static = graphs.proposer
        self._resident: tuple[object, ...] = ()
        """Where the reply stands that the device can go on with by itself, and the cycle that has drawn its tree."""
        self.cycles = 0
        """Steps that were cycles."""

    @torch.inference_mode()
    def step(self, plan: Sequence[Work]) -> list[Step]:
        if len(plan) != 1 or (turn := plan[0].session.turn) is None or not self._serves(turn):
            return super().step(plan)
        choices = self.drafting.policy.choose([Ask(self.drafting.room(turn), plan[0].urgent)])
        size = self._static.size_for(choices[0].nodes)
        if size is not None and (step := self._run(turn, choices[0], size)) is not None:
            return [step]
        with self._decided(choices):
            return super().step(plan)

    def forget_device(self) -> None:
        """The device was used for something else: the next cycle loads its reply anew."""
        self._resident = ()

    @contextlib.contextmanager
    def _decided(self, choices: list[Choice]) -> Iterator[None]:
        """The policy has been asked for this step, and is not asked again: it counts how often it is."""
        policy = self.drafting.policy
        self.drafting.policy = _Decided(policy, choices)
        try:
            yield
        finally:
            self.drafting.policy = policy

    def _serves(self, turn: Turn) -> bool:
        """Whether the reply's next step may be a cycle, as far as sampling, grammar and limits go."""
        sampling, session = turn.sampling, turn.session
        if turn.grammar is not None or turn.hold is not None or turn.waits or not turn.drafting or not turn.num_tokens:
            return False
        if session.num_pending != 1 or not chooses(sampling):
            return False
        if self.drafting.coupled and not sampling.greedy:
            return False
        return self.drafting.context_room(turn) > max(self._static.budgets) and self.drafting.room(turn) > 0

    def _run(self, turn: Turn, choice: Choice, size: int) -> Step | None:
        """One cycle; None where the session's caches or its drafter are not ready for one."""
        if not self.graphs.has_cycle(size):
            self.forget_device()
        started, cycle = time.monotonic(), self.graphs.cycle(size)
        session, draft = turn.session, turn.session.draft
        assert isinstance(draft, PairDraft)
        root = session.tokens[-1]
        if not takes(draft, root):
            return None
        try:
            self._static.make_room(draft, root, size, twice=True)
            session.cache.reserve(cycle.nodes)
        except OutOfPages:
            return None  # the ordinary loop does with less, or says so
        cycle.set_table(session)
        drawn = self._resident == (cycle, *self._position(session, turn))
        if self._resident[1:] == self._position(session, turn):  # the device has got there by itself
            ready = draft.num_ready(root)
            draft.take(root)
            draft.cache.commit(list(range(ready)))
        else:
            cycle.load(session, turn)
            self._static.load(draft, root)
        outcome = cycle.run(drawn=drawn)
        self.cycles += 1
        turn.choice = choice
        turn.stats.drafting(self.proposer.name, choice.reason, passing=choice.probing)
        self._learn(choice, cycle, time.monotonic() - started)
        told = len(session.tokens)
        try:
            return self._settle_cycle(turn, cycle, outcome, started)
        except Exception as error:
            self.forget_device()
            return self._broken(session, turn, told, error)

    def _learn(self, choice: Choice, cycle: Cycle, seconds: float) -> None:
        """What the cycle took, as drafting and as the rest: in the proportion that both are known to have."""
        draft, rest = self.pace.draft(0, choice.nodes), self.pace.forward(1, cycle.nodes)
        share = draft / (draft + rest) if draft + rest > 0.0 else 0.0
        self.pace.observe_draft(0, choice.nodes, 1, share * seconds)
        self.pace.observe(1, cycle.nodes, (1.0 - share) * seconds)

    def _settle_cycle(self, turn: Turn, cycle: Cycle, outcome: Outcome, started: float) -> Step:
        """As ``Engine._settle``, of what has been chosen, accepted and committed on the device already."""
        session, tree, path = turn.session, outcome.tree, outcome.path
        settled = outcome.last >= 0
        last = outcome.last if settled else self._choose_last(turn, outcome)
        candidates = [*tree.tokens[path[1:]].tolist(), last]
        kept, finish, error = self._emit(turn, candidates)
        session.cache.commit(list(range(len(kept))))
        self.proposer.observe(session.draft, tree.tokens[path[: len(kept)]], outcome.features[: len(kept)], None)
        whole = settled and len(kept) == len(candidates)
        self._resident = (cycle, *self._position(session, turn)) if whole else ()
        accepted = min(len(path) - 1, len(kept))
        turn.stats.step()
        turn.stats.forward_seconds += time.monotonic() - started
        self._count(turn, tree, path[1 : accepted + 1])
        self.drafting.observe(turn, tree, path)
        if finish is not None:
            self._end(turn, finish)
        return Step(
            session.name,
            turn,
            tokens=tuple(kept),
            accepted=accepted,
            drafted=len(tree) - 1,
            finish=finish,
            error=error,
        )

    def _choose_last(self, turn: Turn, outcome: Outcome) -> int:
        """The choice that the device gave up on, by the sampler's rule."""
        index = turn.first_index + turn.num_tokens + len(outcome.path) - 1
        noise = self.sampler.noise(turn.seed, index, 1)
        return int(self.sampler.choose(outcome.logits, turn.sampling, noise=noise))

    def _position(self, session: Session, turn: Turn) -> tuple[object, ...]:
        """Where a reply stands, by what changes when anything but a cycle touches it, or what it has on the device."""
        draft, loads = session.draft, self._static.loads
        assert isinstance(draft, PairDraft)
        return turn, loads, len(session.tokens), session.cache.length, draft.length, draft.num_pairs


def chooses(sampling: Sampling) -> bool:
    """Whether ``Ops.choose`` has the rule for it: no penalty, and no top-k ahead of a nucleus."""
    return sampling.repetition_penalty == 1.0 and not (sampling.top_k > 0 and sampling.top_p < 1.0)
