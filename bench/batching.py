"""Many replies in shared steps: tokens a second by way of drafting, and what the load policy chooses among them.

    python -m bench.batching [--calls N ...] [--texts "held out" "other style"]

So many replies are always being made; where one ends another begins, read beforehand. No queue, no socket and no
prefill in the time that counts: this is what a way of drafting is worth at a load, and nothing else. The ways take
turns within each round, in a random order, so a machine that changes its pace does so for all of them.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import torch

from bench import harness
from bench.drafters.counts import HELD_OUT, OTHER, prompts_of
from bench.drafters.methods import Method
from engine.config import EngineConfig
from engine.engine import Engine, Work
from engine.load import load_proposer, load_target_for, measured_engine
from engine.sampling import Sampling
from engine.session import Turn

matplotlib.use("Agg")
from matplotlib import pyplot

OURS, PLAIN, SELF, EAGLE = "ours", "plain", "self-speculation", "EAGLE-3"
FRUGAL_MODE = "suffix"
"""What a step is counted as that drafts by self-speculation."""
WAYS: Mapping[str, Mapping[str, str | int]] = {
    OURS: {},
    PLAIN: {"draft_mode": "plain", "drafter": "none"},
    SELF: {"drafter": "suffix"},
    f"{EAGLE}, 4 nodes": {"drafter": "eagle3:{model}/eagle3", "draft_nodes": 4},
    f"{EAGLE}, 8 nodes": {"drafter": "eagle3:{model}/eagle3", "draft_nodes": 8},
    f"{EAGLE}, 24 nodes": {"drafter": "eagle3:{model}/eagle3", "draft_nodes": 24},
}
"""Keys of ``[engine]`` as they differ from the defaults. The fixed trees are what an engine drafts that chooses its
drafter at its start."""
MAX_TOKENS = 64
SPARE_CONTEXTS = 8
"""That the page pool has room for beside those of the replies at a time: costs are measured on scratch sessions."""


@dataclass
class Contender:
    """One way of drafting with its own engine; all share the target's weights and pages."""

    name: str
    engine: Engine
    texts: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """By number of the reply: what was said."""
    modes: Counter[str] = field(default_factory=Counter)
    """Steps by mode, in the run that is going on."""


@dataclass(frozen=True)
class Found:
    """One run of one contender. modes: steps of its replies by what they drafted with."""

    contender: str
    calls: int
    tokens_per_second: float
    modes: Mapping[str, int]


class Replies:
    """Prompts without end, in the same order for all: the reply of a number is the same whoever makes it."""

    def __init__(self, prompts: Sequence[harness.Prompt], sampling: Sampling, stop: frozenset[int]) -> None:
        self._prompts = prompts
        self._sampling = sampling
        self._stop = stop

    def begin(self, engine: Engine, number: int) -> Turn:
        """The reply's session is read and its drafter has caught up."""
        prompt = self._prompts[number % len(self._prompts)].ids
        session = harness.warm(engine, prompt, seed=number, name=f"reply-{number}")
        return engine.submit(session, self._sampling, max_tokens=MAX_TOKENS, stop_tokens=self._stop)


def contenders(model: Path, names: Sequence[str], calls: int) -> list[Contender]:
    """calls: most replies at a time."""
    base = {"model": str(model), "drafter": f"suffix+eagle3:{model}/eagle3", "threads": 1}
    pool = (calls + SPARE_CONTEXTS) * 2048
    target = load_target_for(EngineConfig(model=str(model), threads=1, pool_tokens=pool))
    made = []
    for name in names:
        settings = {key: str(value).replace("{model}", str(model)) for key, value in WAYS[name].items()}
        config = EngineConfig(**{**base, "pool_tokens": pool, **settings})  # type: ignore[arg-type]
        made.append(Contender(name, measured_engine(target, load_proposer(config, target), config)))
    return made


def run(contender: Contender, replies: Replies, calls: int, seconds: float, first: int) -> Found:
    """``calls`` replies at a time for so long, from number ``first`` on."""
    engine, numbers = contender.engine, itertools.count(first)
    contender.modes = Counter()

    def begin() -> tuple[int, Turn]:
        number = next(numbers)
        return number, replies.begin(engine, number)

    going = dict(begin() for _ in range(calls))
    spent, tokens = 0.0, 0
    while spent < seconds:
        plan = [Work(turn.session) for turn in going.values()]
        started = time.perf_counter()
        steps = engine.step(plan)
        spent += time.perf_counter() - started
        tokens += sum(len(step.tokens) for step in steps)
        for number, turn in list(going.items()):
            choice = turn.choice
            drafts = choice is not None and choice.drafts
            contender.modes[engine.drafting.ways[choice.way].name if choice and drafts else PLAIN] += 1
            if turn.finish is not None:
                contender.texts[number] = tuple(turn.tokens)
                engine.close(turn.session)
                del going[number]
                number, turn = begin()
                going[number] = turn
    for turn in going.values():
        engine.close(turn.session)
    return Found(contender.name, calls, tokens / spent, dict(contender.modes))


def differing(made: Sequence[Contender]) -> tuple[int, int]:
    """(replies that two contenders made and said differently, replies that more than one made)."""
    said: dict[int, set[tuple[int, ...]]] = {}
    times: Counter[int] = Counter()
    for contender in made:
        for number, text in contender.texts.items():
            said.setdefault(number, set()).add(text)
            times[number] += 1
    return sum(len(said[n]) > 1 for n, count in times.items() if count > 1), sum(c > 1 for c in times.values())


def measure(
    made: Sequence[Contender], replies: Replies, loads: Sequence[int], seconds: float, rounds: int
) -> list[Found]:
    found = []
    rng = random.Random(0)
    for calls in loads:
        for number in range(rounds + 1):
            for contender in rng.sample(list(made), len(made)):
                result = run(contender, replies, calls, seconds, first=10_000 * number)
                if number:  # the first round is for the policy to learn in, and for the others to be as warm
                    found.append(result)
        print(
            f"{calls} at a time: " + ", ".join(f"{c.name} {speed(found, c.name, calls):.0f}" for c in made), flush=True
        )
    return found


def speed(found: Sequence[Found], contender: str, calls: int) -> float:
    """Median tokens a second."""
    return statistics.median(f.tokens_per_second for f in found if (f.contender, f.calls) == (contender, calls))


def ratios(found: Sequence[Found], contender: str, calls: int, base: str = PLAIN) -> tuple[float, float, float]:
    """To plain decoding, or another base, in the same round: median, smallest, largest."""
    own = [f.tokens_per_second for f in found if (f.contender, f.calls) == (contender, calls)]
    others = [f.tokens_per_second for f in found if (f.contender, f.calls) == (base, calls)]
    each = [a / b for a, b in zip(own, others, strict=True)]
    return statistics.median(each), min(each), max(each)


def our_modes(found: Sequence[Found], calls: int) -> Counter[str]:
    """Our steps, by what they drafted with."""
    total: Counter[str] = Counter()
    for one in found:
        if (one.contender, one.calls) == (OURS, calls):
            total.update(one.modes)
    return total


def shares(found: Sequence[Found], calls: int) -> str:
    """Of our steps, how many drafted with what."""
    total = our_modes(found, calls)
    return ", ".join(f"{mode} {count / total.total():.0%}" for mode, count in total.most_common())


def band(found: Sequence[Found], names: Sequence[str], loads: Sequence[int]) -> str:
    """At which loads self-speculation is ahead of all others, and at which of them the policy chooses it, in words."""
    others = [PLAIN, *(name for name in names if name.startswith(EAGLE))]
    if len(others) < 2 or not {OURS, SELF} <= set(names):
        return ""
    beaten = {calls: [ratios(found, SELF, calls, base) for base in others] for calls in loads}
    ahead = [calls for calls in loads if all(median > 1.0 for median, _, _ in beaten[calls])]
    always = [calls for calls in loads if all(smallest > 1.0 for _, smallest, _ in beaten[calls])]
    modes = {calls: our_modes(found, calls) for calls in loads}
    chosen = [calls for calls in loads if modes[calls] and modes[calls].most_common(1)[0][0] == FRUGAL_MODE]
    both = [calls for calls in ahead if calls in chosen]
    return (
        f"Self-speculation is ahead of plain decoding and of every fixed EAGLE-3 tree, by the median over rounds: "
        f"{_at(ahead)}; in every round: {_at(always)}. Most of our steps draft with it: {_at(chosen)}. "
        f"**Ahead and chosen: {_at(both)}.**"
    )


def _at(loads: Sequence[int]) -> str:
    return f"at {', '.join(str(calls) for calls in loads)} at a time" if loads else "nowhere"


def rows(found: Sequence[Found], names: Sequence[str], loads: Sequence[int]) -> list[list[object]]:
    table: list[list[object]] = []
    for calls in loads:
        row: list[object] = [calls, f"{speed(found, PLAIN, calls):.0f}"]
        for name in names:
            if name != PLAIN:
                middle, low, high = ratios(found, name, calls)
                row.append(f"{middle:.2f} [{low:.2f}, {high:.2f}]")
        table.append([*row, shares(found, calls)])
    return table


def draw(results: Mapping[str, Sequence[Found]], names: Sequence[str], loads: Sequence[int], path: Path) -> None:
    figure, places = pyplot.subplots(1, len(results), figsize=(5.4 * len(results), 4), squeeze=False)
    for axes, (text, found) in zip(places[0], results.items(), strict=True):
        for name in names:
            ways = [ratios(found, name, calls)[0] for calls in loads]
            axes.plot(loads, ways, marker="o", label=name, linewidth=2.4 if name == OURS else 1.2)
        axes.set_xscale("log", base=2)
        axes.set_xticks(loads, [str(calls) for calls in loads])
        axes.set_title(text)
        axes.set_xlabel("replies at a time")
        axes.grid(alpha=0.3)
    places[0][0].set_ylabel("tokens a second, x plain decoding")
    places[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/receptionist"))
    parser.add_argument("--calls", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="replies at a time")
    parser.add_argument("--texts", nargs="+", choices=[HELD_OUT, OTHER], default=[HELD_OUT, OTHER])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="NAME", help="plain is one")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--temperature", type=float, default=0.7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = list(dict.fromkeys([*given.ways, PLAIN]))
    results: dict[str, list[Found]] = {}
    notes, bodies = [], []
    for text in given.texts:
        made = contenders(given.model, names, max(given.calls))
        prompts = prompts_of(text, Method("", "", given.model), 40)
        random.Random(1).shuffle(prompts)
        replies = Replies(prompts, Sampling(temperature=given.temperature), harness.stop_tokens(given.model))
        results[text] = measure(made, replies, given.calls, given.seconds, given.rounds)
        different, compared = differing(made)
        notes.append(f"{text}: {different} of {compared} replies that several made differ")
        header = ["replies at a time", "plain tok/s", *(f"{n}, x" for n in names if n != PLAIN), "ours drafts with"]
        table = harness.table(header, rows(results[text], names, given.calls))
        bodies += [f"## {text}", table, *filter(None, [band(results[text], names, given.calls)])]
    draw(results, names, given.calls, harness.RESULTS / "batching.svg")
    about = (
        f"Temperature {given.temperature:g}; {given.rounds} rounds of {given.seconds:g} s for each; ratios to plain "
        f"decoding in the same round, median [smallest, largest]. Texts: {'; '.join(notes)}."
    )
    body = "\n\n".join([about, "![](batching.svg)", *bodies])
    data = {text: [vars(one) for one in found] for text, found in results.items()}
    harness.save("batching", "Replies that share steps", body, {"runs": data})


if __name__ == "__main__":
    main()
