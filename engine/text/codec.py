"""A model's tokenizer: text to ids and back. Knows no conversation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from engine.errors import ModelError
from engine.models.config import read_json


class Codec:
    """The tokenizer of a Hugging Face directory.

    Content never turns into markup: what a caller says is encoded as plain text even where it spells a special token.
    """

    def __init__(self, hf: PreTrainedTokenizerFast, stop_tokens: frozenset[int]) -> None:
        self.hf = hf
        self.stop_tokens = stop_tokens
        self._backend: Tokenizer = hf.backend_tokenizer
        added = {token.content for token in hf.added_tokens_decoder.values()}
        self._markup = re.compile("|".join(re.escape(text) for text in sorted(added, key=len, reverse=True)) or r"(?!)")

    @staticmethod
    def load(directory: Path | str, vocab_size: int) -> Codec:
        """Raises ModelError where there is no tokenizer, or one that has ids beyond the model's ``vocab_size``."""
        directory = Path(directory)
        try:
            hf = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # transformers raises whatever its backends raise
            raise ModelError(f"no tokenizer could be loaded from {directory}: {error}") from error
        if not isinstance(hf, PreTrainedTokenizerFast):
            raise ModelError(f"the tokenizer in {directory} has no fast (tokenizers) form")
        highest = max(hf.get_vocab().values())
        if highest >= vocab_size:
            raise ModelError(f"the tokenizer in {directory} has id {highest}, the model only {vocab_size} embeddings")
        return Codec(hf, _stop_tokens(directory, hf))

    def encode(self, markup: str) -> list[int]:
        """Ids of text in which special tokens are meant as such."""
        return self._backend.encode(markup, add_special_tokens=False).ids

    def is_plain(self, content: str) -> bool:
        """Whether the content spells no special token."""
        return self._markup.search(content) is None

    def cut_at_markup(self, text: str) -> list[str]:
        """The text in pieces: special tokens, and what lies between them."""
        pieces, start = [], 0
        for match in self._markup.finditer(text):
            pieces += [text[start : match.start()], match.group()]
            start = match.end()
        return [piece for piece in [*pieces, text[start:]] if piece]

    def encode_around(self, before: str, content: str, after: str) -> list[int]:
        """Ids of markup, content and markup. Content that spells a special token is encoded as plain text."""
        if self.is_plain(content):
            return self.encode(before + content + after)
        return self.encode(before) + self.encode_plain(content) + self.encode(after)

    def encode_plain(self, content: str) -> list[int]:
        """Ids of content alone; whatever spells a special token is broken up after its first character."""
        ids: list[int] = []
        while (match := self._markup.search(content)) is not None:
            ids += self.encode(content[: match.start() + 1])
            content = content[match.start() + 1 :]
        return ids + self.encode(content)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, special tokens left out."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def stream(self) -> IncrementalDecoder:
        return IncrementalDecoder(self._backend)

    def text_ends(self, ids: Sequence[int]) -> list[int]:
        """For each id of a reply, the code points of its text that are complete once that id is there."""
        stream, ends, length = self.stream(), [], 0
        for token in ids:
            length += len(stream.push(token))
            ends.append(length)
        return ends


class IncrementalDecoder:
    """Ids in, text out as soon as it is whole characters. Special tokens give no text.

    Text that is out stays as it was. A tokenizer with byte fallback decodes a run of bytes as a whole, so bytes that
    complete no character can spoil those before them, which are spoken already; then the text goes on with what the ids
    since then spell by themselves.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._stream = DecodeStream(skip_special_tokens=True)
        self._pending: list[int] = []  # ids since text last came out

    def push(self, token: int) -> str:
        self._pending.append(token)
        try:
            text = self._stream.step(self._backend, token)
        except Exception:  # nothing narrower is raised: "Invalid prefix encountered"
            self._stream = DecodeStream(skip_special_tokens=True)
            text = self._stream.step(self._backend, self._pending)
        if not text:
            return ""
        self._pending.clear()
        return text


def _stop_tokens(directory: Path, hf: PreTrainedTokenizerFast) -> frozenset[int]:
    """Whatever ends a reply, from generation_config.json, config.json and the tokenizer."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        if (directory / name).exists():
            value = read_json(directory / name).get("eos_token_id")
            found.update(value if isinstance(value, list) else [] if value is None else [value])
    if hf.eos_token_id is not None:
        found.add(hf.eos_token_id)
    if not found:
        raise ModelError(f"{directory} names no token that ends a reply (eos_token_id)")
    return frozenset(found)
