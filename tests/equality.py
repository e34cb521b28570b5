"""The whole equality suite: `python -m tests.equality`. Slices of it run in `make test`.

Greedy text against transformers' `generate`, in float64, whatever tree was drafted; and sampled text with a drafter
against the same text without one, in the float32 that is served. There a decision closer than 1e-4 may go either way:
such replies are made again in float64, where they must agree, and are listed. Exit status 1 on any difference, and
where an accepted length never occurred.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from bench.harness import table
from engine.interfaces import Proposer
from engine.models.decoder import Decoder, load_target
from engine.proposers.eagle3 import load_eagle3
from tests.engine import checkpoints, equal
from tests.engine.embedded import HEAD, MODEL, codec
from tests.engine.equal import TREES, Count
from tests.engine.oracle import OracleProposer


def embedded(dtype: torch.dtype) -> Decoder:
    return load_target(MODEL, dtype=dtype, pool_tokens=equal.POOL_TOKENS)


def greedy(prompts: int) -> list[Count]:
    """Every shape of target with random weights, and the embedded model on held-out calls."""
    counts = []
    for name in checkpoints.CONFIGS:
        with tempfile.TemporaryDirectory() as directory:
            model = checkpoints.write(name, Path(directory))
            target = load_target(directory, dtype=torch.float64, pool_tokens=equal.POOL_TOKENS)
        counts += equal.greedy_rows(name, target, model, equal.random_prompts(prompts), frozenset())
        report(counts[-len(TREES) :])
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float64).eval()
    asked = equal.embedded_prompts(prompts)
    counts += equal.greedy_rows("embedded", embedded(torch.float64), model, asked, codec().stop_tokens)
    report(counts[-len(TREES) :])
    return counts


def sampled(prompts: int, seeds: int, head: Path | None) -> list[Count]:
    """The embedded model with an oracle and with its own head."""
    target, exact = embedded(torch.float32), embedded(torch.float64)
    proposers: dict[str, Proposer] = {"oracle": OracleProposer(target.vocab_size, 0)}
    if head is not None:
        proposers["its own EAGLE-3 head"] = load_eagle3(head, target, pool_tokens=equal.POOL_TOKENS)
    asked = equal.embedded_prompts(13 * prompts)[::13]
    counts = equal.sampled_rows(target, exact, proposers, asked, seeds=seeds, stop=codec().stop_tokens)
    report(counts)
    return counts


def report(counts: list[Count]) -> None:
    header = ["model", "drafter", "replies", "tokens", "differences", "close", "ended by", "steps by accepted tokens"]
    rows = []
    for c in counts:
        lengths = " ".join(f"{length}:{c.lengths[length]}" for length in sorted(c.lengths))
        ended = " ".join(f"{name}:{n}" for name, n in sorted(c.finishes.items()))
        rows.append([c.model, c.drafter, c.replies, c.tokens, len(c.differences), len(c.close), ended, lengths or "-"])
    print(table(header, rows), flush=True)
    for c in counts:
        for kind, found in (("DIFFERENT", c.differences), ("decided by rounding", c.close)):
            print("".join(f"{kind}: {c.model}, {c.drafter}, {what}\n" for what in found), end="", flush=True)


def missing(counts: list[Count]) -> list[str]:
    """Accepted lengths that an oracle's trees allow and that never occurred."""
    return [
        f"{c.model}, {c.drafter}: no step accepted {absent}"
        for c, (nodes, _) in zip(counts, TREES * (len(counts) // len(TREES)), strict=True)
        if (absent := equal.missing_lengths(c, nodes))
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=200, help="greedy, for each model and tree")
    parser.add_argument("--sampled-prompts", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--head", type=Path, default=HEAD)
    parser.add_argument("--without-head", action="store_true", help="the oracle alone, where no head was trained yet")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.without_head and not arguments.head.is_dir():
        print(f"no EAGLE-3 head in {arguments.head}; --without-head leaves it out")
        return 1
    started = time.monotonic()
    greedily = greedy(arguments.prompts)
    counts = greedily + sampled(
        arguments.sampled_prompts, arguments.seeds, None if arguments.without_head else arguments.head
    )
    absent = missing(greedily)
    print("\n".join(absent))
    different = sum(len(count.differences) for count in counts)
    replies, tokens = sum(count.replies for count in counts), sum(count.tokens for count in counts)
    close = sum(len(count.close) for count in counts)
    print(
        f"{different} differences in {replies} replies of {tokens} tokens; {close} decided by rounding, the same in "
        f"float64; {(time.monotonic() - started) / 60:.1f} min"
    )
    return 1 if different or absent else 0


if __name__ == "__main__":
    sys.exit(main())
