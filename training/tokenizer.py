"""The embedded model's tokenizer: byte-level BPE and the chat template. Owns how a conversation becomes text and
token ids; knows no model.

Choices that copying depends on: a digit is always one token, and a capitalised word never takes the space before it
into its tokens, so that a name has the same tokens after a space, after a quote and after a full stop.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 2048
MAX_LENGTH = 2048
BEGIN, PAD, END = "<|begin|>", "<|pad|>", "<|end|>"
CALL, CALL_END = "<tool_call>", "</tool_call>"
SPECIAL = (BEGIN, PAD, END, "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
TEMPLATE = Path(__file__).parent / "chat_template.jinja"

WORDS = "|".join(
    (
        r"\p{N}",
        r'"[:,] "?',  # JSON between two values
        r"[.,?!:;]+ (?=[\p{Lu}\p{N}])",  # the space before a capital belongs to the punctuation
        r" I(?:'\p{L}+)?(?!\p{L})",
        r"\p{Lu}\p{L}*(?:'\p{L}+)?",
        r" ?\p{Ll}[\p{L}_]*(?:'\p{L}+)?",
        r" ?[^\s\p{L}\p{N}]+",
        r"\s",
    )
)


def train(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer trained on `texts` (rendered conversations without special tokens)."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 2,  # the two tool call marks are added below, outside the special tokens
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[3:])})
    # Not "special": a parser reads them from the decoded text, as with Hermes and Qwen templates.
    tokenizer.add_tokens([CALL, CALL_END], special_tokens=False)
    tokenizer.chat_template = TEMPLATE.read_text().strip()
    return tokenizer


@dataclass(frozen=True)
class Segment:
    """A piece of a rendered conversation that starts and ends at a special token. `kind` is context, text (a spoken
    turn) or call.
    """

    text: str
    kind: str


def signature(function: dict[str, Any]) -> str:
    """A tool as the template shows it to the model: `move_appointment(id, date, time)`."""
    required = function["parameters"].get("required", [])
    parameters = (key + ("" if key in required else "?") for key in function["parameters"]["properties"])
    return f"{function['name']}({', '.join(parameters)})"


def segments(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[Segment]:
    """The chat template's text, cut where the loss changes; joined it equals `apply_chat_template` (tested)."""
    shown = "\nTools:" + "".join(" " + signature(tool["function"]) for tool in tools) if tools else ""
    out = []
    for index, message in enumerate(messages):
        content = message["content"] + (shown if index == 0 else "")
        if message["role"] != "assistant":
            out.append(Segment(f"{'' if index else BEGIN}<|{message['role']}|>{content}{END}", "context"))
            continue
        out.append(Segment("<|assistant|>", "context"))
        calls = message.get("tool_calls", [])
        content += "".join(f"{CALL}{json.dumps(call['function'], ensure_ascii=False)}{CALL_END}" for call in calls)
        out.append(Segment(content + END, "call" if calls else "text"))
    return out


TEXT_WEIGHT, CALL_WEIGHT, FIRST_WEIGHT = 1.0, 4.0, 4.0
"""Loss weights of a spoken token, a tool call's token, and of a turn's first token: equal for both kinds of turn, so
that the choice stays calibrated.
"""


def encode(
    tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, Any]], tools: list[dict[str, Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [n] (uint16) and the loss weight of each as a target [n] (float16; 0 where nothing is learned)."""
    pieces = segments(messages, tools)
    encoded = tokenizer.backend_tokenizer.encode_batch_fast([piece.text for piece in pieces], add_special_tokens=False)
    ids, weights = [], []
    for piece, encoding in zip(pieces, encoded, strict=True):
        ids.append(np.asarray(encoding.ids, np.uint16))
        weight = np.full(
            len(encoding.ids), {"context": 0.0, "text": TEXT_WEIGHT, "call": CALL_WEIGHT}[piece.kind], np.float16
        )
        if piece.kind != "context":
            weight[0] = FIRST_WEIGHT
        weights.append(weight)
    return np.concatenate(ids), np.concatenate(weights)
