"""MEASURED tokens per second: the embedded model grown to large shapes, plain and with every drafter of ours."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.gpu.calls import asked
from bench.gpu.stages import Bench, Table
from bench.gpu.steps import pool_tokens
from bench.gpu.targets import LARGE, SMALL
from bench.grow.exact import Grown, grow_target
from bench.grow.exact_drafters import grow_head, grow_medusa, grow_module
from bench.harness import Prompt
from engine.engine import Engine, Work
from engine.graphs.draft import GraphProposer
from engine.graphs.engine import GraphEngine
from engine.graphs.steps import Graphs
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


@torch.inference_mode()
def grown(bench: Bench) -> list[Table]:
    """MEASURED tokens per second: the receptionist's own acceptance at the large shape's cost."""
    grown, head = grown_pair(bench)
    target, room = grown.target, pool_tokens(bench)
    questions = asked(bench, 6 if bench.device.type == "cuda" else 1)
    rows = [_decoded(bench, "plain, eager", Engine(target, NoProposer(), FixedPolicy(1)), questions)]
    rows.append(_by_graphs(bench, "plain, graphs", target, NoProposer(), 1, questions))
    rows += _with_eagle3(bench, target, head, bench.sizes.budgets, questions)
    from engine.proposers.draft_model import DraftModelProposer  # needs tokenizers, and nothing else here does

    small = load_target(bench.model, pool_tokens=16)
    module = grow_module(bench.model / "mtp", small, grown, room)
    for name, proposer, budget in (
        ("suffix", SuffixProposer(), 16),
        ("recycling", RecyclingProposer(), 24),
        ("medusa", grow_medusa(bench.model / "medusa", grown), 24),
        ("mtp", module, 8),
        ("draft model of 1B", DraftModelProposer(grown_draft(bench), target.vocab_size), 8),
        ("suffix+eagle3", merged(head), 24),
    ):
        rows.append(_by_graphs(bench, f"{name}, graphs, {budget} nodes", target, proposer, budget, questions))
    rows.append(_decoded(bench, "eagle3, eager loop, 24 nodes", Engine(target, head, FixedPolicy(24)), questions))
    return [_compared(bench, SMALL, rows)]


@torch.inference_mode()
def grown_large(bench: Bench) -> list[Table]:
    """The same of 70B in FP8, plain and with EAGLE-3."""
    bench.needs_memory(82e9)
    bench.drop()
    room = 8192
    grown = _grow(bench, bench.model, bench.sizes.large, room, "fp8")
    head = grow_head(bench.model / "eagle3", grown, room)
    questions = asked(bench, 3 if bench.device.type == "cuda" else 1)
    rows = [_by_graphs(bench, "plain, graphs", grown.target, NoProposer(), 1, questions)]
    rows += _with_eagle3(bench, grown.target, head, bench.sizes.budgets[-3:], questions)
    return [_compared(bench, LARGE, rows)]


def _with_eagle3(
    bench: Bench, target: Decoder, head: PairProposer, budgets: Sequence[int], questions: Sequence[Prompt]
) -> list[list[Any]]:
    names = [(f"eagle3, graphs, {budget} nodes", budget) for budget in budgets]
    return [_by_graphs(bench, name, target, head, budget, questions) for name, budget in names]


def _by_graphs(
    bench: Bench, name: str, target: Decoder, proposer: Proposer, budget: int, questions: Sequence[Prompt]
) -> list[Any]:
    """As ``_decoded``: in cycles where the drafter is a pair head, else with static forwards."""
    if bench.left < 0:
        return [name, *[float("nan")] * 3, "", []]
    graphs = Graphs(target, proposer, budgets=(max(2, budget),), most_windows=1)
    policy = FixedPolicy(budget)
    if isinstance(graphs.proposer, GraphProposer):
        engine: Engine = GraphEngine(graphs, policy)
    else:
        engine = Engine(graphs.target, proposer, policy)
    row = _decoded(bench, name, engine, questions)
    graphs.release()
    return row


def _compared(bench: Bench, shape: str, rows: list[list[Any]]) -> Table:
    base = next((row[1] for row in rows if row[0] == "plain, graphs"), float("nan"))
    said = rows[0][5]
    for row in rows:
        row[4] = row[1] / base
        row[5] = f"{sum(a == b for a, b in zip(row[5], said, strict=False))}/{len(row[5])}"
        bench.figures[f"grown {shape} tokens_s {row[0]}"] = row[1]
    header = ["way", "tokens/s", "tokens a step", "ms a step", "x plain, graphs", f"same text as {rows[0][0]}"]
    title = f"MEASURED on the embedded model grown to {shape}, greedy: the acceptance is the receptionist's"
    return Table(title, header, rows)


def merged(head: PairProposer) -> Proposer:
    pool = head.pool
    second = PairProposer("eagle3", head.head, pool_tokens=pool.num_pages * pool.page_tokens, source=1)
    return Cascade([SuffixProposer(), second])


def _decoded(bench: Bench, name: str, engine: Engine, questions: Sequence[Prompt]) -> list[Any]:
    """[name, tokens/s, tokens a step, ms a step, -, replies]: from the second step of each reply on."""
    tokens, steps, seconds, said = 0, 0, 0.0, []
    for number, prompt in enumerate(questions):
        if bench.left < 0:
            break
        for timed in (False, True) if number == 0 else (True,):  # once to warm up
            session = engine.open("bench", prompt.ids)
            turn = engine.submit(session, Sampling(), max_tokens=bench.sizes.reply_tokens)
            while turn.num_tokens == 0:
                engine.step([Work(session, max_tokens=4096)])
            before, counted, started = turn.num_tokens, turn.stats.steps, time.perf_counter()
            while turn.finish is None:
                engine.step([Work(session)])
            if timed:
                seconds += time.perf_counter() - started
                tokens += turn.num_tokens - before
                steps += turn.stats.steps - counted
                said.append(turn.tokens)
            engine.close(session)
    if not steps:
        return [name, *[float("nan")] * 3, "", []]
    return [name, tokens / seconds, tokens / steps, 1e3 * seconds / steps, "", said]
