"""The embedded model's tool calls on conversations it never saw: per-field exact match, right tool, and how many bits
its spoken turns carry.

`python -m evals.tool_calls --model DIR`. Greedy, gold history. Owns the measure; the conversations are
`training.dialogues`'.

A gold call is first forced through the model: where every token is the model's own greedy choice, the greedy reply
*is* the gold call. Only the others are generated. Fields count over the union of gold and said arguments, so that an
argument too many is an error as well.

Bits are counted twice: "bits of the gold turn" are the cross-entropy of the wording in the data; the figure that is
judged (at least 8 bits are wanted) is that of the model's own turns, sampled at temperature 1.
"""

import argparse
import json
import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from training.dialogues import Dialogue, Split, dialogue
from training.tokenizer import CALL, CALL_END, segments

FIRST_SEED = 30_000_000
SPLITS = {
    "as trained (new calls)": Split(),
    "held names": Split(names=True),
    "held paraphrases": Split(paraphrases=True),
    "held names and paraphrases": Split(names=True, paraphrases=True),
    "held intents, names and paraphrases": Split(names=True, paraphrases=True, intents=True),
}
JUDGED = "held names and paraphrases"
MAX_NEW_TOKENS = 160
SAMPLED_TURNS = 200


@dataclass
class Score:
    """Counts of one split."""

    calls: int = 0
    valid_json: int = 0
    right_tool: int = 0
    whole_call: int = 0
    fields: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    spoken_turns: int = 0
    called_instead: int = 0
    gold_bits: float = 0.0
    sampled_bits: float | None = None
    misses: list[dict[str, Any]] = field(default_factory=list)

    @property
    def field_match(self) -> float:
        return sum(self.right.values()) / max(1, sum(self.fields.values()))


def said_call(text: str) -> dict[str, Any] | None:
    """The call in a generated turn, or None where there is no valid one."""
    if not text.startswith(CALL) or CALL_END not in text:
        return None
    try:
        call = json.loads(text[len(CALL) : text.index(CALL_END)])
    except json.JSONDecodeError:
        return None
    valid = isinstance(call, dict) and isinstance(call.get("name"), str) and isinstance(call.get("arguments"), dict)
    return call if valid else None


def count(score: Score, gold: dict[str, Any], said: dict[str, Any] | None, text: str) -> None:
    """Add one gold call and what was said for it."""
    tool = said["name"] if said else None
    arguments = said["arguments"] if said and tool == gold["name"] else {}
    score.calls += 1
    score.valid_json += said is not None
    score.right_tool += tool == gold["name"]
    score.whole_call += said == gold
    for key in gold["arguments"] | arguments:
        score.fields[key] += 1
        in_both = key in gold["arguments"] and key in arguments
        score.right[key] += in_both and gold["arguments"][key] == arguments[key]
    if said != gold:
        score.misses.append({"gold": gold, "said": said if said else text})


@torch.no_grad()
def judge(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, item: Dialogue, score: Score) -> None:
    """Score every assistant turn of one conversation."""
    pieces = segments(item.messages, item.tools)
    rows = [tokenizer(piece.text, add_special_tokens=False)["input_ids"] for piece in pieces]
    starts = np.cumsum([0] + [len(row) for row in rows])
    ids = torch.tensor([[token for row in rows for token in row]])
    log_probs = model(ids).logits[0].float().log_softmax(-1)
    call_id = tokenizer.convert_tokens_to_ids(CALL)
    calls = iter(call["function"] for message in item.messages for call in message.get("tool_calls", []))
    for piece, start, row in zip(pieces, starts, rows, strict=False):
        if piece.kind == "context":
            continue
        predicted = log_probs[start - 1 : start - 1 + len(row)]
        if piece.kind == "text":
            target = torch.tensor(row)
            score.spoken_turns += 1
            score.called_instead += int(predicted[0].argmax()) == call_id
            score.gold_bits -= float(predicted.gather(1, target[:, None]).sum()) / math.log(2)
            continue
        gold = next(calls)
        if predicted.argmax(-1).tolist() == row:
            count(score, gold, gold, "")
            continue
        out = model.generate(ids[:, :start], max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        text = tokenizer.decode(out[0, start:], skip_special_tokens=True)
        count(score, gold, said_call(text), text)


@torch.no_grad()
def sampled_bits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, split: Split) -> float:
    """Mean bits of the model's own spoken turns, sampled at temperature 1 after gold histories."""
    torch.manual_seed(0)
    bits, turns, seed = 0.0, 0, FIRST_SEED
    while turns < SAMPLED_TURNS:
        item = dialogue(seed, split)
        seed += 1
        pieces = segments(item.messages, item.tools)
        ids = tokenizer("".join(piece.text for piece in pieces[:1]), add_special_tokens=False)["input_ids"]
        for piece in pieces[1:]:
            if piece.kind == "text":
                prompt = torch.tensor([ids])
                out = model.generate(prompt, max_new_tokens=MAX_NEW_TOKENS, do_sample=True, temperature=1.0, top_k=0)
                log_probs = model(out).logits[0, len(ids) - 1 : -1].float().log_softmax(-1)
                bits -= float(log_probs.gather(1, out[0, len(ids) :, None]).sum()) / math.log(2)
                turns += 1
            ids += tokenizer(piece.text, add_special_tokens=False)["input_ids"]
    return bits / turns


def evaluate(directory: Path, calls: int) -> dict[str, Score]:
    """Scores of every split: at least `calls` gold calls for the judged split, a third of that for the others."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    scores: dict[str, Score] = defaultdict(Score)
    for name, split in SPLITS.items():
        wanted, seed = calls if name == JUDGED else calls // 3, FIRST_SEED
        while scores[name].calls < wanted:
            judge(model, tokenizer, dialogue(seed, split), scores[name])
            seed += 1
        score = scores[name]
        print(
            f"{name}: fields {score.field_match:.4f}, tool {score.right_tool / score.calls:.4f}, {score.calls} calls",
            flush=True,
        )
    scores[JUDGED].sampled_bits = sampled_bits(model, tokenizer, SPLITS[JUDGED])
    return dict(scores)


def as_json(scores: dict[str, Score]) -> dict[str, Any]:
    """The figures, with the first misses of each split for reading."""
    return {
        name: {
            "calls": s.calls,
            "field_exact_match": s.field_match,
            "right_tool": s.right_tool / s.calls,
            "whole_call": s.whole_call / s.calls,
            "valid_json": s.valid_json / s.calls,
            "fields": {
                key: {"count": s.fields[key], "exact_match": s.right[key] / s.fields[key]} for key in sorted(s.fields)
            },
            "spoken_turns": s.spoken_turns,
            "called_where_gold_speaks": s.called_instead / max(1, s.spoken_turns),
            "bits_of_the_gold_turn": s.gold_bits / max(1, s.spoken_turns),
            "bits_of_the_sampled_turn": s.sampled_bits,
            "misses": s.misses[:40],
        }
        for name, s in scores.items()
    }


def as_markdown(scores: dict[str, Score]) -> str:
    """Two tables: by split, and by field and split."""
    names = list(scores)
    lines = [
        "| split | calls | fields exact | right tool | whole call | valid JSON | bits of the gold turn |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {name} | {s.calls} | {s.field_match:.3f} | {s.right_tool / s.calls:.3f} "
            f"| {s.whole_call / s.calls:.3f} | {s.valid_json / s.calls:.3f} "
            f"| {s.gold_bits / max(1, s.spoken_turns):.1f} |"
            for name, s in scores.items()
        ),
        "",
        "| field | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for key in sorted({key for s in scores.values() for key in s.fields}):
        cells = (
            f"{s.right[key] / s.fields[key]:.3f} ({s.fields[key]})" if s.fields[key] else "-" for s in scores.values()
        )
        lines.append(f"| {key} | " + " | ".join(cells) + " |")
    said = scores[JUDGED].sampled_bits
    lines += [
        "",
        f"The model's own spoken turns, sampled at temperature 1, carry {said:.1f} bits each (at least 8 are wanted)."
        if said is not None
        else "",
    ]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/receptionist"))
    parser.add_argument("--out", type=Path, default=Path("evals/results"))
    parser.add_argument("--calls", type=int, default=1200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    scores = evaluate(arguments.model, arguments.calls)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "tool_calls.json").write_text(json.dumps(as_json(scores), indent=1) + "\n")
    (arguments.out / "tool_calls.md").write_text(as_markdown(scores))
    print(as_markdown(scores))


if __name__ == "__main__":
    main()
