"""Conversations as the tokens of a target's own chat template, with the tokens of replies marked. Owns the file format
that users write; knows no model.

A file has one JSON object a line: `messages` as `apply_chat_template` takes them (role, content, and tool calls where
there are any), and `tools` where there are any.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from training.corpus import Corpus

MAX_LENGTH = 2048
HELD_OUT_EVERY = 20
"""One conversation in so many is never trained and only validated on."""


class Encoder:
    """A target's tokenizer and chat template, and the tokens that end its replies."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory)
        if not self.tokenizer.is_fast or not self.tokenizer.chat_template:
            raise ValueError(f"{directory}: a fast tokenizer with a chat template is needed")
        ends = {self.tokenizer.eos_token_id}
        if (directory / "generation_config.json").is_file():
            listed = GenerationConfig.from_pretrained(directory).eos_token_id
            ends |= set(listed if isinstance(listed, list) else [listed])
        self._ends = ends - {None}

    def encode(self, conversation: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids [n] (int32), and 1 for each that belongs to a reply, its end included [n] (int8).

        A reply begins where the template asks for it behind the messages before, and ends with the target's token for
        that, or where the template has shown it. Where a template shows the messages before otherwise once the reply is
        there (it may drop earlier reasoning, or move the system prompt), and where it cannot show them alone (before a
        greeting), that reply is not marked.
        """
        messages, tools = with_parsed_arguments(conversation["messages"]), conversation.get("tools") or None
        render = self.tokenizer.apply_chat_template
        text = render(messages, tools=tools, tokenize=False)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, starts = np.asarray(encoded["input_ids"], np.int32), [start for start, _ in encoded["offset_mapping"]]
        said = np.zeros(len(ids), np.int8)
        for at, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            try:
                before = render(messages[:at], tools=tools, tokenize=False, add_generation_prompt=True)
            except (TemplateError, ValueError):  # many templates show nothing before a caller has spoken
                continue
            if not text.startswith(before):
                continue
            shown = render(messages[: at + 1], tools=tools, tokenize=False)
            stop = int(np.searchsorted(starts, len(shown))) if text.startswith(shown) else len(ids)
            first = last = int(np.searchsorted(starts, len(before)))
            while last < stop - 1 and int(ids[last]) not in self._ends:
                last += 1
            said[first : last + 1] = 1
        return ids, said


def with_parsed_arguments(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with tool calls' arguments as objects, as templates want them; OpenAI's format has them as text."""
    parsed = []
    for message in messages:
        calls = []
        for call in message.get("tool_calls") or []:
            function = call.get("function", call)
            arguments = function.get("arguments", {})
            read = json.loads(arguments) if isinstance(arguments, str) else arguments
            calls.append({**call, "function": {**function, "arguments": read}})
        rest = {key: value for key, value in message.items() if key != "tool_calls"}
        parsed.append({**rest, "tool_calls": calls} if calls else rest)  # an empty list breaks some templates
    return parsed


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The conversations of a file. Raises ValueError with the number of a line that holds none."""
    with path.open() as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                conversation = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: no JSON: {error}") from error
            if not isinstance(conversation, dict) or not isinstance(conversation.get("messages"), list):
                raise ValueError(f"{path}, line {number}: an object with a list `messages` was expected")
            yield conversation


def load(path: Path, directory: Path, max_length: int = MAX_LENGTH) -> Corpus:
    """A file's conversations in the target's tokens; longer ones end after `max_length`, and those without a reply are
    left out. Raises ValueError where nothing is left.
    """
    encoder, rows = Encoder(directory), []
    for number, item in enumerate(read_lines(path), start=1):
        try:
            rows.append(tuple(part[:max_length] for part in encoder.encode(item)))
        except (TemplateError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, conversation {number}: the chat template does not take it: {error}") from error
    kept = [(ids, said) for ids, said in rows if said.any()]
    if not kept:
        raise ValueError(f"{path}: the chat template marks no reply in any of {len(rows)} conversations")
    return Corpus.of(kept)


def split(corpus: Corpus) -> tuple[Corpus, Corpus]:
    """(to train on, held out): one conversation in HELD_OUT_EVERY, and at least one, is held out.

    Raises ValueError for fewer than two conversations.
    """
    count = len(corpus)
    if count < 2:
        raise ValueError("at least two conversations are needed: one to train on, one held out")
    held_out = set(range(min(HELD_OUT_EVERY, count) - 1, count, HELD_OUT_EVERY))
    return corpus.only([i for i in range(count) if i not in held_out]), corpus.only(sorted(held_out))
