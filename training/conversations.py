"""Conversations as the tokens of a target's own chat template, with the tokens of replies marked. Owns the file format
that users write; knows no model.

A file has one JSON object a line: `messages` as `apply_chat_template` takes them (role, content, and tool calls where
there are any), and `tools` where there are any.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import TemplateError
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from training.corpus import Corpus
from training.files import whole
from training.parallel import Ranks

MAX_LENGTH = 2048
HELD_OUT_EVERY = 20
"""One conversation in so many is never trained and only validated on."""


class Row(NamedTuple):
    """ids: int32 [n]. said: int8 [n], 1 for each token that belongs to a reply, its end included. replies: marked."""

    ids: np.ndarray
    said: np.ndarray
    replies: int


class Rendering(NamedTuple):
    """A text, its token ids [n], and where each of them begins in it."""

    text: str
    ids: np.ndarray
    starts: list[int]


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

    def key(self) -> str:
        """All that the tokens of a conversation depend on."""
        settings = [self.tokenizer.chat_template, self.tokenizer.special_tokens_map, sorted(self._ends)]
        return self.tokenizer.backend_tokenizer.to_str() + json.dumps(settings, default=str)

    def encode(self, conversation: dict[str, Any], max_length: int = MAX_LENGTH) -> list[Row]:
        """The whole conversation, then a row for each reply that is marked in a rendering of its own; rows end after
        `max_length`.

        A reply begins where the template asks for it behind the messages before, and ends with the target's token for
        that, or where the template has shown it. Where the template shows the two otherwise once more has been said
        (it may drop earlier reasoning, or move the system prompt), the reply is marked as it was seen when it was made.
        Where the template cannot show the messages before alone (before a greeting), the reply is not marked.
        """
        messages, tools = with_parsed_arguments(conversation["messages"]), conversation.get("tools") or None
        everything, spans, apart = self._rendering(self._render(messages, tools)), [], []
        for at, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            try:
                before = self._render(messages[:at], tools, add_generation_prompt=True)
            except (TemplateError, ValueError):  # many templates show nothing before a caller has spoken
                continue
            if span := self._verbatim(everything, before, message):
                spans.append(span)
                continue
            shown = everything.text if at + 1 == len(messages) else self._render(messages[: at + 1], tools)
            if everything.text.startswith(before) and everything.text.startswith(shown):
                spans.append(self._span(everything, len(before), len(shown)))
            elif reply := behind(before, shown, messages[:at], message):
                own = self._rendering(before + reply)
                apart.append(_row(own, [self._span(own, len(before), len(own.text))], max_length))
        return [_row(everything, spans, max_length), *apart]

    def _render(self, messages: list[dict[str, Any]], tools: list[Any] | None, **options: Any) -> str:
        return self.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **options)

    def _rendering(self, text: str) -> Rendering:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return Rendering(text, np.asarray(encoded["input_ids"], np.int32), [at for at, _ in encoded["offset_mapping"]])

    def _span(self, rendering: Rendering, start: int, stop: int) -> tuple[int, int]:
        """(first, last) token of a reply that begins at a place in the text: to its end, or before another place."""
        first, until = np.searchsorted(rendering.starts, [start, stop]).tolist()
        ends = np.flatnonzero(np.isin(rendering.ids[first:until], list(self._ends)))
        return first, first + int(ends[0]) if len(ends) else until - 1

    def _verbatim(self, everything: Rendering, before: str, message: dict[str, Any]) -> tuple[int, int] | None:
        """The span of a reply that a known end follows after its own words and nothing else: of no other message, then,
        and there is no need to see how the template shows the reply as the last.
        """
        if not everything.text.startswith(before):
            return None
        first, last = self._span(everything, len(before), len(everything.text))
        if last < first or int(everything.ids[last]) not in self._ends:
            return None
        return (
            (first, last) if everything.text[len(before) : everything.starts[last]].strip() == words(message) else None
        )


def _row(rendering: Rendering, spans: list[tuple[int, int]], max_length: int) -> Row:
    """spans: (first, last) token of each reply."""
    said = np.zeros(len(rendering.ids), np.int8)
    for first, last in spans:
        said[first : last + 1] = 1
    replies = sum(first <= min(last, max_length - 1) for first, last in spans)
    return Row(rendering.ids[:max_length], said[:max_length], replies)


def words(message: dict[str, Any]) -> str:
    """What a message says; nothing where its content is no text."""
    content = message.get("content")
    return content.strip() if isinstance(content, str) else ""


def behind(before: str, shown: str, asked: list[dict[str, Any]], reply: dict[str, Any]) -> str:
    """What a template shows of a reply: `shown` behind the prompt `before`, or, where it shows that otherwise by now,
    behind the words of the last message `asked` and what follows them. Nothing where that cannot be found.
    """
    if shown.startswith(before):
        return shown[len(before) :]
    last = words(asked[-1]) if asked else ""
    if not last or (start := before.rfind(last)) < 0:
        return ""
    tail = before[start:]
    place = shown.rfind(tail, 0, shown.rfind(words(reply)) if words(reply) in shown else None)
    return shown[place + len(tail) :] if place >= 0 else ""


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


@dataclass(frozen=True)
class Encoded:
    """A file's conversations in a target's tokens.

    rows: the weights are those of `Row.said`. of: int64 [rows], which conversation a row is of. replies, marked, apart:
    how many there are, are learned from, and are so in a row of their own.
    """

    rows: Corpus
    of: np.ndarray
    replies: int
    marked: int
    apart: int

    def __str__(self) -> str:
        return f"{self.marked:,} of {self.replies:,} replies marked, {self.apart:,} in a rendering of their own"

    def save(self, path: Path, key: str) -> None:
        counts = np.array([self.replies, self.marked, self.apart])
        parts = {"ids": self.rows.ids, "weights": self.rows.weights, "offsets": self.rows.offsets}
        with path.open("wb") as file:  # given a path, numpy would choose the suffix itself
            np.savez(file, **parts, of=self.of, counts=counts, key=np.array(key))

    @classmethod
    def load(cls, path: Path) -> "Encoded":
        with np.load(path) as arrays:
            rows = Corpus(arrays["ids"], arrays["weights"], arrays["offsets"])
            return cls(rows, arrays["of"], *arrays["counts"].tolist())


def load(path: Path, encoder: Encoder, max_length: int = MAX_LENGTH) -> Encoded:
    """A file's conversations; rows without a reply are left out. Raises ValueError where nothing is left."""
    rows, of, replies, apart, number = [], [], 0, 0, 0
    for number, item in enumerate(read_lines(path), start=1):
        try:
            first, *others = encoder.encode(item, max_length)
        except (TemplateError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, conversation {number}: the chat template does not take it: {error}") from error
        kept = [row for row in (first, *others) if row.said.any()]
        rows += kept
        of += [number] * len(kept)
        replies += sum(message["role"] == "assistant" for message in item["messages"])
        apart += sum(row.replies for row in others)
    if not rows:
        raise ValueError(f"{path}: the chat template marks no reply in any of {number} conversations")
    corpus = Corpus.of([(row.ids, row.said) for row in rows])
    return Encoded(corpus, np.array(of), replies, sum(row.replies for row in rows), apart)


def load_once(path: Path, directory: Path, max_length: int, store: Path, ranks: Ranks) -> Encoded:
    """`load` for the target in `directory`, by the first rank, which keeps it in `store` for the others and for later.

    The file, the tokenizer, its template or the length being another, it is encoded anew.
    """

    def keep() -> None:
        encoder = Encoder(directory)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        digest.update(f"{max_length} {encoder.key()}".encode())
        if store.exists():
            with np.load(store) as arrays:
                if str(arrays["key"]) == digest.hexdigest():
                    return
        store.parent.mkdir(parents=True, exist_ok=True)
        with whole(store) as part:
            load(path, encoder, max_length).save(part, digest.hexdigest())

    ranks.once(keep)
    return Encoded.load(store)


def split(encoded: Encoded) -> tuple[Corpus, Corpus]:
    """(to train on, held out): one conversation in HELD_OUT_EVERY, and at least one, is held out with all its rows.

    Raises ValueError for fewer than two conversations.
    """
    conversations = np.unique(encoded.of)
    if len(conversations) < 2:
        raise ValueError("at least two conversations are needed: one to train on, one held out")
    first = min(HELD_OUT_EVERY, len(conversations)) - 1
    held_out = np.isin(encoded.of, conversations[first::HELD_OUT_EVERY])
    trained, kept = (encoded.rows.only(np.flatnonzero(part).tolist()) for part in (~held_out, held_out))
    return trained, kept
