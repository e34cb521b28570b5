"""What sharing beginnings saves, and what it costs a CPU where the pages lie apart.

    python -m bench.prefixes [--calls N] [--placed N] [--rounds N]

Tokens: recorded calls (evals/calls), each a tenant's, placed several times: how many tokens of their prompts were not
computed. Time: a call that begins like one before it, whose beginning is computed again, shared in the pages where it
lies, or copied to pages of its own; interleaved, in an order that turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from itertools import islice
from pathlib import Path

import torch

from bench import harness
from bench.hibernation.wakes import LINE_TOKENS, NODES, REPLY_TOKENS, host_of, run, timed_reply
from engine import records
from engine.config import EngineConfig
from engine.engine import Engine
from engine.host import EngineHost
from engine.load import load_proposer, load_target_for
from engine.policy import FixedPolicy
from engine.prefixes import Prefixes
from engine.sampling import Sampling
from engine.text.chat import Chat
from evals.calls import RecordedCall, read
from service.client_events import Open
from service.conversation import Conversation, load_chat
from service.items import ToolDefinition

CONTEXTS = (200, 800)
WAYS = ("computed", "pages shared", "own pages")


def host_for(model: Path, own_runs: bool) -> EngineHost:
    config = EngineConfig(str(model), f"suffix+eagle3:{model / 'eagle3'}")
    target = load_target_for(config)
    engine = Engine(target, load_proposer(config, target), FixedPolicy(NODES), coupled=config.couples)
    return host_of(model, engine, target, None, prefixes=Prefixes(engine, own_runs=own_runs))


def saved_tokens(model: Path, calls: int, placed: int) -> list[list[object]]:
    """(how often each call was placed, tokens of its prompts, those computed, share saved), after each time."""
    host, chat = host_for(model, own_runs=True), load_chat(str(model))
    rows: list[list[object]] = []
    for time_ in range(1, placed + 1):
        for call in islice(read(), calls):
            _hold(host, chat, call)
        beat = host.beat()
        total = beat.prefilled_tokens + beat.shared_tokens
        rows.append([time_, total, beat.prefilled_tokens, beat.shared_tokens / total])
    return rows


def _hold(host: EngineHost, chat: Chat, call: RecordedCall) -> None:
    """All the caller says, each turn answered with two tokens: what counts here are the prompts."""
    tools = tuple(ToolDefinition(tool["name"], tool["description"], tool["parameters"]) for tool in call.tools)
    conversation = Conversation.opened(chat, Open(system=call.system, tools=tools))
    preamble = records.Preamble(call.name, conversation.preamble)
    host.handle(records.Open("call", conversation.tokens, 1, preamble=preamble))
    log = conversation.length
    for number, turn in enumerate(call.turns, start=1):
        said = (*conversation.user_tokens(turn.text), *conversation.prompt)
        if log + len(said) + 2 >= host.engine.target.max_context_tokens:
            break
        host.handle(records.Submit("call", number, log, said, Sampling(), 2))
        run(host)
        log = len(host.engine.session("call").tokens)
    host.handle(records.Close("call"))


def measure_ways(model: Path, rounds: int) -> list[list[object]]:
    """(tokens, way, ms until the beginning is there, ms to the first token and per token after it), and what the two
    shared ways take over a computed one, paired.
    """
    shared, own = host_for(model, own_runs=False), host_for(model, own_runs=True)
    hosts = {"computed": own, "pages shared": shared, "own pages": own}
    gold = harness.prompts(harness.load_tokenizer(model), harness.HELD_OUT, 40)
    tokens = [token for prompt in gold for token in prompt.ids]
    rows: list[list[object]] = []
    for context in CONTEXTS:
        prompt, preamble = tuple(tokens[:context]), records.Preamble("", context)
        for host in (shared, own):
            host.handle(records.Open("first", prompt, preamble=preamble))
            run(host)
        found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
        for number in range(rounds + 1):
            line = tuple(tokens[context + number : context + number + LINE_TOKENS])
            for at in range(len(WAYS)):
                way = WAYS[(at + number) % len(WAYS)]
                figures = _one(hosts[way], prompt, None if way == "computed" else preamble, line)
                if number:  # the first warms up
                    found[way].append(figures)
        for host in (shared, own):
            host.handle(records.Close("first"))
        rows += [_row(context, way, found) for way in WAYS]
    return rows


def _one(
    host: EngineHost, prompt: tuple[int, ...], preamble: records.Preamble | None, line: tuple[int, ...]
) -> tuple[float, float, float]:
    started = time.thread_time()
    host.handle(records.Open("call", prompt, preamble=preamble))
    run(host)
    ready = time.thread_time() - started
    first, last = timed_reply(host, "call", len(prompt), line)
    host.handle(records.Close("call"))
    run(host)
    return ready, first, (last - first) / (REPLY_TOKENS - 1)


def _row(context: int, way: str, found: dict[str, list[tuple[float, float, float]]]) -> list[object]:
    medians = [1e3 * statistics.median(figure) for figure in zip(*found[way], strict=True)]
    pairs = list(zip(found[way], found["computed"], strict=True))
    ratios = [harness.interval([own[at] / computed[at] for own, computed in pairs]) for at in (1, 2)]
    return [context, way, *medians, *(f"{mid:.2f} [{low:.2f}, {high:.2f}]" for mid, low, high in ratios)]


HEADER = [
    "tokens",
    "the beginning is",
    "ready ms",
    "first token ms",
    "per token ms",
    "first / computed",
    "per / computed",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("models/receptionist"))
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--placed", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ways = measure_ways(arguments.model, arguments.rounds)
    print(harness.table(HEADER, ways), flush=True)
    tokens = saved_tokens(arguments.model, arguments.calls, arguments.placed)
    header = ["each call placed, times", "tokens of prompts so far", "computed", "share saved"]
    text = (
        f"{harness.table(header, tokens)}\n\nThe first {arguments.calls} recorded calls, each a tenant of its own with "
        f"instructions of its own.\n\n{harness.table(HEADER, ways)}\n\nMedians of {arguments.rounds} rounds, CPU time "
        "of the engine's thread; ratios are paired, with their 95 % interval."
    )
    harness.save("prefixes", "Beginnings that calls share", text, {"tokens": tokens, "ways": ways})


if __name__ == "__main__":
    main()
