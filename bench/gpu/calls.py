"""Whole replies and turns: tokens per second that are measured, and the wait for a first token."""

from __future__ import annotations

import asyncio
import importlib.util
import statistics
import time
from collections.abc import Iterator

import torch

from bench.gpu.stages import Bench, NotRun, Table
from bench.gpu.steps import graph_engine, led_by, small_pair
from bench.gpu.targets import CONTEXT
from bench.harness import IN_DOMAIN, REPLY_ROOM, Prompt, load_tokenizer, prompts
from engine.engine import Work
from engine.sampling import Sampling

FINAL = 8
"""Tokens of a committed turn that were not heard before."""


def asked(bench: Bench, count: int) -> list[Prompt]:
    """Prompts of recorded calls that leave room for a reply in the shape that is measured. Raises NotRun where there is
    nothing to read them with.
    """
    try:
        tokenizer = load_tokenizer(bench.model)
    except ImportError as error:
        raise NotRun(f"prompts are read with transformers' tokenizer: {error}") from error
    room = min(2048, bench.sizes.small.max_positions) - REPLY_ROOM
    found = prompts(tokenizer, IN_DOMAIN, count)
    return [prompt for prompt in found if len(prompt.ids) < room][::3][:count]


@torch.inference_mode()
def first_token(bench: Bench) -> Iterator[Table]:
    """From the committed turn to its first token, inside the engine, behind a warm history."""
    target, head = small_pair(bench)
    engine = graph_engine(target, head, max(bench.sizes.budgets))
    histories = led_by(CONTEXT, bench.sizes.histories)
    header = ["history", "median ms", "p95 ms", f"p95 x that behind {histories[0]}"]
    yield (table := Table(f"First token of an {FINAL}-token final on a warm call, inside the engine", header))
    base: dict[int, float] = {}
    for history in histories:
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
            bench.figures[f"first_p95_ms {history}"] = base[history]
            growth = base[history] / base[histories[0]] if histories[0] in base else float("nan")
            table.rows.append([history, statistics.median(times), base[history], growth])
    engine.graphs.release()


def grpc(bench: Bench) -> list[Table]:
    """The same over local gRPC, on the embedded model: what the service adds."""
    missing = [name for name in ("grpc", "opentelemetry", "redis") if importlib.util.find_spec(name) is None]
    if missing:
        raise NotRun(f"{', '.join(missing)} not installed here")
    try:
        from bench.first_token import REPLY_TOKENS, TURNS, one_turn, opening
        from firstword import Client
        from firstword.serve import local_server, settings
    except ImportError as error:
        raise NotRun(str(error)) from error

    bench.drop()  # the server is a process of its own, with a model of its own
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
