"""What self-speculation costs per token against the length of the session: adding a token, drafting, taking one back.

    python -m bench.suffix [--model DIR]

The text is calls like those of the embedded model, one after the other, so that matches are as long and as many as
they are in use. Medians over windows of tokens at the end of the text.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench import harness
from engine.proposers.suffix import SuffixDraft, SuffixProposer
from training.dialogues import dialogue

LENGTHS = (1_000, 3_000, 10_000, 30_000, 100_000)
WINDOW, WINDOWS, BUDGET = 50, 21, 16


def text(model: Path, count: int) -> list[int]:
    """At least ``count`` tokens of calls."""
    tokenizer = harness.load_tokenizer(model)
    ids: list[int] = []
    number = 0
    while len(ids) < count:
        call = dialogue(harness.SEED + number)
        ids += tokenizer.apply_chat_template(call.messages, tools=call.tools, return_dict=False)
        number += 1
    return ids


def microseconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return 1e6 * (time.perf_counter() - started) / WINDOW


def measure(ids: list[int], length: int) -> list[float]:
    """Microseconds per token of append, propose and truncate behind ``length`` tokens, and of a fork, per session."""
    proposer = SuffixProposer()
    draft = proposer.start()
    assert isinstance(draft, SuffixDraft)
    draft.extend(ids[:length])
    index = draft.index
    window = ids[length : length + WINDOW]
    times: dict[str, list[float]] = {"append": [], "propose": [], "truncate": [], "fork": []}

    def append() -> None:
        for token in window:
            index.append(token)

    def propose() -> None:
        for token in window:
            proposer.propose([draft], [token], [None], BUDGET)

    for _ in range(WINDOWS):
        times["append"].append(microseconds(append))
        times["propose"].append(microseconds(propose))
        times["truncate"].append(microseconds(lambda: index.truncate(length)))
        times["fork"].append(microseconds(lambda: draft.fork().close()) * WINDOW)
    return [statistics.median(found) for found in times.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("models/receptionist"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ids = text(arguments.model, LENGTHS[-1] + WINDOW)
    header = ["tokens in the session", "append us", "propose us", "truncate us", "fork and close us"]
    rows = [[length, *measure(ids, length)] for length in LENGTHS]
    body = harness.table(header, rows) + f"\n\nPer token, median of {WINDOWS} windows of {WINDOW}; {BUDGET} nodes."
    harness.save("suffix", "What self-speculation costs", body, {"header": header, "rows": rows})


if __name__ == "__main__":
    main()
