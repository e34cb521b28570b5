"""Who drafts, and how much, in each step: from costs measured as it runs and acceptance measured as it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from engine.pace import Pace
from engine.policy import NOTHING, Ask, Choice, Given
from engine.tree import DraftTree
from engine.worth import Arm, Calibration, subtree

RELAXED = 0.5
"""What a token is worth to a caller who still has something to listen to, against one who waits."""
LOYALTY = 1.05
"""By how much another way has to be better than the last one for such a load: what is measured is not exact, and what
is a tie must not go to and fro.
"""
LONGEST_STEP_S = 0.1
"""A step with its drafting that keeps the next caller waiting for longer, or for longer than ``ROOMY`` plain steps if
that is more, counts for less. (The scheduler's limit is shorter: it is of steps in which nobody waits.)
"""
ROOMY = 3.0
DECIDED_FOR = 32
"""Steps for which what was decided for a load stands: what is known changes slowly, and thinking takes time."""
PROBE_WEIGHT = 2.0
"""What a node is worth in a tree that probes: nodes of half the worth that is needed come to be verified."""
MOST_DECIDED = 256
"""Loads that are remembered."""
PROBE_MEMORY = 8
LONGEST_INTERVAL = 16


class _Load(NamedTuple):
    """Who shares a step. plain: replies without room to draft."""

    urgent: int
    relaxed: int
    plain: int
    given: Given

    @property
    def windows(self) -> int:
        return self.urgent + self.relaxed + self.plain + self.given.windows

    @property
    def nodes(self) -> int:
        """Without any draft."""
        return self.urgent + self.relaxed + self.plain + self.given.nodes

    @property
    def tokens(self) -> float:
        """That the step brings without any draft."""
        return self.urgent + self.plain + self.given.awaited + RELAXED * self.relaxed

    def rounded(self) -> _Load:
        """A load that is decided alike: between powers of two and their halves nothing changes by much."""
        given = self.given
        about = Given(_about(given.windows), _about(given.nodes), _about(given.awaited))
        return _Load(_about(self.urgent), _about(self.relaxed), _about(self.plain), about)


class _Decision(NamedTuple):
    """The arms of both groups, why, and at which step that was found."""

    urgent: Arm
    relaxed: Arm
    reason: str
    step: int


ALONE = _Load(1, 0, 0, NOTHING)


class MeasuredPolicy:
    """Chooses what gives the most expected tokens per second, given who shares the step.

    Every arm is a way of drafting at one size. Replies whose callers wait choose one together, the others another, and
    of all pairs of arms the best is taken; a token of the others counts ``RELAXED``. With one call that is the dearest
    drafter's large tree; each call that joins pays for its drafting while the forward is shared, so the trees shrink,
    then the way that costs nothing to draft with is ahead, then plain decoding. First tokens that are read for in the
    same step count as well, so that drafting does not keep them waiting for less than it brings.

    What an arm is worth is what its trees' nodes are worth, from the best down (running means over about its last
    ``memory`` trees), so it is known for every load from any one. A node is worth its calibrated acceptance: of the
    nodes of the same way whose score fell in the same half octave, the share kept. An arm that is not chosen is tried
    again by one reply after ``probe_every`` steps, and after twice as many each time that it is clearly worse, so a
    hopeless drafter costs next to nothing; probes forget fast, so a change in the text is noticed. The trees are then
    cut together to what is worth verifying; of one that probes more is left, and what is not makes calibration less
    sure of such nodes, so that they come to be tried again.
    """

    def __init__(
        self,
        pace: Pace,
        ways: Sequence[str] = ("drafting",),
        *,
        only: int | None = None,
        memory: int = 200,
        probe_every: int = 64,
    ) -> None:
        """ways: names of the ways that there are, as ``StepCosts.draft`` numbers them. only: the one that may be
        chosen, at any size; None for all of them and for plain decoding.
        """
        if pace.costs is None:
            raise ValueError("a measured policy needs measured costs")
        self._pace = pace
        self._ways = ways
        self._decay = 1.0 - 1.0 / memory
        self._probe_every = probe_every
        self._plain = Arm(0, 1, probe_every)
        sizes = pace.costs.nodes[1:]
        chosen = range(len(pace.costs.draft)) if only is None else [only]
        self._drafting = {(way, nodes): Arm(way, nodes, probe_every) for way in chosen for nodes in sizes}
        self._arms = list(self._drafting.values())
        if only is None or not self._arms:
            self._arms.insert(0, self._plain)
        self._calibration = [Calibration(self._decay) for _ in pace.costs.draft]
        self._last = (self._plain, self._plain)
        self._decided: dict[_Load, _Decision] = {}
        """Decided longest ago first."""
        self._steps = 0

    def choose(self, asks: Sequence[Ask], given: Given = NOTHING) -> list[Choice]:
        self._steps += 1
        urgent = sum(ask.urgent for ask in asks if ask.room > 0)
        relaxed = sum(not ask.urgent for ask in asks if ask.room > 0)
        plain = Choice(1, reason="no room to draft")
        if not urgent + relaxed:
            return [plain] * len(asks)
        decision = self._decide(_Load(urgent, relaxed, len(asks) - urgent - relaxed, given))
        found = []
        for ask in asks:
            arm = decision.urgent if ask.urgent else decision.relaxed
            choice = Choice(arm.nodes, arm.way, decision.reason, urgent=ask.urgent)
            found.append(choice if ask.room > 0 else plain)
        probe = None if given.awaited else self._next_probe(decision)
        if probe is not None:  # by one reply, and rather by one that nobody waits for
            able = [at for at, ask in enumerate(asks) if ask.room > 0]
            at = next((at for at in able if not asks[at].urgent), able[-1])
            found[at] = Choice(probe.nodes, probe.way, f"probing {probe.nodes} nodes", True, asks[at].urgent)
        return found

    def prune(self, choices: Sequence[Choice], trees: Sequence[DraftTree], given: Given = NOTHING) -> list[DraftTree]:
        found = list(trees)
        worth: list[tuple[float, int, int]] = []
        for at, (choice, tree) in enumerate(zip(choices, trees, strict=True)):
            if not choice.drafts:
                continue
            calibration = self._calibration[choice.way]
            values = [(calibration.of(score), at, node) for node, score in enumerate(tree.score.tolist()) if node]
            values.sort(key=lambda item: -item[0])
            self._saw(choice, [value for value, _, _ in values])
            weight = PROBE_WEIGHT if choice.probing else 1.0 if choice.urgent else RELAXED
            worth += [(weight * value, at, node) for value, at, node in values]
        worth.sort(key=lambda item: -item[0])
        keep = self._best_count(choices, [value for value, _, _ in worth], given)
        if keep == len(worth):
            return found
        kept: dict[int, list[int]] = {at: [] for _, at, _ in worth}
        for _, at, node in worth[:keep]:
            kept[at].append(node)
        for at, nodes in kept.items():
            found[at] = subtree(trees[at], nodes)
            if choices[at].probing:
                for node in set(range(1, len(trees[at]))).difference(nodes):
                    self._calibration[choices[at].way].doubt(float(trees[at].score[node]))
        return found

    def observe(self, choice: Choice, tree: DraftTree, path: Sequence[int]) -> None:
        if choice.drafts:
            calibration, kept = self._calibration[choice.way], set(path)
            for node, score in enumerate(tree.score.tolist()[1:], start=1):
                calibration.count(score, node in kept)

    def _saw(self, choice: Choice, values: Sequence[float]) -> None:
        """An arm's tree was drafted. One that probes and would beat plain decoding brings the next ones soon."""
        arm = self._drafting[choice.way, choice.nodes]
        arm.saw(values, 1.0 - 1.0 / PROBE_MEMORY if choice.probing else self._decay)
        if choice.probing and arm.interval > self._probe_every:
            seen = Arm(arm.way, arm.nodes, arm.interval)
            seen.saw(values, 0.0)
            if self._rate(seen, self._plain, ALONE) > self._rate(self._plain, self._plain, ALONE):
                arm.interval = self._probe_every

    def _decide(self, load: _Load) -> _Decision:
        """What was decided for such a load lately, or what is best now."""
        load = load.rounded()
        known = self._decided.get(load)
        if known is None or self._steps - known.step >= DECIDED_FOR:
            # Loads take turns from step to step, and what is best for one says little of another. Only where nothing
            # was decided yet, what was chosen last will do.
            last = self._last if known is None else (known.urgent, known.relaxed)
            self._decided.pop(load, None)
            if len(self._decided) == MOST_DECIDED:
                del self._decided[next(iter(self._decided))]
            known = self._decided[load] = self._best(load, last)
        return known

    def _best(self, load: _Load, last: tuple[Arm, Arm]) -> _Decision:
        """The arms with the best rate: one group's, then the other's, until neither is better for another. last: what
        each group is loyal to.
        """
        one = last[0] if load.urgent else self._plain
        other = last[1] if load.relaxed else self._plain
        rates: Mapping[Arm, float] = {}
        for _ in range(2 if load.urgent and load.relaxed else 1):
            if load.relaxed:
                rates = {arm: self._rate(one, arm, load) for arm in self._arms}
                other = self._loyal(rates, last[1])
            if load.urgent:
                rates = {arm: self._rate(arm, other, load) for arm in self._arms}
                one = self._loyal(rates, last[0])
        self._last = (one if load.urgent else self._last[0], other if load.relaxed else self._last[1])
        shown = one if load.urgent else other
        return _Decision(one, other, self._reason(rates, shown, load.urgent + load.relaxed), self._steps)

    def _loyal(self, rates: Mapping[Arm, float], last: Arm) -> Arm:
        """The arm with the best rate, where those of the way chosen before count more."""
        way = self._way(last)
        return max(rates, key=lambda arm: rates[arm] * (LOYALTY if self._way(arm) == way else 1.0))

    def _rate(self, one: Arm, other: Arm, load: _Load) -> float:
        """Tokens per second, where the urgent replies choose the one arm and the relaxed the other, and of each as many
        nodes are verified as are worth it.
        """
        drafting = self._cost(one, load.urgent) + self._cost(other, load.relaxed)
        longest = max(LONGEST_STEP_S, ROOMY * self._pace.forward(1, 1))

        def rate(tokens: float, nodes: int) -> float:
            seconds = drafting + self._pace.forward(load.windows, nodes)
            return tokens / seconds * min(1.0, longest / seconds)

        best, tokens, nodes = rate(load.tokens, load.nodes), load.tokens, load.nodes
        for arm, sessions, weight in ((one, load.urgent, 1.0), (other, load.relaxed, RELAXED)):
            found = (tokens, nodes)
            for size, gain in zip(arm.sizes, arm.gains, strict=True) if sessions else ():
                there = (tokens + weight * sessions * gain, nodes + sessions * size)
                if (value := rate(*there)) > best:
                    best, found = value, there
            tokens, nodes = found
        return best

    def _cost(self, arm: Arm, sessions: int) -> float:
        return 0.0 if arm.is_plain else self._pace.draft(arm.way, arm.nodes, sessions)

    def _way(self, arm: Arm) -> int:
        return -1 if arm.is_plain else arm.way

    def _reason(self, rates: Mapping[Arm, float], chosen: Arm, calls: int) -> str:
        names = {-1: "plain", **dict(enumerate(self._ways))}
        best: dict[int, float] = {}
        for arm, rate in rates.items():
            best[self._way(arm)] = max(rate, best.get(self._way(arm), 0.0))
        own = self._way(chosen)
        what = names[own] if chosen.is_plain else f"{names[own]}, {chosen.nodes} nodes"
        others = ", ".join(f"{names[way]} {rate:.0f}" for way, rate in best.items() if way != own)
        return f"{what} for {calls}: {rates[chosen]:.0f} tokens/s expected, {others}"

    def _next_probe(self, decision: _Decision) -> Arm | None:
        """The arm whose turn it is to be tried again, if any; it waits the longer the less there is to hope."""
        due = None
        for arm in self._drafting.values():
            arm.waited = 0 if arm in (decision.urgent, decision.relaxed) else arm.waited + 1
            if arm.waited >= arm.interval and due is None:
                due = arm
        if due is not None:
            due.waited = 0
            best = max(self._rate(arm, self._plain, ALONE) for arm in self._arms)
            hopeful = self._rate(due, self._plain, ALONE) > 0.95 * best
            due.interval = self._probe_every if hopeful else min(2 * due.interval, LONGEST_INTERVAL * self._probe_every)
        return due

    def _best_count(self, choices: Sequence[Choice], worth: Sequence[float], given: Given) -> int:
        """How many of the nodes, the most promising first, make the step yield the most a second."""
        windows, base = given.windows + len(choices), given.nodes + len(choices)
        alike = Counter((choice.way, choice.nodes) for choice in choices if choice.drafts)
        drafting = sum(self._pace.draft(way, nodes, sessions) for (way, nodes), sessions in alike.items())
        gain = given.awaited + sum(1.0 if choice.urgent else RELAXED for choice in choices)
        best_rate, keep = gain / (drafting + self._pace.forward(windows, base)), 0
        stride = 1 + len(worth) // 64  # many nodes are close to each other
        for count, value in enumerate(worth, start=1):
            gain += value
            if count % stride and count < len(worth):
                continue
            rate = gain / (drafting + self._pace.forward(windows, base + count))
            if rate > best_rate:
                best_rate, keep = rate, count
        return keep


def _about(count: int) -> int:
    """The next of 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, ..."""
    if count <= 4:
        return count
    power = 1 << (count - 1).bit_length()
    return power * 3 // 4 if count <= power * 3 // 4 else power
