"""A long prompt arrives while others talk: what it does to their steps and to what their callers hear."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench import harness
from bench.load import claims
from bench.load.accounts import TurnFigures, figures
from bench.load.caller import until_moment
from bench.load.figures import Percentiles, clauses
from bench.load.lines import Over, Refused
from bench.load.local import LocalDriver
from bench.load.population import Population
from bench.load.scripts import Script
from bench.load.steps import StepLog
from evals.calls import Heard, Kind, RecordedCall, SpokenTurn

PROMPT_TOKENS = 1500
SLICE_S = 5.0
EVERY_S = 1.5
"""From one long prompt to the next, or from its first token where that comes later."""
SEED = 1 << 40
"""Of the long prompts: apart from those of the callers."""


@dataclass(frozen=True)
class LongPrompt:
    """What came of it. step_beside: milliseconds that each step of the engine took in which a caller's reply went on
    and a long prompt was read; step_apart: in the slices of time that had none. beside, apart: milliseconds between two
    steps of a reply that somebody waits for; it may have been left out of those between. prompts: seconds that each
    took to its first token. clauses: milliseconds to the first clause of the callers' turns that fell due in slices
    (without, with); underruns and speech_s: likewise. refused: calls that were not let in.
    """

    calls: int
    step_apart: list[float]
    step_beside: list[float]
    apart: list[float]
    beside: list[float]
    prompts: list[float]
    clauses: tuple[list[float], list[float]]
    underruns: tuple[int, int]
    speech_s: tuple[float, float]
    errors: list[str]
    refused: int

    @property
    def judged(self) -> float:
        """Of the time with such a prompt, the share in steps beside which a caller's reply went on."""
        return sum(self.step_beside) / 1e3 / sum(self.prompts) if self.prompts else 0.0


@dataclass(frozen=True)
class Slices:
    """Time in slices of SLICE_S from ``began`` on, with long prompts or without."""

    began: float
    kinds: tuple[bool, ...]

    @staticmethod
    def shuffled(began: float, of_each: int) -> Slices:
        kinds = [False, True] * of_each
        random.Random(0).shuffle(kinds)
        return Slices(began, tuple(kinds))

    @property
    def ended(self) -> float:
        return self.began + SLICE_S * len(self.kinds)

    def kind(self, moment: float) -> bool | None:
        """Whether there are long prompts then; None outside of all slices."""
        at = int((moment - self.began) // SLICE_S)
        return self.kinds[at] if 0 <= at < len(self.kinds) else None


@dataclass
class Prompts:
    """The long prompts of a run. times: (asked, first token) of each. sessions: the calls that they came in."""

    times: list[tuple[float, float]] = field(default_factory=list)
    sessions: set[str] = field(default_factory=set)

    async def arrive(self, driver: LocalDriver, text: LongText, until: float) -> None:
        """One after the other. One that is not let in was no load."""
        while (asked := time.perf_counter()) < until:
            with contextlib.suppress(Refused):
                script = text.script(len(self.times))
                async with driver.line(script) as line:
                    self.sessions.add(line.call.opened.session_id)
                    first = await (await line.final(script.turns[0].text)).get()
                    if isinstance(first, Over) and first.error:
                        raise RuntimeError(f"a long prompt failed: {first.error}")
                    self.times.append((asked, first.at))
            await until_moment(asked + EVERY_S)

    def overlap(self, begin: float, end: float) -> bool:
        """Whether one of them was computed meanwhile."""
        return any(begin < last and end > first for first, last in self.times)


async def measure(
    driver: LocalDriver, population: Population, number: int, warm_up_s: float, slices: int, text: LongText
) -> LongPrompt:
    """``number`` callers in real time, in so many slices of time with long prompts and as many without, shuffled."""
    driver.engine.steps = log = StepLog()
    began = time.perf_counter()
    population.fixed(number, began, warm_up_s)
    time_slices, prompts = Slices.shuffled(began + warm_up_s, slices), Prompts()
    for at, with_prompts in enumerate(time_slices.kinds):
        start = time_slices.began + SLICE_S * at
        await until_moment(start)
        if with_prompts:
            await prompts.arrive(driver, text, start + SLICE_S)
    await until_moment(time_slices.ended)
    await population.hang_up()
    driver.engine.steps = None
    return _account(population, number, log, time_slices, prompts)


def _account(population: Population, number: int, log: StepLog, slices: Slices, prompts: Prompts) -> LongPrompt:
    """What is to be told of it."""
    gaps, speech = {False: 0, True: 0}, {False: 0.0, True: 0.0}
    turns: dict[bool, list[TurnFigures]] = {False: [], True: []}
    for turn in population.turns:
        turn.close(slices.ended, slices.ended)
        kind = slices.kind(turn.due)
        if kind is not None:
            turns[kind].append(figures(turn, slices.began, slices.ended))
            gaps[kind] += len(turn.playback.gaps)
            speech[kind] += turn.playback.spoken_seconds(slices.ended)
    apart, beside = [], []
    step_apart, step_beside = _steps(log, slices, prompts)
    for (session, _), begin, end in log.intervals():
        if session in prompts.sessions or slices.kind(begin) is None:
            continue
        if prompts.overlap(begin, end):
            beside.append(1e3 * (end - begin))
        elif slices.kind(begin) is False:
            apart.append(1e3 * (end - begin))
    return LongPrompt(
        number,
        step_apart,
        step_beside,
        apart,
        beside,
        [first - asked for asked, first in prompts.times],
        ([1e3 * one for one in clauses(turns[False])], [1e3 * one for one in clauses(turns[True])]),
        (gaps[False], gaps[True]),
        (speech[False], speech[True]),
        population.errors + [turn.error for turn in population.turns if turn.error],
        len(population.refused),
    )


def _steps(log: StepLog, slices: Slices, prompts: Prompts) -> tuple[list[float], list[float]]:
    """Milliseconds of the steps (apart from long prompts, in which one was read) in which a caller's reply went on.
    Those that read nothing of a prompt that is there are neither.
    """
    apart, beside = [], []
    for step in log.engine:
        if slices.kind(step.began) is None or prompts.sessions.issuperset(step.gained):
            continue
        if prompts.sessions.intersection(step.read):
            beside.append(1e3 * (step.ended - step.began))
        elif slices.kind(step.began) is False and not prompts.overlap(step.began, step.ended):
            apart.append(1e3 * (step.ended - step.began))
    return apart, beside


class LongText:
    """Calls whose system prompt and first turn have together PROMPT_TOKENS, of other businesses' prompts."""

    ASKED = "Hello, are you open on Saturday?"

    def __init__(self, calls: list[RecordedCall], model: Path) -> None:
        self._tokenizer = harness.load_tokenizer(model)
        self._ids: list[int] = []
        for call in calls:
            self._ids += self._encode(call.system + "\n")
            if len(self._ids) >= PROMPT_TOKENS:
                break

    def script(self, number: int) -> Script:
        """No two numbers' prompts begin alike: what one call has computed would be the next one's for nothing."""
        first = self._encode(f"{number} is the number of this branch.\n")
        rest = PROMPT_TOKENS - len(first) - len(self._encode(self.ASKED))
        system = self._tokenizer.decode([*first, *self._ids[:rest]])
        turn = SpokenTurn((Heard(0, Kind.FINAL, self.ASKED),))
        return Script(RecordedCall("long", system, [], (), (turn,)), SEED + number)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))


def claimed(found: dict[str, LongPrompt]) -> str:
    """What each contender was to hold, and whether it did."""
    lines = []
    for contender, one in found.items():
        apart, beside = map(Percentiles.of_milliseconds, (one.step_apart, one.step_beside))
        held = claims.beside_long_prompt(apart, beside), claims.underruns(one.underruns[1], one.speech_s[1])
        lines += [f"- {contender}: {claim}" for claim in held]
    return "\n".join(lines)


def write(name: str, found: dict[str, LongPrompt], note: str) -> None:
    times = [
        f"{what} {where}" for what in ("engine's steps", "between steps of a reply") for where in ("apart", "beside")
    ]
    header = ["contender", "calls"]
    header += [cell for what in times for cell in (what, "p50, p95, p99 ms")]
    header += ["first token of a long prompt p50, p95 ms", "of that in steps beside"]
    header += [f"first clauses in slices {which} p50, p95 ms" for which in ("without", "with")]
    header += ["underruns without", "with", "errors", "refused"]
    rows = []
    for contender, one in found.items():
        silent = [f"{gaps} in {speech:.0f} s" for gaps, speech in zip(one.underruns, one.speech_s, strict=True)]
        lists = one.step_apart, one.step_beside, one.apart, one.beside
        of = map(Percentiles.of_milliseconds, lists)
        cells = [cell for one in of for cell in (one.count, f"{one.p50:.1f}, {one.p95:.1f}, {one.p99:.1f}")]
        first = [some.counted for some in map(Percentiles.of_milliseconds, one.clauses)]
        prompts = [Percentiles.of(one.prompts).two, f"{one.judged:.0%}"]
        rows.append([contender, one.calls, *cells, *prompts, *first, *silent, len(one.errors), one.refused])
    body = f"{note}\n\n{claimed(found)}\n\n{harness.table(header, rows)}"
    title = f"A prompt of {PROMPT_TOKENS:,} tokens while others talk"
    harness.save(name, title, body, {contender: dataclasses.asdict(one) for contender, one in found.items()})
