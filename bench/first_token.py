"""Time to the first token of a turn against the length of the call, over gRPC, beside a stateless peer.

    python -m bench.first_token [--repeats N]

A call of 1 to 40 turns, each of which adds the same number of tokens. Four figures from one run, interleaved: what a
client sees between sending a committed turn and receiving its first text, with the drafter and without; the bare
engine forward of the same window behind the same history; and transformers' ``generate`` given the whole conversation
again, as a stateless server does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import torch

from bench import harness
from bench.peers import TransformersPeer
from engine.config import EngineConfig
from engine.interfaces import Target, Window
from engine.load import load_target_for
from engine.tree import DraftTree
from firstword import Call, Client, TextDelta, Tool, ToolCall
from firstword.serve import local_server, settings

matplotlib.use("Agg")
from matplotlib import pyplot

TURNS = 40
SHOWN = (1, 5, 10, 20, 30, 40)
USER_TEXT = "Could you tell me what time you open on Monday please?"
SAID = "We open at 9 am on Monday, and there is parking right behind the building."
"""What each reply is replaced by, so that every turn adds the same number of tokens whatever was generated."""
REPLY_TOKENS = 16
PAUSE_S = 0.03
"""The caller listens: what the drafter and the prefill of the said text have to catch up on is done meanwhile."""


@dataclass
class Measured:
    """Seconds of every repeat, by turn number (from 1)."""

    drafted: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    undrafted: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    bare: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    stateless: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    windows: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Per turn: tokens in the cache when it was committed, and tokens to compute for it."""


def opening(model: Path) -> dict[str, Any]:
    """System prompt and tools of a call in the form that the embedded model was trained on."""
    example = json.loads((model / "examples.jsonl").read_text().splitlines()[0])
    functions = [tool["function"] for tool in example["tools"]]
    tools = [Tool(f["name"], f.get("description", ""), f["parameters"]) for f in functions]
    return {"system": example["messages"][0]["content"], "tools": tools}


async def one_turn(call: Call) -> tuple[float, int, int]:
    """(seconds to the first text, cached tokens, prompt tokens); the turn is then made to have its fixed length."""
    started = time.perf_counter()
    turn = await call.final(USER_TEXT)
    first = None
    async for event in turn:
        if first is None and (isinstance(event, ToolCall) or (isinstance(event, TextDelta) and event.text)):
            first = time.perf_counter() - started
    assert first is not None
    assert turn.report is not None
    await call.interrupt(heard_code_points=0)
    await call.say(SAID)
    await asyncio.sleep(PAUSE_S)
    return first, turn.report.usage.cached_tokens, turn.report.usage.prompt_tokens


async def one_call(address: str, begin: dict[str, Any], seconds: dict[int, list[float]], measured: Measured) -> None:
    async with Client(address) as client, client.call(**begin, max_tokens=REPLY_TOKENS, seed=0) as call:
        for turn in range(1, TURNS + 1):
            first, cached, prompt = await one_turn(call)
            seconds[turn].append(first)
            measured.windows[turn] = (cached, prompt - cached)


@torch.inference_mode()
def bare_forward(target: Target, history: int, window: int) -> float:
    """Seconds of one forward of ``window`` tokens behind ``history`` tokens, its argmax on the host."""
    cache = target.new_cache()
    chain = DraftTree.chain(torch.arange(history) % target.vocab_size)
    cache.reserve(history)
    target.forward([Window(cache, chain, "none")])
    cache.commit(list(range(history)))
    given = DraftTree.chain(torch.arange(window) % target.vocab_size)
    cache.reserve(window)
    started = time.perf_counter()
    logits = target.forward([Window(cache, given, "last")])[0].logits
    assert logits is not None
    int(logits.argmax())
    seconds = time.perf_counter() - started
    cache.close()
    return seconds


async def measure(model: Path, repeats: int) -> Measured:
    """Every figure ``repeats`` times, one after the other, so that what disturbs the machine disturbs all of them."""
    measured, begin = Measured(), opening(model)
    target = load_target_for(EngineConfig(str(model), None, pool_tokens=4096))
    peer = TransformersPeer(model, torch.float32, harness.stop_tokens(model))
    with_drafter, without = settings(model=str(model)), settings(model=str(model), drafter="")
    async with local_server(print, with_drafter) as drafting, local_server(print, without) as plain:
        await one_call(drafting.address, begin, defaultdict(list), measured)  # to warm up
        await one_call(plain.address, begin, defaultdict(list), measured)
        for repeat in range(repeats):
            pair = [(drafting, measured.drafted), (plain, measured.undrafted)]
            for server, seconds in pair if repeat % 2 else reversed(pair):
                await one_call(server.address, begin, seconds, measured)
            for turn in SHOWN:
                history, window = measured.windows[turn]
                measured.bare[turn].append(bare_forward(target, history, window))
                prompt = [1 + token % 1000 for token in range(history + window)]
                measured.stateless[turn].append(peer.reply(prompt, 1)[1])
            print(f"repeat {repeat + 1} of {repeats}", flush=True)
    return measured


def rows_of(measured: Measured) -> list[list[Any]]:
    """Per shown turn, in milliseconds: medians, and the ratios that matter."""
    rows = []
    for turn in SHOWN:
        history, window = measured.windows[turn]
        drafted, undrafted, bare, stateless = (
            1e3 * statistics.median(seconds[turn])
            for seconds in (measured.drafted, measured.undrafted, measured.bare, measured.stateless)
        )
        rest = (drafted - 1.0) / bare
        rows.append([turn, history, window, drafted, undrafted, bare, rest, stateless, stateless / drafted])
    return rows


HEADER = [
    "turn",
    "cached tokens",
    "window",
    "Firstword ms",
    "drafter off ms",
    "bare forward ms",
    "(Firstword - 1 ms) / bare",
    "stateless transformers ms",
    "x earlier",
]


def plot(rows: list[list[Any]], path: Path) -> None:
    """Milliseconds against tokens in the conversation."""
    figure, axis = pyplot.subplots(figsize=(7, 4))
    for column, label in ((7, "transformers generate, stateless"), (3, "Firstword over gRPC"), (5, "bare forward")):
        axis.plot([row[1] for row in rows], [row[column] for row in rows], marker="o", label=label)
    axis.set(xlabel="tokens of the conversation so far", ylabel="ms to the first token", yscale="log")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("models/receptionist"))
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measured = asyncio.run(measure(arguments.model, arguments.repeats))
    rows = rows_of(measured)
    on, off = measured.drafted, measured.undrafted
    ratios = [a / b for turn in on for a, b in zip(on[turn], off[turn], strict=True)]
    cost = harness.interval(ratios)
    body = (
        f"{harness.table(HEADER, rows)}\n\n"
        f"Drafter on over drafter off, paired by turn and repeat: {cost[0]:.3f} [{cost[1]:.3f}, {cost[2]:.3f}] "
        f"({len(ratios)} pairs). Medians of {arguments.repeats} repeats.\n\n![](first_token.svg)"
    )
    harness.RESULTS.mkdir(exist_ok=True)
    plot(rows, harness.RESULTS / "first_token.svg")
    harness.save("first_token", "Time to the first token", body, {"rows": rows, "drafter_cost": cost})


if __name__ == "__main__":
    main()
