"""MEASURED tokens per second: the embedded model grown to large shapes, plain and with every drafter of ours."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.gpu.calls import asked
from bench.gpu.stages import Bench, Table, in_words
from bench.gpu.steps import pool_tokens
from bench.gpu.targets import LARGE, SMALL
from bench.grow.exact import Grown, grow_target
from bench.grow.exact_drafters import grow_head, grow_medusa, grow_module
from bench.harness import Prompt, stop_tokens
from engine.engine import Engine, Work
from engine.graphs.draft import GraphProposer
from engine.graphs.engine import GraphEngine
from engine.graphs.steps import Graphs
from engine.graphs.target import NODES
from engine.interfaces import Proposer
from engine.models.config import DecoderConfig
from engine.models.decoder import Decoder, load_target
from engine.policy import FixedPolicy
from engine.proposers.cascade import Cascade
from engine.proposers.none import NoProposer
from engine.proposers.pairs.proposer import PairProposer
from engine.proposers.recycling import RecyclingProposer
from engine.proposers.suffix import SuffixProposer
from engine.sampling import Sampling

PLAIN = "plain, graphs"
"""What every other way is held against."""


def _grow(bench: Bench, model: Path, shape: DecoderConfig, room: int, precision: str = "full") -> Grown:
    return grow_target(
        model,
        shape,
        device=bench.device,
        dtype=bench.sizes.dtype,
        pool_tokens=room,
        kernels=bench.kernels,
        precision=precision,
    )


def grown_pair(bench: Bench) -> tuple[Grown, PairProposer]:
    """The embedded model and its head, grown to 8B."""

    def make() -> tuple[Grown, PairProposer]:
        room = pool_tokens(bench)
        grown = _grow(bench, bench.model, bench.sizes.small, room)
        return grown, grow_head(bench.model / "eagle3", grown, room)

    pair: tuple[Grown, PairProposer] = bench.held(("grown", bench.kernels), make)
    return pair


def grown_draft(bench: Bench) -> Decoder:
    """The embedded model's draft model, grown to 1B."""
    return _grow(bench, bench.model / "draft", bench.sizes.draft, 8192).target


@dataclass
class Way:
    """Replies by one way of decoding: what they took from the second step of each on, or why there are none."""

    name: str
    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0
    said: list[list[int]] = field(default_factory=list)
    error: str = ""

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds if self.steps else math.nan

    def row(self, base: Way) -> list[Any]:
        """Of a table, against plain decoding by graphs and the text that the first way has said."""
        if not self.steps:
            return [self.name, *[math.nan] * 3, self.error or "no time left", ""]
        figures = [self.rate, self.tokens / self.steps, 1e3 * self.seconds / self.steps, self.rate / base.rate]
        same = sum(mine == theirs for mine, theirs in zip(self.said, base.said, strict=False))
        return [self.name, *figures, f"{same}/{len(self.said)}"]


class Decoding:
    """Every way is asked the same and is a row as soon as it has answered: one that fails harms no other. The first is
    ``PLAIN``.
    """

    def __init__(self, bench: Bench, shape: str, target: Decoder, questions: Sequence[Prompt]) -> None:
        self.bench, self.shape, self.target, self.questions = bench, shape, target, questions
        self.ways: list[Way] = []
        header = ["way", "tokens/s", "tokens a step", "ms a step", f"x {PLAIN}", f"same text as {PLAIN}"]
        title = f"MEASURED on the embedded model grown to {shape}, greedy: the acceptance is the receptionist's"
        self.table = Table(title, header)

    def engine(self, name: str, make: Callable[[], Engine]) -> None:
        """By the loop of an engine."""
        way = Way(name)
        if self.bench.left >= 0:
            try:
                _decode(self.bench, make(), self.questions, way)
                self.bench.figures[f"grown {self.shape} tokens_s {name}"] = way.rate
            except Exception as error:
                traceback.print_exc()
                way = Way(name, error=in_words(error))
        self.ways.append(way)
        self.table.rows.append(way.row(self.ways[0]))

    def graphs(self, name: str, make: Callable[[], Proposer], budget: int) -> None:
        """In cycles where the drafter is a pair head, else with static forwards."""
        made: list[Graphs] = []

        def engine() -> Engine:
            proposer, policy = make(), FixedPolicy(budget)
            graphs = Graphs(self.target, proposer, budgets=(max(2, budget),), most_windows=1)
            made.append(graphs)
            if isinstance(graphs.proposer, GraphProposer):
                return GraphEngine(graphs, policy)
            # Other trees have any size: none of these steps may be captured while a reply is timed.
            most = next(size for size in NODES if size >= budget)
            graphs.target.prepare([size for size in NODES if size <= most])
            return Engine(graphs.target, proposer, policy)

        self.engine(name, engine)
        for graphs in made:
            graphs.release()

    def eagle3(self, head: PairProposer, budgets: Sequence[int]) -> None:
        for budget in budgets:
            self.graphs(f"eagle3, graphs, {budget} nodes", lambda: head, budget)


@torch.inference_mode()
def grown(bench: Bench) -> Iterator[Table]:
    """MEASURED tokens per second: the receptionist's own acceptance at the large shape's cost."""
    grown, head = grown_pair(bench)
    target, room = grown.target, pool_tokens(bench)
    ways = Decoding(bench, SMALL, target, asked(bench, 12 if bench.device.type == "cuda" else 1))
    yield ways.table
    ways.graphs(PLAIN, NoProposer, 1)
    ways.eagle3(head, bench.sizes.budgets)
    ways.engine("plain, eager", lambda: Engine(target, NoProposer(), FixedPolicy(1)))
    for name, make, budget in (
        ("suffix", SuffixProposer, 16),
        ("recycling", RecyclingProposer, 24),
        ("medusa", lambda: grow_medusa(bench.model / "medusa", grown), 24),
        ("mtp", lambda: grow_module(bench.model / "mtp", load_target(bench.model, pool_tokens=16), grown, room), 8),
        ("draft model of 1B", lambda: _draft_model(bench, target), 8),
        ("suffix+eagle3", lambda: merged(head), 24),
    ):
        ways.graphs(f"{name}, graphs, {budget} nodes", make, budget)
    ways.engine("eagle3, eager loop, 24 nodes", lambda: Engine(target, head, FixedPolicy(24)))


@torch.inference_mode()
def grown_large(bench: Bench) -> Iterator[Table]:
    """The same of 70B in FP8, plain and with EAGLE-3."""
    bench.needs_memory(82e9)
    bench.needs_products()
    bench.drop()
    room = 8192
    grown = _grow(bench, bench.model, bench.sizes.large, room, "fp8")
    ways = Decoding(bench, LARGE, grown.target, asked(bench, 6 if bench.device.type == "cuda" else 1))
    yield ways.table
    ways.graphs(PLAIN, NoProposer, 1)
    ways.eagle3(grow_head(bench.model / "eagle3", grown, room), bench.sizes.budgets[-3:])


def _draft_model(bench: Bench, target: Decoder) -> Proposer:
    from engine.proposers.draft_model import DraftModelProposer  # needs tokenizers, and nothing else here does

    return DraftModelProposer(grown_draft(bench), target.vocab_size)


def merged(head: PairProposer) -> Proposer:
    pool = head.pool
    second = PairProposer("eagle3", head.head, pool_tokens=pool.num_pages * pool.page_tokens, source=1)
    return Cascade([SuffixProposer(), second])


def _decode(bench: Bench, engine: Engine, questions: Sequence[Prompt], way: Way) -> None:
    """Whole replies, to the token that ends them: what a model says behind that is nobody's acceptance."""
    stop = stop_tokens(bench.model)
    for number, prompt in enumerate(questions):
        if bench.left < 0:
            break
        for timed in (False, True) if number == 0 else (True,):  # once to warm up
            session = engine.open("bench", prompt.ids)
            turn = engine.submit(session, Sampling(), max_tokens=bench.sizes.reply_tokens, stop_tokens=stop)
            while turn.num_tokens == 0:
                engine.step([Work(session, max_tokens=4096)])
            before, counted, started = turn.num_tokens, turn.stats.steps, time.perf_counter()
            while turn.finish is None:
                engine.step([Work(session)])
            if timed:
                way.seconds += time.perf_counter() - started
                way.tokens += turn.num_tokens - before
                way.steps += turn.stats.steps - counted
                way.said.append(turn.tokens)
            engine.close(session)
