"""Seconds per token at batch one: plain, our policy, fixed trees, and transformers, interleaved in one run.

    python -m bench.decode [--embedded-prompts N] [--grown-prompts N]

On the embedded model verification is not free, so the policy is judged by not losing to plain decoding. On the grown
copy of it (``bench.grow``), a step is bound by memory as on a GPU, and drafting is judged by what it gains.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import grow, harness
from bench.peers import TransformersPeer
from engine.config import EngineConfig
from engine.costs import measure_costs
from engine.engine import Engine
from engine.load import load_proposer, load_target_for
from engine.policy import FixedPolicy, MeasuredPolicy, StepCosts
from engine.proposers.none import NoProposer
from engine.sampling import Sampling

GREEDY = Sampling()


@dataclass(frozen=True)
class Timed:
    """One reply: its ids, the seconds after the first token and the forwards that took."""

    tokens: list[int]
    seconds: float
    forwards: int

    @property
    def per_token(self) -> float:
        return self.seconds / max(1, len(self.tokens) - 1)


Mode = Callable[[harness.Prompt], Timed]


def engine_mode(engine: Engine, stop: frozenset[int], max_tokens: int) -> Mode:
    def reply(prompt: harness.Prompt) -> Timed:
        run = harness.run_turn(engine, prompt.ids, GREEDY, stop=stop, max_tokens=max_tokens)
        return Timed(run.tokens, run.decode_seconds, run.turn.stats.steps - 1)

    return reply


def peer_mode(peer: TransformersPeer, max_tokens: int, prompt_lookup: int | None) -> Mode:
    def reply(prompt: harness.Prompt) -> Timed:
        tokens, _, seconds = peer.reply(prompt.ids, max_tokens, prompt_lookup=prompt_lookup)
        return Timed(tokens, seconds, 0)

    return reply


def build_modes(model: Path, dtype: str, max_tokens: int, trees: tuple[int, ...]) -> tuple[dict[str, Mode], StepCosts]:
    """Every way of decoding on one checkpoint, over one copy of our weights and one of transformers'."""
    stop = harness.stop_tokens(model)
    config = EngineConfig(str(model), str(model / "eagle3"), dtype=dtype, pool_tokens=8192)
    target = load_target_for(config)
    head = load_proposer(config, target)
    costs = measure_costs(target, head)
    peer = TransformersPeer(model, getattr(torch, dtype), stop)
    modes = {
        "plain": engine_mode(Engine(target, NoProposer(), FixedPolicy(1)), stop, max_tokens),
        "policy": engine_mode(Engine(target, head, MeasuredPolicy(costs)), stop, max_tokens),
    }
    for nodes in trees:
        modes[f"EAGLE-3, {nodes} nodes"] = engine_mode(Engine(target, head, FixedPolicy(nodes)), stop, max_tokens)
    modes["transformers greedy"] = peer_mode(peer, max_tokens, None)
    modes["transformers prompt lookup"] = peer_mode(peer, max_tokens, 10)
    return modes, costs


def interleave(modes: dict[str, Mode], prompts: list[harness.Prompt], seed: int = 0) -> dict[str, list[Timed]]:
    """Every mode on every prompt, in an order drawn anew for each prompt, after one reply each to warm up."""
    rng = random.Random(seed)
    for mode in modes.values():
        mode(prompts[0])
    results: dict[str, list[Timed]] = {name: [] for name in modes}
    for prompt in prompts:
        for name in rng.sample(list(modes), len(modes)):
            results[name].append(modes[name](prompt))
    return results


def summarise(results: dict[str, list[Timed]]) -> list[list[Any]]:
    """Per mode: ms per token, tokens per forward, and paired speed ratios to plain and to transformers greedy."""
    plain, peer = results["plain"], results["transformers greedy"]
    rows: list[list[Any]] = []
    for name, runs in results.items():
        kept = [i for i, run in enumerate(runs) if len(run.tokens) > 4]
        tokens = sum(len(runs[i].tokens) - 1 for i in kept)
        forwards = sum(runs[i].forwards for i in kept)
        to_plain = harness.interval([plain[i].per_token / runs[i].per_token for i in kept])
        to_peer = harness.interval([peer[i].per_token / runs[i].per_token for i in kept])
        same = sum(runs[i].tokens == plain[i].tokens for i in range(len(runs)))
        rows.append(
            [
                name,
                1e3 * sum(runs[i].seconds for i in kept) / tokens,
                tokens / forwards if forwards else "",
                "{:.2f} [{:.2f}, {:.2f}]".format(*to_plain),
                "{:.2f} [{:.2f}, {:.2f}]".format(*to_peer),
                f"{same}/{len(runs)}",
            ]
        )
    return rows


HEADER = ["mode", "ms per token", "tokens per forward", "x plain", "x transformers greedy", "same text as plain"]


def cost_table(costs: StepCosts) -> str:
    rows = [[n, 1e3 * v, 1e3 * d] for n, v, d in zip(costs.nodes, costs.verify, costs.draft, strict=True)]
    return harness.table(["nodes", "verify ms", "draft ms"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("models/receptionist"))
    parser.add_argument("--grown", type=Path, default=Path("build/grown"))
    parser.add_argument("--embedded-prompts", type=int, default=60)
    parser.add_argument("--grown-prompts", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts: list[str] = []
    data: dict[str, Any] = {}
    jobs = [("embedded", arguments.model, "float32", arguments.embedded_prompts, (5, 8, 24))]
    if arguments.grown_prompts:
        grow.grow(arguments.model, arguments.grown)
        jobs.append(("grown", arguments.grown, "bfloat16", arguments.grown_prompts, (8, 16, 24, 32)))
    for name, model, dtype, count, trees in jobs:
        tokenizer = harness.load_tokenizer(model)
        prompts = harness.prompts(tokenizer, harness.IN_DOMAIN, count)
        prompts = random.Random(1).sample(prompts, count)
        modes, costs = build_modes(model, dtype, 96, trees)
        rows = summarise(interleave(modes, prompts))
        parts += [f"## {name}, {dtype}", harness.table(HEADER, rows), cost_table(costs)]
        data[name] = {"rows": rows, "nodes": costs.nodes, "verify": costs.verify, "draft": costs.draft}
        print(parts[-2], flush=True)
    harness.save("decode", "Decoding at batch one", "\n\n".join(parts), data)


if __name__ == "__main__":
    main()
