"""The data stage: tokenizer, encoded training and validation sets, and conversations as JSON lines for the drafter's
training.

`python -m training.data --out DIR`. Deterministic.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

from transformers import AutoTokenizer

from training import tokenizer as tokens
from training.corpus import Corpus
from training.dialogues import Dialogue, Split, dialogue, drill
from training.files import whole

TOKENIZER_DIALOGUES = 6000
TRAIN_DIALOGUES, TRAIN_DRILLS = 60_000, 60_000
VALIDATION_DIALOGUES = 400
VALIDATION_SEED, HEAD_SEED = 10_000_000, 20_000_000
HEAD_DIALOGUES = 12_000
HELD_OUT = Split(names=True, paraphrases=True)


def _plain(dialogues: Iterator[Dialogue]) -> Iterator[str]:
    for item in dialogues:
        for segment in tokens.segments(item.messages, item.tools):
            yield from (piece for piece in re.split(r"<\|\w+\|>|</?tool_call>", segment.text) if piece)


def write_conversations(path: Path, dialogues: Iterator[Dialogue]) -> None:
    """One JSON object a line: `messages` and `tools`, as `apply_chat_template` takes them."""
    with path.open("w") as lines:
        for item in dialogues:
            lines.write(json.dumps({"messages": item.messages, "tools": item.tools}) + "\n")


def build(out: Path) -> None:
    """Write every file of the stage that is not there yet. A file is there whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "tokenizer" / "tokenizer.json").exists():
        with whole(out / "tokenizer") as part:
            tokens.train(_plain(dialogue(seed) for seed in range(TOKENIZER_DIALOGUES))).save_pretrained(part)
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    first = VALIDATION_SEED
    sets = {
        "valid": (dialogue(seed) for seed in range(first, first + VALIDATION_DIALOGUES)),
        "valid_held": (dialogue(seed, HELD_OUT) for seed in range(first, first + VALIDATION_DIALOGUES)),
        "drills": (drill(seed) for seed in range(TRAIN_DRILLS)),
        "train": (dialogue(seed) for seed in range(TRAIN_DIALOGUES)),
    }
    for name, dialogues in sets.items():
        if not (out / f"{name}.npz").exists():
            corpus = Corpus.encode(tokenizer, dialogues)
            with whole(out / f"{name}.npz") as part:
                corpus.save(part)
            print(f"{name}: {len(corpus)} conversations, {len(corpus.ids) / 1e6:.1f} M tokens", flush=True)
    if not (out / "conversations.jsonl").exists():
        with whole(out / "conversations.jsonl") as part:
            write_conversations(part, (dialogue(seed) for seed in range(HEAD_SEED, HEAD_SEED + HEAD_DIALOGUES)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    build(parser.parse_args().out)


if __name__ == "__main__":
    main()
