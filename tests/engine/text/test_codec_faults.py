"""Ids that spell no text, on a tokenizer with byte fallback: all are survived, and nothing else is lost."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from engine.text.codec import IncrementalDecoder

BYTES = [*range(0x0A, 0x0C), 0x20, 0x41, 0x80, 0x98, 0x9F, 0xA9, 0xC3, 0xE3, 0xF0, 0xFF]
PIECES = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in BYTES), "▁Hello", "▁wörld", "!", "a"]
WORDS = {"▁Hello": " Hello", "▁wörld": " wörld", "!": "!", "a": "a"}


def sentencepiece() -> Tokenizer:
    """Spaces and byte fallback as in Llama 2's and Mistral's tokenizers."""
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(PIECES)}, [], unk_token="<unk>"))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<s>"])
    return backend


BACKEND = sentencepiece()


def stream(pieces: list[str]) -> list[str]:
    decoder = IncrementalDecoder(BACKEND)
    return [decoder.push(PIECES.index(piece)) for piece in pieces]


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        # The newline is out when two thirds of a character follow: the tokenizer now takes all four for rubbish.
        (["<0x0A>", "<0xF0>", "<0x9F>", "a", "▁Hello"], ["\n", "", "", "\ufffd\ufffda", " Hello"]),
        (["▁Hello", "<0x0A>", "<0xFF>", "<s>", "▁Hello", "!"], ["Hello", "\n", "", "", "\ufffd Hello", "!"]),
        (["<0x0A>", "<0xFF>", "a", "<0x0A>", "<0xFF>", "a"], ["\n", "", "\ufffda", "\n", "", "\ufffda"]),
        (["<0xC3>", "<0xA9>", "<0xF0>", "a", "<0xC3>", "<0xA9>"], ["", "é", "", "\ufffda", "", "é"]),
    ],
)
def test_bytes_that_spoil_the_run_they_stand_in(pieces: list[str], said: list[str]) -> None:
    assert stream(pieces) == said


@given(st.lists(st.sampled_from(PIECES[1:]), max_size=25))
@settings(max_examples=500, deadline=None)
def test_any_ids_stream_and_every_word_comes_out_with_its_own_id(pieces: list[str]) -> None:
    said, whole = stream(pieces), BACKEND.decode([PIECES.index(piece) for piece in pieces])
    for piece, text in zip(pieces, said, strict=True):
        if piece in WORDS:
            assert text.endswith(WORDS[piece].strip())
        else:
            assert not text.endswith("\ufffd")  # it could still become a character
    assert len(re.findall("\ufffd", "".join(said))) <= sum(piece not in WORDS for piece in pieces)
    if "\ufffd" not in whole:
        assert "".join(said) == whole
