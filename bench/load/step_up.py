"""From one call to many and back: what the policy does as they join and leave, and that nobody's text changes."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

from bench import harness
from bench.load import claims, scripts
from bench.load.accounts import Spoken, digest, figures
from bench.load.caller import ALONE, Manner, until_moment
from bench.load.contenders import PLAIN
from bench.load.figures import Percentiles
from bench.load.lines import Refused
from bench.load.local import LocalDriver
from bench.load.population import Population
from bench.load.scripts import Script
from bench.load.steps import StepLog
from evals.calls import RecordedCall

matplotlib.use("Agg")
from matplotlib import pyplot

JOIN_S = 2.0
"""In which all the others call."""


@dataclass(frozen=True)
class StepUp:
    """What came of it. Moments are seconds from its beginning. changes: (moment, calls from then on); steps: (moment,
    tokens, mode); replies: of each that ended, in the order in which they began, the modes that it went through;
    clauses: (moment at which a final was due, milliseconds to the first clause), of turns that do not begin with a tool
    call; same: turns whose text is that of a lone call, of ``compared``; refused: calls that were not let in.
    """

    calls: int
    hold_s: float
    changes: list[tuple[float, int]]
    steps: list[tuple[float, int, str]]
    replies: list[list[str]]
    clauses: list[tuple[float, float]]
    same: int
    compared: int
    errors: list[str]
    refused: int

    def tokens_per_second(self) -> list[float]:
        """Of the three parts: one call, all of them, one call again."""
        found = []
        for part in range(3):
            begin, end = part * self.hold_s, (part + 1) * self.hold_s
            found.append(sum(tokens for at, tokens, _ in self.steps if begin <= at < end) / self.hold_s)
        return found

    def first_clauses(self, part: int) -> Percentiles:
        """Of the finals that were due in the part, counted from 0."""
        begin, end = part * self.hold_s, (part + 1) * self.hold_s
        return Percentiles.of_milliseconds([taken for due, taken in self.clauses if begin <= due < end])

    def climb(self) -> claims.Climb:
        most = self.first_clauses(1)
        p95 = most.p95 if most.count >= claims.FEWEST_CLAUSES else None
        return claims.Climb(self.tokens_per_second(), p95, len(self.errors) + self.refused)

    def switches(self) -> list[int]:
        """Of each reply, how often its mode changed. Replies that share a step may well be drafted in different ways,
        those whose callers wait in one and the others in another, so neighbouring steps say nothing of a change.
        """
        return [count_changes(modes) for modes in self.replies]

    def switches_between(self) -> int:
        """How often a reply began in another mode than the one that began before it: a policy that goes to and fro does
        so here, though no reply be long enough to see it.
        """
        return count_changes([modes[0] for modes in self.replies])


def count_changes(modes: Sequence[str]) -> int:
    """How many are not like the one before."""
    return sum(one != other for one, other in itertools.pairwise(modes))


async def measure(driver: LocalDriver, calls: list[RecordedCall], manner: Manner, number: int, hold_s: float) -> StepUp:
    """One call throughout; the others join after ``hold_s``, and call again and again for as long; and then a last such
    part. Callers let the agent finish before they speak over it, so that what is said depends on no timing.
    """
    driver.engine.steps = steps = StepLog()
    population = Population(driver, calls, dataclasses.replace(manner, lets_finish=True))
    began = time.perf_counter()
    turns: list[Spoken] = population.turns
    async with asyncio.TaskGroup() as callers:
        callers.create_task(_again_and_again(population, calls, 0, began, began + 3 * hold_s))
        for slot in range(1, number):
            joins = began + hold_s + JOIN_S * slot / number
            callers.create_task(_again_and_again(population, calls, slot, joins, began + 2 * hold_s))
    driver.engine.steps = None
    told = [figures(turn, began, time.perf_counter()) for turn in turns]
    spoke = [turn for turn in told if not turn.begins_with_tool]
    same, compared = await _as_alone(driver, calls, turns)
    return StepUp(
        number,
        hold_s,
        population.calls_over_time(began),
        [(step.at - began, step.tokens, mode) for step, mode in zip(steps.steps, steps.modes(), strict=True)],
        steps.awaited(),
        [(turn.at, 1e3 * turn.first_clause_s) for turn in spoke if turn.first_clause_s is not None],
        same,
        compared,
        population.errors + [turn.error for turn in turns if turn.error],
        len(population.refused),
    )


async def _again_and_again(
    population: Population, calls: list[RecordedCall], slot: int, begins: float, until: float
) -> None:
    """One call after the other, and at least one, from ``begins`` to the end of the turn in which ``until`` falls."""
    await until_moment(begins)
    for ordinal in itertools.count():
        if ordinal and time.perf_counter() >= until:
            return
        script = scripts.script(calls, 1000 * slot + ordinal)
        try:
            await population.call(script, time.perf_counter(), until)
        except Refused as refused:
            population.refused.append(time.perf_counter())
            await asyncio.sleep(refused.retry_s or 1.0)


async def _as_alone(driver: LocalDriver, calls: list[RecordedCall], turns: list[Spoken]) -> tuple[int, int]:
    """(turns whose text a lone call is told as well, turns). Every call is played again, alone, as far as it went."""
    lengths: Counter[tuple[str, int]] = Counter()
    for turn in turns:
        if turn.over and not turn.error:
            lengths[turn.call, turn.seed] += 1
    by_name = {call.name: call for call in calls}
    alone = Population(driver, calls, ALONE)
    for (name, seed), length in lengths.items():
        recorded = dataclasses.replace(by_name[name], turns=by_name[name].turns[:length])
        await alone.call(Script(recorded, seed), time.perf_counter())
    told = {(turn.call, turn.seed, turn.number): digest(turn.said) for turn in alone.turns}
    said = [turn for turn in turns if turn.over and not turn.error]
    return sum(digest(turn.said) == told.get((turn.call, turn.seed, turn.number)) for turn in said), len(said)


def write(name: str, found: dict[str, StepUp], note: str) -> None:
    """A table and a picture of all contenders."""
    harness.RESULTS.mkdir(exist_ok=True)
    header = ["contender", "tokens/s with one call", "with all", "with one again"]
    header += [f"first clause ms {calls} p50, p95" for calls in ("with one call", "with all", "with one again")]
    header += ["steps by mode", "replies"]
    header += ["that switched", "most switches in one", "began otherwise than the one before"]
    header += ["turns told as to a lone call", "errors", "refused"]
    rows = []
    for contender, one in found.items():
        modes = Counter(mode for _, _, mode in one.steps)
        shares = ", ".join(f"{mode} {count / max(1, modes.total()):.0%}" for mode, count in modes.most_common())
        rates = [f"{rate:.0f}" for rate in one.tokens_per_second()]
        clauses = [one.first_clauses(part).counted for part in range(3)]
        switches = one.switches()
        switched = [len(switches), sum(count > 0 for count in switches), max(switches, default=0)]
        same = f"{one.same} of {one.compared}"
        lost = [len(one.errors), one.refused]
        rows.append([contender, *rates, *clauses, shares, *switched, one.switches_between(), same, *lost])
    plot(found, harness.RESULTS / f"{name}.svg")
    data = {contender: dataclasses.asdict(one) for contender, one in found.items()}
    body = "\n\n".join([note, claimed(found), f"![]({name}.svg)", harness.table(header, rows)])
    harness.save(name, "From one call to many and back", body, data)


def claimed(found: dict[str, StepUp]) -> str:
    """What each contender was to hold, and whether it did."""
    plain = found[PLAIN].climb() if PLAIN in found else None
    lines = []
    for contender, one in found.items():
        held = [
            claims.collapse(one.climb(), None if contender == PLAIN else plain),
            claims.oscillation(one.replies, one.switches_between()),
            claims.same_texts(one.same, one.compared),
        ]
        lines += [f"- {contender}: {claim}" for claim in held]
    return "\n".join(lines)


def plot(found: dict[str, StepUp], path: Path) -> None:
    """Of each contender: calls in progress with every first clause above, tokens by mode below."""
    figure, axes = pyplot.subplots(2, len(found), figsize=(6.5 * len(found), 7), squeeze=False, sharex=True)
    for column, (contender, one) in enumerate(found.items()):
        above, below = axes[0][column], axes[1][column]
        moments, counts = zip(*one.changes, strict=True)
        above.step(moments, counts, where="post", color="grey")
        above.set(title=contender, ylabel="calls in progress")
        if one.clauses:
            clauses = above.twinx()
            clauses.scatter(*zip(*one.clauses, strict=True), s=8)
            clauses.set(ylabel="first clause, ms", yscale="symlog")
        seconds = range(int(3 * one.hold_s) + 1)
        modes = sorted({mode for _, _, mode in one.steps})
        rates = {mode: [0] * len(seconds) for mode in modes}
        for at, tokens, mode in one.steps:
            rates[mode][min(len(seconds) - 1, max(0, int(at)))] += tokens
        below.stackplot(list(seconds), list(rates.values()), labels=modes, step="post")
        below.set(xlabel="seconds", ylabel="tokens a second, by mode")
        below.legend(loc="upper left")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
