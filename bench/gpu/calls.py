"""Whole replies and turns: tokens per second that are measured, and the wait for a first token."""

from __future__ import annotations

import asyncio
import importlib.util
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from bench.gpu.stages import Bench, NotRun, Table
from bench.gpu.steps import graph_engine, pool_tokens, small_pair
from bench.grow.exact import grow_exact
from bench.harness import IN_DOMAIN, REPLY_ROOM, Prompt, load_tokenizer, prompts
from engine.engine import Engine, Work
from engine.graphs.target import GraphTarget
from engine.interfaces import Proposer
from engine.models.decoder import Decoder
from engine.policy import FixedPolicy
from engine.proposers.cascade import Cascade
from engine.proposers.none import NoProposer
from engine.proposers.pairs.proposer import PairProposer
from engine.proposers.recycling import RecyclingProposer
from engine.proposers.suffix import SuffixProposer
from engine.sampling import Sampling

FINAL = 8
"""Tokens of a committed turn that were not heard before."""


def grown_pair(bench: Bench) -> tuple[Decoder, PairProposer]:
    """The embedded model and its head, grown to 8B."""

    def make() -> tuple[Decoder, PairProposer]:
        return grow_exact(
            bench.model,
            bench.sizes.small,
            device=bench.device,
            dtype=bench.sizes.dtype,
            pool_tokens=pool_tokens(bench),
            kernels=bench.kernels,
        )

    pair: tuple[Decoder, PairProposer] = bench.held(("grown", bench.kernels), make)
    return pair


def asked(bench: Bench, count: int) -> list[Prompt]:
    """Prompts of recorded calls that leave room for a reply in the shape that is measured."""
    room = min(2048, bench.sizes.small.max_positions) - REPLY_ROOM
    found = prompts(load_tokenizer(bench.model), IN_DOMAIN, count)
    return [prompt for prompt in found if len(prompt.ids) < room][::3][:count]


@torch.inference_mode()
def grown(bench: Bench) -> list[Table]:
    """MEASURED tokens per second: the receptionist's own acceptance at the large shape's cost."""
    target, head = grown_pair(bench)
    questions = asked(bench, 8 if bench.device.type == "cuda" else 1)
    ways: list[tuple[str, Engine]] = [
        ("plain, eager", Engine(target, NoProposer(), FixedPolicy(1))),
        ("plain, graphs", graph_plain(target)),
        ("suffix, eager loop", Engine(target, SuffixProposer(), FixedPolicy(16))),
        ("recycling, eager loop", Engine(target, RecyclingProposer(), FixedPolicy(24))),
        ("eagle3, eager loop, 24 nodes", Engine(target, head, FixedPolicy(24))),
        ("suffix+eagle3, eager loop, 24 nodes", Engine(target, merged(head), FixedPolicy(24), coupled=True)),
    ]
    rows = [_decoded(bench, name, engine, questions) for name, engine in ways]
    for budget in bench.sizes.budgets:
        engine = graph_engine(target, head, budget)
        rows.append(_decoded(bench, f"eagle3, graphs, {budget} nodes", engine, questions))
        engine.graphs.release()
    base = next((row[1] for row in rows if row[0] == "plain, graphs" and row[1] == row[1]), float("nan"))
    said = rows[0][5]
    for row in rows:
        row[4] = row[1] / base
        row[5] = f"{sum(a == b for a, b in zip(row[5], said, strict=False))}/{len(row[5])}"
        bench.figures[f"grown tokens_s {row[0]}"] = row[1]
    header = ["way", "tokens/s", "tokens a step", "ms a step", "x plain, graphs", "same text as plain"]
    title = "MEASURED on the embedded model grown to 8B, greedy: the acceptance is the receptionist's"
    return [Table(title, header, rows)]


def graph_plain(target: Decoder) -> Engine:
    return Engine(GraphTarget(target, (), most_windows=1), NoProposer(), FixedPolicy(1))


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


@torch.inference_mode()
def first_token(bench: Bench) -> list[Table]:
    """From the committed turn to its first token, inside the engine, behind a warm history."""
    target, head = small_pair(bench)
    engine = graph_engine(target, head, max(bench.sizes.budgets))
    rows, base = [], {}
    for history in bench.sizes.histories:
        session = engine.open("bench", [(11 * i) % target.vocab_size for i in range(history)])
        while session.num_pending > 1:
            engine.step([Work(session, max_tokens=bench.sizes.prefill)])
        engine.catch_up(session)
        taken = []
        for repeat in range(bench.sizes.repeats + 3):
            if bench.left < 0:
                break
            engine.append(session, [(repeat + i) % target.vocab_size for i in range(FINAL)])
            started = time.perf_counter()
            turn = engine.submit(session, Sampling(), max_tokens=200)
            while turn.num_tokens == 0:
                engine.step([Work(session, max_tokens=bench.sizes.prefill)])
            taken.append(1e3 * (time.perf_counter() - started))
            engine.cancel(turn)
            engine.truncate(session, history)
        engine.close(session)
        if len(taken) > 3:
            times = sorted(taken[3:])  # the first ones capture the window's step
            base[history] = times[min(len(times) - 1, int(0.95 * len(times)))]
            rows.append([history, statistics.median(times), base[history], base[history] / min(base.values())])
    engine.graphs.release()
    header = ["history", "median ms", "p95 ms", "p95 x the shortest history's"]
    return [Table(f"First token of an {FINAL}-token final on a warm call, inside the engine", header, rows)]


def grpc(bench: Bench) -> list[Table]:
    """The same over local gRPC, on the embedded model: what the service adds."""
    missing = [name for name in ("grpc", "opentelemetry", "redis") if importlib.util.find_spec(name) is None]
    if missing:
        raise NotRun(f"{', '.join(missing)} not installed here")
    from bench.first_token import REPLY_TOKENS, TURNS, one_turn, opening
    from firstword import Client
    from firstword.serve import local_server, settings

    seconds: dict[int, float] = {}

    async def measure() -> None:
        chosen = settings(model=str(bench.model)) | {"FIRSTWORD_ENGINE__DEVICE": str(bench.device)}
        begin = opening(bench.model) | {"max_tokens": REPLY_TOKENS, "seed": 0}
        async with (
            local_server(lambda line: None, chosen) as server,
            Client(server.address) as client,
            client.call(**begin) as call,
        ):
            for turn in range(1, TURNS + 1):
                if bench.left < 5:
                    break
                seconds[turn], *_ = await one_turn(call)

    asyncio.run(measure())
    if not seconds:
        raise NotRun("the server was not ready within the time box")
    rows = [[turn, 1e3 * first] for turn, first in seconds.items() if turn in (1, 2, 3, 5, 10, 20, 40)]
    return [Table("First text over local gRPC, embedded model, one call", ["turn", "ms"], rows)]
