"""Time to the first token of a turn against the length of the call, over gRPC, beside a stateless peer.

    python -m bench.first_token [--repeats N]

A call of 1 to 40 turns with a fixed number of tokens a turn. For each length, three figures from one run: what a client
sees between sending a committed turn and receiving its first text; the bare engine forward of the same window behind
the same history; and transformers' ``generate`` given the whole conversation again.
"""

from __future__ import annotations

import asyncio
import statistics
import time

import matplotlib
import torch

from engine.interfaces import Target, Window
from engine.tree import DraftTree
from firstword import Client

matplotlib.use("Agg")

TURNS = (1, 5, 10, 20, 30, 40)
USER_TEXT = "could you tell me what time you open on monday please"
REPLY_TOKENS = 16
SYSTEM = "You answer the telephone of a small shop."


async def over_grpc(address: str, turns: int, repeats: int) -> list[list[float]]:
    """Seconds from a committed turn to its first text, per turn number, over ``repeats`` calls."""
    seconds: list[list[float]] = [[] for _ in range(turns)]
    async with Client(address) as client:
        for _ in range(repeats):
            async with client.call(system=SYSTEM, max_tokens=REPLY_TOKENS) as call:
                for turn in range(turns):
                    started = time.perf_counter()
                    first = None
                    async for event in await call.final(USER_TEXT):
                        if first is None and getattr(event, "text", ""):
                            first = time.perf_counter() - started
                    if first is not None:
                        seconds[turn].append(first)
                    await asyncio.sleep(0.03)  # the caller listens; whatever the drafter has to catch up on is done
    return seconds


@torch.inference_mode()
def bare_forward(target: Target, history: int, window: int, repeats: int) -> float:
    """Median seconds of one forward of ``window`` tokens behind ``history`` tokens, and its argmax."""
    cache = target.new_cache()
    chain = DraftTree.chain(torch.arange(history) % target.vocab_size)
    cache.reserve(history)
    target.forward([Window(cache, chain, "none")])
    cache.commit(list(range(history)))
    given = DraftTree.chain(torch.arange(window) % target.vocab_size)
    seconds = []
    for _ in range(repeats + 3):
        cache.reserve(window)
        started = time.perf_counter()
        logits = target.forward([Window(cache, given, "last")])[0].logits
        assert logits is not None
        int(logits.argmax())
        seconds.append(time.perf_counter() - started)
    cache.close()
    return statistics.median(seconds[3:])
