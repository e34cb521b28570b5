"""Who drafts, and how much, in each step: from costs measured as it runs and acceptance measured as it runs.

A policy changes only how fast replies come, never what they say. Knows costs and acceptance, no model and no text.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.pace import Pace
from engine.tree import DraftTree


@dataclass(frozen=True)
class Ask:
    """A reply that the step goes on with.

    room: tokens that it may still gain beyond the next one. urgent: whether its caller waits for it; for the others
    what was said lasts a while yet.
    """

    room: int
    urgent: bool = True


@dataclass(frozen=True)
class Choice:
    """What a reply drafts in one step: ``nodes`` at most, root included, so that 1 is plain decoding.

    way: which of the engine's ways of drafting. reason: for telemetry. probing: it is done to learn what it yields.
    """

    nodes: int
    way: int = 0
    reason: str = ""
    probing: bool = False
    urgent: bool = True

    @property
    def drafts(self) -> bool:
        return self.nodes > 1


class DraftPolicy(Protocol):
    """Decides what each reply of a step drafts."""

    def choose(self, asks: Sequence[Ask], given_windows: int = 0, given_nodes: int = 0) -> list[Choice]:
        """One for each. given_windows, given_nodes: prefill that shares the step's forward."""
        ...

    def prune(self, choices: Sequence[Choice], trees: Sequence[DraftTree]) -> list[DraftTree]:
        """The trees that were drafted, cut to what is worth verifying together."""
        ...

    def observe(self, choice: Choice, tree: DraftTree, path: Sequence[int]) -> None:
        """Learn from a verified tree which of its nodes (``path``, root first) were kept."""
        ...


@dataclass(frozen=True)
class FixedPolicy:
    """Always the same budget in the same way: for benchmarks, tests and forced modes."""

    nodes: int = 1
    way: int = 0

    def choose(self, asks: Sequence[Ask], given_windows: int = 0, given_nodes: int = 0) -> list[Choice]:
        reason = f"fixed at {self.nodes} nodes"
        return [Choice(self.nodes if ask.room > 0 else 1, self.way, reason, urgent=ask.urgent) for ask in asks]

    def prune(self, choices: Sequence[Choice], trees: Sequence[DraftTree]) -> list[DraftTree]:
        return list(trees)

    def observe(self, choice: Choice, tree: DraftTree, path: Sequence[int]) -> None:
        pass


class _Arm:
    """A way of drafting at one size, and what its trees have been worth lately.

    profile: of the k-th best node of a tree, the mean calibrated acceptance. Starts from one hopeful tree: enough to be
    tried, outweighed as soon as there are real ones.
    """

    def __init__(self, way: int, nodes: int, interval: int) -> None:
        self.way = way
        self.nodes = nodes
        self.interval = interval
        self.waited = 0
        self._trees = 1.0
        self._profile = [0.8 / k for k in range(1, nodes)]
        self.sizes = [k for k in _SIZES if k < nodes - 1] + [nodes - 1] if nodes > 1 else [0]
        self.gains = self._cumulative()

    def saw(self, values: Sequence[float], decay: float) -> None:
        """A tree was drafted; values: of its nodes, the best first."""
        self._trees = self._trees * decay + 1.0
        share = 1.0 / self._trees
        known = self._profile
        for k, value in enumerate(values[: len(known)]):
            known[k] += share * (value - known[k])
        for k in range(len(values), len(known)):
            known[k] -= share * known[k]
        self.gains = self._cumulative()

    def _cumulative(self) -> list[float]:
        """Tokens that the best ``sizes[i]`` nodes add."""
        total, found, at = 0.0, [], 0
        for size in self.sizes:
            total += sum(self._profile[at:size])
            at = size
            found.append(total)
        return found


class MeasuredPolicy:
    """Chooses what gives the most expected tokens per second, given who shares the step.

    Every arm is a way of drafting at one size. Replies whose callers wait choose one together, the others another, and
    of all pairs of arms the best is taken; a token of the others counts ``RELAXED``. With one call that is the dearest
    drafter's large tree; each call that joins pays for its drafting alone while the forward is shared, so the trees
    shrink, then the way that costs nothing to draft with is ahead, then plain decoding. Another way than in the step
    before has to be better by ``LOYALTY``, so that what is a tie does not go to and fro, and a step that keeps the next
    caller waiting for longer than ``LONGEST_STEP_S`` counts for less.

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
        self._plain = _Arm(0, 1, probe_every)
        sizes = pace.costs.nodes[1:]
        chosen = range(len(pace.costs.draft)) if only is None else [only]
        self._arms = [_Arm(way, nodes, probe_every) for way in chosen for nodes in sizes]
        if only is None or not self._arms:
            self._arms.insert(0, self._plain)
        self._drafting_arms = {(arm.way, arm.nodes): arm for arm in self._arms if arm is not self._plain}
        self._last = (self._plain, self._plain)
        self._calibration = [_Calibration(self._decay) for _ in pace.costs.draft]
        self._given = (0, 0)
        self._decided: dict[tuple[int, ...], tuple[_Arm, _Arm, str]] = {}
        self._steps = 0

    def choose(self, asks: Sequence[Ask], given_windows: int = 0, given_nodes: int = 0) -> list[Choice]:
        drafting = [ask for ask in asks if ask.room > 0]
        fixed = len(asks) - len(drafting)
        self._given = (given_windows + fixed, given_nodes + fixed)
        plain = Choice(1, reason="no room to draft")
        if not drafting:
            return [plain] * len(asks)
        urgent = sum(ask.urgent for ask in drafting)
        relaxed = len(drafting) - urgent
        for_urgent, for_relaxed, reason = self._decide(urgent, relaxed)
        probe = self._due({for_urgent, for_relaxed} if relaxed else {for_urgent})
        found: list[Choice] = []
        for ask in asks:
            if ask.room <= 0:
                found.append(plain)
                continue
            arm, probing = for_urgent if ask.urgent else for_relaxed, False
            if probe is not None:  # one reply is enough
                arm, probe, probing = probe, None, True
            why = f"probing {arm.nodes} nodes" if probing else reason
            found.append(Choice(arm.nodes, arm.way, why, probing, ask.urgent))
        return found

    def prune(self, choices: Sequence[Choice], trees: Sequence[DraftTree]) -> list[DraftTree]:
        found = list(trees)
        worth: list[tuple[float, int, int]] = []
        for at, (choice, tree) in enumerate(zip(choices, trees, strict=True)):
            if not choice.drafts:
                continue
            calibration = self._calibration[choice.way]
            values = [(calibration.of(score), at, node) for node, score in enumerate(tree.score.tolist()) if node]
            values.sort(key=lambda item: -item[0])
            decay = _PROBE_DECAY if choice.probing else self._decay
            self._arm(choice).saw([value for value, _, _ in values], decay)
            weight = _PROBE_WEIGHT if choice.probing else 1.0 if choice.urgent else RELAXED
            worth += [(weight * value, at, node) for value, at, node in values]
        if len(worth) < 2:
            return found
        worth.sort(key=lambda item: -item[0])
        keep = self._best_count(choices, trees, [value for value, _, _ in worth])
        if keep == len(worth):
            return found
        kept: dict[int, list[int]] = {at: [] for _, at, _ in worth}
        for _, at, node in worth[:keep]:
            kept[at].append(node)
        for at, nodes in kept.items():
            found[at] = _subtree(trees[at], nodes)
            if choices[at].probing:
                for node in set(range(1, len(trees[at]))).difference(nodes):
                    self._calibration[choices[at].way].doubt(float(trees[at].score[node]))
        return found

    def observe(self, choice: Choice, tree: DraftTree, path: Sequence[int]) -> None:
        if not choice.drafts:
            return
        arm, calibration, kept = self._arm(choice), self._calibration[choice.way], set(path)
        for node, score in enumerate(tree.score.tolist()[1:], start=1):
            calibration.count(score, node in kept)
        if choice.probing and self._rate(arm, self._plain, 1, 0) > self._rate(self._plain, self._plain, 1, 0):
            arm.interval = self._probe_every

    def _arm(self, choice: Choice) -> _Arm:
        return self._drafting_arms[choice.way, choice.nodes] if choice.drafts else self._plain

    def _decide(self, urgent: int, relaxed: int) -> tuple[_Arm, _Arm, str]:
        """What was decided for the same load lately, or what is best now."""
        self._steps += 1
        if self._steps % _DECIDE_EVERY == 0:
            self._decided.clear()
        load = (urgent, relaxed, self._given[0], self._given[1].bit_length())
        if load not in self._decided:
            self._decided[load] = self._best(urgent, relaxed)
        return self._decided[load]

    def _rate(self, one: _Arm, other: _Arm, urgent: int, relaxed: int) -> float:
        """Tokens per second, where the urgent replies choose the one arm and the relaxed the other, and each verifies
        as many nodes as are worth it.
        """
        windows, given = self._given[0] + urgent + relaxed, self._given[1] + urgent + relaxed
        base = urgent + RELAXED * relaxed
        drafting = self._drafting(one, urgent) + self._drafting(other, relaxed)
        fewest = other.sizes[0] * relaxed, RELAXED * relaxed * other.gains[0]
        best = 0.0
        if urgent:
            best = max(
                self._worth(base + urgent * gain + fewest[1], drafting, windows, given + urgent * size + fewest[0])
                for size, gain in zip(one.sizes, one.gains, strict=True)
            )
        if relaxed:
            most = one.sizes[-1] * urgent, urgent * one.gains[-1]
            best = max(
                best,
                *(
                    self._worth(
                        base + most[1] + RELAXED * relaxed * gain, drafting, windows, given + most[0] + relaxed * size
                    )
                    for size, gain in zip(other.sizes, other.gains, strict=True)
                ),
            )
        return best

    def _worth(self, tokens: float, drafting: float, windows: int, nodes: int) -> float:
        seconds = drafting + self._pace.forward(windows, nodes)
        longest = max(LONGEST_STEP_S, _ROOMY * self._pace.forward(1, 1))
        return tokens / seconds * min(1.0, longest / seconds)

    def _drafting(self, arm: _Arm, sessions: int) -> float:
        return 0.0 if arm is self._plain else self._pace.draft(arm.way, arm.nodes, sessions)

    def _best(self, urgent: int, relaxed: int) -> tuple[_Arm, _Arm, str]:
        """The arms with the best rate, one group's and then the other's, until neither is better for another."""
        one = self._last[0] if urgent else self._plain
        other = self._last[1] if relaxed else self._plain
        rates: dict[_Arm, float] = {}
        for _ in range(2 if urgent and relaxed else 1):
            if relaxed:
                rates = {arm: self._rate(one, arm, urgent, relaxed) for arm in self._arms}
                other = self._loyal(rates, self._last[1])
            if urgent:
                rates = {arm: self._rate(arm, other, urgent, relaxed) for arm in self._arms}
                one = self._loyal(rates, self._last[0])
        self._last = (one if urgent else self._last[0], other if relaxed else self._last[1])
        return one, other, self._reason(rates, one if urgent else other, urgent + relaxed)

    def _loyal(self, rates: dict[_Arm, float], last: _Arm) -> _Arm:
        """The arm with the best rate, where those of the way chosen before count more."""
        way = self._way(last)
        return max(rates, key=lambda arm: rates[arm] * (LOYALTY if self._way(arm) == way else 1.0))

    def _way(self, arm: _Arm) -> int:
        return -1 if arm is self._plain else arm.way

    def _reason(self, rates: dict[_Arm, float], chosen: _Arm, calls: int) -> str:
        names = {-1: "plain", **dict(enumerate(self._ways))}
        best: dict[int, float] = {}
        for arm, rate in rates.items():
            best[self._way(arm)] = max(rate, best.get(self._way(arm), 0.0))
        own = self._way(chosen)
        what = f"{names[own]}, {chosen.nodes} nodes" if chosen is not self._plain else names[own]
        others = ", ".join(f"{names[way]} {rate:.0f}" for way, rate in best.items() if way != own)
        return f"{what} for {calls}: {rates[chosen]:.0f} tokens/s expected, {others}"

    def _due(self, chosen: set[_Arm]) -> _Arm | None:
        """The arm whose turn it is to be tried again, if any."""
        due = None
        for arm in self._drafting_arms.values():
            arm.waited = 0 if arm in chosen else arm.waited + 1
            if arm.waited >= arm.interval and due is None:
                due = arm
        if due is not None:
            due.waited = 0
            alone = max(self._rate(arm, self._plain, 1, 0) for arm in self._arms)
            hopeless = self._rate(due, self._plain, 1, 0) < 0.8 * alone
            longest = _LONGEST_INTERVAL * self._probe_every
            due.interval = min(2 * due.interval, longest) if hopeless else self._probe_every
        return due

    def _best_count(self, choices: Sequence[Choice], trees: Sequence[DraftTree], worth: Sequence[float]) -> int:
        """How many of the nodes, the most promising first, make the step yield the most a second."""
        windows, given = self._given
        windows += len(trees)
        base = given + len(trees)
        alike = Counter((choice.way, choice.nodes) for choice in choices if choice.drafts)
        drafting = sum(self._pace.draft(way, nodes, sessions) for (way, nodes), sessions in alike.items())
        gain = sum(1.0 if choice.urgent else RELAXED for choice in choices)
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


class _Calibration:
    """How often nodes of a score were kept. Starts from the belief that scores are what they say."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._kept: list[float] = [2.0 ** (1 - half / 2) for half in range(_HALF_OCTAVES)]
        self._scored = [2.0] * _HALF_OCTAVES

    def of(self, score: float) -> float:
        at = half_octave(score)
        return self._kept[at] / self._scored[at]

    def doubt(self, score: float) -> None:
        """A node was not tried: go back a little to the belief that was there at first."""
        at = half_octave(score)
        self._kept[at] += _DOUBT * (self._scored[at] * 2.0 ** (-at / 2) - self._kept[at])

    def count(self, score: float, kept: bool) -> None:
        at = half_octave(score)
        self._kept[at] = self._kept[at] * self._decay + kept
        self._scored[at] = self._scored[at] * self._decay + 1.0


RELAXED = 0.5
"""What a token is worth to a caller who still has something to listen to, against one who waits."""
LOYALTY = 1.05
LONGEST_STEP_S = 0.1
_ROOMY = 3.0
"""Plain steps that a step may take where those are slow."""
_DECIDE_EVERY = 8
"""Steps for which what was decided for a load stands: what is known changes slowly, and thinking takes time."""
_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
"""Nodes to verify that are compared."""
_HALF_OCTAVES = 24
_PROBE_DECAY = 1.0 - 1.0 / 16
_PROBE_WEIGHT = 2.0
_DOUBT = 0.02
_LONGEST_INTERVAL = 16


def half_octave(score: float, count: int = _HALF_OCTAVES) -> int:
    """Which of ``count`` bins a probability falls in: 0 from 1 down to the root of a half, and so on."""
    return min(count - 1, int(-2.0 * math.log2(max(score, 1e-9))))


def _subtree(tree: DraftTree, nodes: Sequence[int]) -> DraftTree:
    """The root and ``nodes``, with every ancestor they need (calibration need not be monotone along a path)."""
    parents = tree.parents.tolist()
    keep = {0}
    for node in nodes:
        while node not in keep:
            keep.add(node)
            node = parents[node]
    return tree.subtree(keep)
