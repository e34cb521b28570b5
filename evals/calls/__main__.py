"""Write the recorded calls.

`python -m evals.calls [--calls N] [--talkative N] [--out FILE]`. Deterministic: names and wordings that the embedded
model was never trained on.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from evals.calls import FILE, RecordedCall, to_line
from evals.calls.recogniser import speak
from training.dialogues import Split, dialogue
from training.files import whole

FIRST_SEED = 70_000_000
"""Apart from the calls of training, of the other evaluations and of the benchmarks."""
LONG_TURN = 60
"""Words that a talkative caller says before they let the agent speak."""


def record(number: int, *, talkative: bool) -> RecordedCall:
    """A call. A talkative caller says several of their lines in one go."""
    rng = random.Random(f"recorded call {number}")
    item = dialogue(FIRST_SEED + number, Split(names=True, paraphrases=True), intents=6 if talkative else None)
    lines = [message["content"] for message in item.messages if message["role"] == "user"]
    named = [call["function"]["name"] for message in item.messages for call in message.get("tool_calls") or ()]
    outputs = [message["content"] for message in item.messages if message["role"] == "tool"]
    says_stable = rng.random() < 0.5
    turns = tuple(speak(rng, line, says_stable=says_stable) for line in (_joined(lines) if talkative else lines))
    tools = [tool["function"] for tool in item.tools]
    name = f"talkative-{number:04}" if talkative else f"call-{number:04}"
    return RecordedCall(name, item.messages[0]["content"], tools, tuple(zip(named, outputs, strict=True)), turns)


def _joined(lines: list[str]) -> list[str]:
    """The lines in turns of at least LONG_TURN words, the last one apart."""
    turns, said = [], ""
    for line in lines:
        said = f"{said} {line}".strip()
        if len(said.split()) >= LONG_TURN:
            turns.append(said)
            said = ""
    return [*turns, said] if said else turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument(
        "--talkative", type=int, default=30, help="calls of callers who say much in one go, beside them"
    )
    parser.add_argument("--out", type=Path, default=FILE)
    given = parser.parse_args()
    calls = [record(number, talkative=False) for number in range(given.calls)]
    calls += [record(given.calls + number, talkative=True) for number in range(given.talkative)]
    with whole(given.out) as part:
        part.write_text("".join(to_line(call) + "\n" for call in calls), encoding="utf-8")
    turns = sum(len(call.turns) for call in calls)
    print(f"{len(calls)} calls with {turns} turns in {given.out}")


if __name__ == "__main__":
    main()
