"""``python -m bench.batching``: what it measures is said in the package."""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import bench.batching
from bench import harness
from bench.batching import page
from bench.batching.runs import (
    EAGLE,
    OURS,
    PATIENCE,
    PLAIN,
    SELF,
    WAYS,
    Contender,
    Found,
    Replies,
    asked,
    contenders,
    differing,
    head_step,
    run,
    stop,
)
from bench.drafters.counts import HELD_OUT, OTHER, prompts_of
from bench.drafters.methods import Method
from bench.kept import Kept, KeptError
from engine.load import describe
from engine.sampling import Sampling

GPU_STEP = 0.14
"""What a step of an EAGLE-3 head takes on a GPU, as a part of a plain forward of its target."""
STEPS = (GPU_STEP, 2 * GPU_STEP, 4 * GPU_STEP)
"""Taken one after the other until there is a band of self-speculation: a head that is cheap is asked whatever the load,
and that the policy lets go of one that is dear must be seen all the same.
"""
WHY_THAT = (
    f"On a GPU it is {GPU_STEP:g}: with Llama-3.1-8B and its published head, cycles took 2.36 x 4.32 ms with two steps "
    "and 3.54 x 4.29 ms with seven in [vLLM](https://github.com/vllm-project/vllm/issues/20780), beside plain steps of "
    "7.07 ms: 1.0 ms for each step more. By the weights that are read it could be 0.05 at the least (0.43 billion of "
    "the head's, 8.03 of the target's)"
)
SCALED_WAYS = (OURS, PLAIN, SELF, f"{EAGLE}, 4 nodes", f"{EAGLE}, 8 nodes")
SCALED_CALLS = (1, 4, 8, 16, 32)
SCALED_ROUNDS = 2
LEARN_S = 8.0
"""In which our policy comes to know the text and the machine, at the first load of a part: a service runs for days."""
START_S, BEGIN_S = 4.0, 0.2
"""About what it takes to load one contender and measure its steps, and to read a prompt."""


@dataclass(frozen=True)
class Part:
    """Contenders at loads on a kind of text. step: of the head, as a part of a plain forward; None: as it is here."""

    text: str
    names: tuple[str, ...]
    calls: tuple[int, ...]
    rounds: int
    step: float | None = None

    @property
    def title(self) -> str:
        if self.step is None:
            return self.text
        whose = "as on a GPU" if self.step == GPU_STEP else "not a GPU's"
        return f"{self.text}, a step of the head for {self.step:g} of a forward ({whose})"

    def key(self, calls: int, number: int, contender: str) -> str:
        return f"{self.title} | {calls} | {number} | {contender}"

    def most_seconds(self, seconds: float) -> float:
        """It takes at most about so long, with runs of so many seconds that count."""
        runs = len(self.names) * len(self.calls) * (self.rounds + 1)
        starts = len(self.names) * (START_S + BEGIN_S * max(self.calls))
        return starts + PATIENCE * (LEARN_S + runs * seconds)


def parts_of(given: argparse.Namespace) -> list[Part]:
    names = tuple(dict.fromkeys([OURS, *given.ways, PLAIN]))
    parts = [Part(text, names, tuple(given.calls), given.rounds) for text in given.texts]
    scaled = tuple(name for name in names if name in SCALED_WAYS)
    calls = tuple(calls for calls in given.calls if calls in SCALED_CALLS) or tuple(given.calls)
    rounds = min(given.rounds, SCALED_ROUNDS)
    return parts + [Part(given.texts[0], scaled, calls, rounds, step) for step in given.steps]


class Bench:
    """Makes what is not there of parts, and keeps it."""

    def __init__(self, model: Path, temperature: float, seconds: float, kept: Kept, *, learn: float = LEARN_S) -> None:
        """seconds: of each run. learn: that our policy has for itself, before the first one."""
        self._model = model
        self._learn = learn
        self._sampling = Sampling(temperature=temperature)
        self._seconds = seconds
        self._kept = kept
        self._rng = random.Random(0)

    def measure(self, part: Part) -> None:
        missing = [calls for calls in part.calls if not self._whole(part, calls)]
        if not missing:
            return
        prompts = asked(prompts_of(part.text, Method("", "", self._model), 40))
        random.Random(1).shuffle(prompts)
        replies = Replies(prompts, self._sampling, harness.stop_tokens(self._model))
        longest = max(len(prompt.ids) for prompt in prompts)
        made = contenders(self._model, part.names, max(missing), part.step, longest)
        ours = made[0].engine
        self._kept.of(f"{part.title} | costs", lambda: [describe(ours), head_step(ours)])
        run(made[0], replies, missing[0], self._learn)
        for calls in missing:
            for number in range(part.rounds + 1):
                self._round(part, made, replies, calls, number)
            found = [one for one in self.found(part) if one.calls == calls]
            speeds = (f"{name} {page.speed(found, name, calls):.0f}" for name in part.names)
            print(f"{part.title}, {calls} at a time: {', '.join(speeds)}", flush=True)
        for contender in made:
            stop(contender)

    def found(self, part: Part) -> list[Found]:
        """What there is, in rounds."""
        keys = (part.key(*place) for place in self._places(part))
        return [Found(**self._kept[key]) for key in keys if key in self._kept]

    def costs(self, part: Part) -> tuple[str, float]:
        """(the measured costs in words, what a step of the head takes as a part of a plain forward)."""
        words, step = self._kept[f"{part.title} | costs"]
        return str(words), float(step)

    def _round(self, part: Part, made: Sequence[Contender], replies: Replies, calls: int, number: int) -> None:
        """The first one is for policies to learn in, and for the others to be as warm: it is made in any case."""
        for contender in self._rng.sample(list(made), len(made)):
            key = part.key(calls, number, contender.name)
            if not number:
                run(contender, replies, calls, self._seconds)
            elif key not in self._kept:
                self._kept.put(key, asdict(run(contender, replies, calls, self._seconds)))

    @staticmethod
    def _places(part: Part) -> Iterator[tuple[int, int, str]]:
        for calls in part.calls:
            for number in range(1, part.rounds + 1):
                for name in part.names:
                    yield calls, number, name

    def _whole(self, part: Part, calls: int) -> bool:
        return all(part.key(*place) in self._kept for place in self._places(part) if place[0] == calls)


def measured(bench: Bench, parts: Sequence[Part]) -> list[Part]:
    """Those that there was reason to measure: with the head scaled, up to the first one with a band."""
    done = []
    for part in parts:
        bench.measure(part)
        done.append(part)
        if part.step is not None and page.in_band(bench.found(part), part.names, part.calls):
            break
    return done


def body_of(bench: Bench, parts: Sequence[Part], given: argparse.Namespace) -> str:
    found = {part: bench.found(part) for part in parts}
    notes = "; ".join("{}: {} of {}".format(part.title, *differing(runs)) for part, runs in found.items())
    about = (
        f"Temperature {given.temperature:g}; {given.rounds} rounds of {given.seconds:g} s for each, interleaved, fewer "
        "where the head is scaled; ratios to plain decoding in the same round, median [smallest, largest]. What a "
        "drafter reads of a call's newest lines counts. Of replies that were made more than once, those that differ: "
        f"{notes}."
    )
    blocks = [about, f"![]({given.name}.svg)"]
    real = [part for part in parts if part.step is None]
    for part in real:
        words, step = bench.costs(part)
        here = f"Costs as measured here: {words}. A step of the head takes {step:.2f} of a plain forward."
        blocks += [f"## {part.title}", *_words(part, found[part]), here]
    scaled = [part for part in parts if part.step is not None]
    if scaled:
        none = not any(page.in_band(found[part], part.names, part.calls) for part in real)
        why = "There is no band of self-speculation above, at this machine's costs. " if none else ""
        blocks.append(
            f"## With the draft head's cost scaled\n\n{why}The same engines, but what the draft head takes counts for "
            "more or less, to the policy and in the rates, so that one step of it is another part of a plain forward. "
            f"{WHY_THAT}. Where there is no band with that, the head is made dearer until there is one. All other "
            "costs are this machine's."
        )
    for part in scaled:
        blocks += [f"### {part.title}", page.switches(found[part], part.calls), *_words(part, found[part])]
    return "\n\n".join(filter(None, blocks))


def _words(part: Part, found: Sequence[Found]) -> list[str]:
    return [
        page.table(found, part.names, part.calls),
        page.floor(found, part.calls),
        page.band(found, part.names, part.calls),
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=bench.batching.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("models/receptionist"))
    parser.add_argument("--calls", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="replies at a time")
    parser.add_argument("--texts", nargs="+", choices=[HELD_OUT, OTHER], default=[HELD_OUT, OTHER])
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="NAME", help="ours and plain are two of them"
    )
    parser.add_argument(
        "--steps", type=float, nargs="*", default=list(STEPS), help="of the head, as parts of a plain forward"
    )
    parser.add_argument("--seconds", type=float, default=1.3, help="of each run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--name", default="batching", help="of the page under bench/results")
    parser.add_argument("--runs", type=Path, default=Path("build/batching.jsonl"), help="file of what was measured")
    parser.add_argument("--resume", action="store_true", help="go on with what is there")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    torch.set_num_threads(1)
    setting = {"model": str(given.model), "seconds": given.seconds, "temperature": given.temperature}
    try:
        kept = Kept(given.runs, setting, resume=given.resume)
    except KeptError as error:
        raise SystemExit(str(error)) from error
    parts = parts_of(given)
    print(f"at most about {sum(part.most_seconds(given.seconds) for part in parts) / 60:.0f} minutes", flush=True)
    made = Bench(given.model, given.temperature, given.seconds, kept)
    parts = measured(made, parts)
    results = {part.title: made.found(part) for part in parts}
    page.draw(results, parts[0].names, harness.RESULTS / f"{given.name}.svg")
    runs = {title: [asdict(one) for one in found] for title, found in results.items()}
    harness.save(given.name, "Replies that share steps", body_of(made, parts, given), {"runs": runs})


if __name__ == "__main__":
    main()
