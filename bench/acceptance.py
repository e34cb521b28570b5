"""How much of a draft is accepted: tokens per target forward and acceptance per position, by tree, temperature, text.

    python -m bench.acceptance [--model DIR] [--calls N]

Plain counts, no clock. Beside the EAGLE-3 head stands a 5-gram table counted on the head's own training corpus with the
same node budget, so that an easy corpus is not mistaken for a good head.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

from bench import harness
from bench.ngram import NgramProposer, NgramTable
from engine.config import EngineConfig
from engine.engine import Engine
from engine.interfaces import Proposer
from engine.load import load_proposer, load_target_for
from engine.policy import FixedPolicy
from engine.sampling import Sampling
from engine.session import Turn
from training.data import HEAD_DIALOGUES, HEAD_SEED
from training.dialogues import dialogue

matplotlib.use("Agg")
from matplotlib import pyplot

TREES: tuple[tuple[str, int], ...] = (("chain", 5), ("tree", 8), ("tree", 16), ("tree", 24), ("tree", 60))
"""Shape and nodes, the root included; a chain of four drafted tokens has five."""
TEMPERATURES = (0.0, 0.7, 1.0)
DEEPEST = 64


@dataclass
class Tally:
    """Counts over the replies of one kind. accepted: steps at which the token so many places deep was."""

    tokens: int = 0
    forwards: int = 0
    accepted: list[int] = field(default_factory=lambda: [0] * DEEPEST)

    def add(self, turn: Turn) -> None:
        stats = turn.stats
        self.tokens += turn.num_tokens - 1  # the first token comes from the prefill, not from a drafted step
        self.forwards += stats.steps - 1
        for depth, accepted in enumerate(stats.accepted_at):
            self.accepted[depth] += accepted

    @property
    def per_forward(self) -> float:
        return self.tokens / max(1, self.forwards)

    def positions(self, count: int = 6) -> list[float]:
        """Acceptance at each draft position, of the steps whose tokens before it were accepted.

        A step at which nothing was drafted there counts as one where it was not: nobody looks good by drafting little.
        """
        reached = [self.forwards, *self.accepted[: count - 1]]
        return [a / r if r else float("nan") for a, r in zip(self.accepted[:count], reached, strict=True)]


def ngram_table(tokenizer: Any, vocab_size: int) -> NgramTable:
    """Counted on the very conversations that the head was trained on."""
    ids: list[int] = []
    for number in range(HEAD_DIALOGUES):
        call = dialogue(HEAD_SEED + number)
        ids += tokenizer.apply_chat_template(call.messages, tools=call.tools, return_dict=False)
    return NgramTable(np.array(ids, np.int64), vocab_size)


def measure(
    engine: Engine, prompts: list[harness.Prompt], temperature: float, stop: frozenset[int]
) -> dict[str, Tally]:
    """Tallies of all replies, and of text and tool-call replies apart."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    for number, prompt in enumerate(prompts):
        run = harness.run_turn(engine, prompt.ids, Sampling(temperature), stop=stop, seed=number)
        tallies["all"].add(run.turn)
        tallies["tool" if prompt.tool else "text"].add(run.turn)
    return tallies


def rows_of(name: str, nodes: int, temperature: float, split: str, tallies: dict[str, Tally]) -> list[list[object]]:
    return [
        [name, nodes, temperature, split, kind, tallies[kind].per_forward]
        + [f"{share:.2f}" for share in tallies[kind].positions()]
        for kind in ("all", "text", "tool")
    ]


def plot(rows: list[list[Any]], path: Path) -> None:
    """Tokens per forward against nodes, a panel per temperature."""
    figure, axes = pyplot.subplots(1, len(TEMPERATURES), figsize=(12, 4), sharey=True)
    for axis, temperature in zip(axes, TEMPERATURES, strict=True):
        for name, split in (("EAGLE-3", "in domain"), ("EAGLE-3", "held out"), ("5-gram", "in domain")):
            points = [r for r in rows if r[0].startswith(name) and r[2:5] == [temperature, split, "all"]]
            points = [r for r in points if "chain" not in r[0]]
            axis.plot([r[1] for r in points], [r[5] for r in points], marker="o", label=f"{name}, {split}")
        axis.set(title=f"temperature {temperature}", xlabel="tree nodes")
    axes[0].set_ylabel("tokens per target forward")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("models/receptionist"))
    parser.add_argument("--calls", type=int, default=25, help="calls per split; each has several replies")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model: Path = arguments.model
    tokenizer, stop = harness.load_tokenizer(model), harness.stop_tokens(model)
    config = EngineConfig(str(model), f"eagle3:{model / 'eagle3'}", pool_tokens=16_384)
    target = load_target_for(config)
    ngram = NgramProposer(ngram_table(tokenizer, target.vocab_size))
    splits = {
        "in domain": harness.prompts(tokenizer, harness.IN_DOMAIN, arguments.calls),
        "held out": harness.prompts(tokenizer, harness.HELD_OUT, arguments.calls),
    }
    rows: list[list[Any]] = []
    for split, prompts in splits.items():
        for shape, nodes in TREES:
            head = load_proposer(replace(config, draft_shape=shape), target)
            drafters: list[tuple[str, Proposer]] = [(f"EAGLE-3 {shape}", head)]
            if shape == "tree":
                drafters.append(("5-gram tree", ngram))
            for temperature in TEMPERATURES:
                for name, proposer in drafters:
                    engine = Engine(target, proposer, FixedPolicy(nodes))
                    rows += rows_of(name, nodes, temperature, split, measure(engine, prompts, temperature, stop))
                    print(rows[-3], flush=True)
    harness.RESULTS.mkdir(exist_ok=True)
    plot(rows, harness.RESULTS / "acceptance.svg")
    header = [
        "drafter",
        "nodes",
        "temperature",
        "split",
        "replies",
        "tokens per forward",
        *(f"pos {i}" for i in range(1, 7)),
    ]
    sizes = {name: len(prompts) for name, prompts in splits.items()}
    data = {"replies": sizes, "rows": rows, "corpus_conversations": HEAD_DIALOGUES}
    harness.save("acceptance", "Acceptance", harness.table(header, rows) + "\n\n![](acceptance.svg)", data)


if __name__ == "__main__":
    main()
