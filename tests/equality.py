"""The whole equality suite: `python -m tests.equality`. Slices of it run in `make test`.

greedy: text against transformers' `generate`, in float64, whatever tree was drafted. sampled: text with an oracle and
with the EAGLE-3 head against the same text without a drafter, in the float32 that is served. drafters: greedy and
sampled text with every drafter of the engine, two cascades and one that switches the drafter at random steps inside a
turn, against the same text without one, in float64 and in float32. In float32 a decision closer than 1e-4 may go either
way: such replies are listed, and in float64 they must agree. scripts: random calls of partials, eager ends, resumes,
interrupts, tools, side questions, edits and dying engines, after which the next reply must be that of a fresh session
with the same ids; half of them with the drafter that is served, in float64. interrupts: replies, and one with text
around tool calls, spoken over at each of their tokens, with what was heard told in each of the three ways, after which
the same holds; half of them drafted, likewise. Exit status 1 on any difference, where an accepted length never
occurred, and where a drafter had no part in its row.
"""

from __future__ import annotations

import argparse
import shutil
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
from tests.engine import checkpoints, drafters, equal
from tests.engine.embedded import HEAD, MODEL, codec
from tests.engine.equal import TREES, Count
from tests.engine.oracle import OracleProposer
from tests.service import interrupts
from tests.service.calls import drafting_engine
from tests.service.test_call_properties import Calls, DraftedCalls, run_scripts

PARTS = ("greedy", "sampled", "drafters", "scripts", "interrupts")


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


def drafted(turns: int, seeds: int, ranks: int, kept: Path, *, resume: bool) -> list[Count]:
    """The embedded model with every drafter. resume: whether turns that an earlier run has finished are not made again;
    the code must be the same.
    """
    if not resume:
        shutil.rmtree(kept, ignore_errors=True)
    asked = drafters.held_out(turns)
    print(f"{turns} held-out turns, {sum(prompt.tool for prompt in asked)} of them with a tool call", flush=True)
    found = []
    for counts in drafters.rows([prompt.ids for prompt in asked], seeds, ranks, kept):
        found.append(counts)
        print(f"\r{len(found)} of {turns} turns", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    counts = drafters.merged(found)
    report(counts)
    return counts


def scripts(count: int) -> None:
    """So many random calls, half of them drafted."""
    for calls, share in ((Calls, count - count // 2), (DraftedCalls, count // 2)):
        run_scripts(share, calls)
        print(f"scripts: {share} random calls, {calls.accepted} tokens drafted, 0 differences", flush=True)


def spoken_over(replies: int) -> list[str]:
    """So many replies, half of them drafted; where that never was."""
    times, _ = interrupts.run(share := replies - replies // 2)
    print(f"interrupts: {share} replies spoken over {times} times, 0 differences", flush=True)
    times, guessed = interrupts.run(share := replies // 2, drafting_engine)
    print(f"interrupts: {share} replies spoken over {times} times, {guessed} tokens drafted, 0 differences", flush=True)
    return ["interrupts: nothing was drafted"] if share and not guessed else []


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


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="parts to run; all by default")
    parser.add_argument("--prompts", type=int, default=200, help="greedy, for each model and tree")
    parser.add_argument("--sampled-prompts", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=20, help="sampled, for each prompt and temperature")
    parser.add_argument("--head", type=Path, default=HEAD)
    parser.add_argument("--without-head", action="store_true", help="sampled: the oracle alone")
    parser.add_argument("--turns", type=int, default=50, help="drafters, for each drafter")
    parser.add_argument("--turn-seeds", type=int, default=10, help="drafters, for each turn and temperature")
    parser.add_argument("--ranks", type=int, default=2, help="drafters: processes that share the turns")
    parser.add_argument("--scripts", type=int, default=500, help="scripts: random calls")
    parser.add_argument("--interrupted", type=int, default=20, help="interrupts: replies")
    parser.add_argument("--kept", type=Path, default=Path("build/equality"), help="drafters: where finished turns are")
    parser.add_argument("--resume", action="store_true", help="drafters: take finished turns from there")
    return parser.parse_args()


def unready(given: argparse.Namespace) -> list[str]:
    """Checkpoints that the chosen parts need and that are not there."""
    found = []
    if "sampled" in given.only and not given.without_head and not given.head.is_dir():
        found.append(f"no EAGLE-3 head in {given.head}; --without-head leaves it out")
    if "drafters" in given.only:
        found += [f"no drafter in {path}" for path in drafters.missing_checkpoints()]
    return found


def main() -> int:
    given = arguments()
    torch.set_num_threads(1)
    if absent := unready(given):
        print("\n".join(absent))
        return 1
    started = time.monotonic()
    counts: list[Count] = []
    faults: list[str] = []
    if "greedy" in given.only:
        counts += greedy(given.prompts)
        faults += missing(counts)
    if "sampled" in given.only:
        rows = sampled(given.sampled_prompts, given.seeds, None if given.without_head else given.head)
        counts += rows
        faults += drafters.idle(rows)
    if "drafters" in given.only:
        rows = drafted(given.turns, given.turn_seeds, given.ranks, given.kept, resume=given.resume)
        counts += rows
        faults += drafters.idle(rows)
    if "scripts" in given.only:
        scripts(given.scripts)
    if "interrupts" in given.only:
        faults += spoken_over(given.interrupted)
    print("".join(f"{fault}\n" for fault in faults), end="")
    different = sum(len(count.differences) for count in counts)
    if counts:
        replies, tokens = sum(count.replies for count in counts), sum(count.tokens for count in counts)
        close = sum(len(count.close) for count in counts)
        print(f"{different} differences in {replies} replies of {tokens} tokens; {close} decided by rounding")
    print(f"{(time.monotonic() - started) / 60:.1f} min")
    return 1 if different or faults else 0


if __name__ == "__main__":
    sys.exit(main())
