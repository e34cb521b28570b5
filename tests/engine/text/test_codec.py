"""Ids to text and back: no half character leaves, and what a caller says never turns into markup."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from engine.errors import ModelError
from engine.text.codec import Codec, IncrementalDecoder
from tests.engine.embedded import MODEL, codec

SPECIAL = ["<|begin|>", "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
MARKS = [*SPECIAL, "<tool_call>", "</tool_call>"]
ODD = ["Crème brûlée", "😀👩\u200d👩\u200d👧", "日本語", "naïve", " I'm 3.50", "\n", "<|", "|>"]
WORDS = st.one_of(st.text(max_size=12), st.sampled_from(ODD))
TEXT = st.lists(WORDS, max_size=6).map("".join)
MARKUP = st.lists(st.one_of(WORDS, st.sampled_from(MARKS)), max_size=8).map("".join)


@given(TEXT)
@settings(max_examples=300, deadline=None)
def test_what_streams_out_is_the_text_in_whole_characters(text: str) -> None:
    ids = codec().encode_plain(text)
    assert codec().decode(ids) == text
    stream, said = codec().stream(), ""
    for number, token in enumerate(ids):
        said += stream.push(token)
        assert text.startswith(said)
        assert codec().text_ends(ids)[number] == len(said)
    assert said == text or text.endswith("\ufffd")  # which a stream cannot tell from half a character


def test_a_character_over_several_ids_comes_with_the_last_of_them() -> None:
    ids = codec().encode_plain("a😀é")
    assert len(ids) == 7  # bytes: the vocabulary knows neither
    stream = codec().stream()
    assert [stream.push(token) for token in ids] == ["a", "", "", "", "😀", "", "é"]
    assert codec().text_ends(ids) == [1, 1, 1, 1, 2, 2, 3]


@given(st.lists(st.integers(0, 2047), max_size=30))
@settings(max_examples=300, deadline=None)
def test_ids_that_are_no_valid_text_stream_out_as_they_decode(ids: list[int]) -> None:
    stream = codec().stream()
    said, whole = "".join(stream.push(token) for token in ids), codec().decode(ids)
    assert whole.startswith(said)
    assert set(whole[len(said) :]) <= {"\ufffd"}  # held back: half a character


def test_special_tokens_give_no_text() -> None:
    ids = [*codec().encode("<|assistant|>"), *codec().encode("Hi"), *codec().encode("<|end|>")]
    assert codec().decode(ids) == "Hi"
    assert codec().text_ends(ids) == [0, *codec().text_ends(codec().encode("Hi")), 2]


@given(MARKUP)
@settings(max_examples=300, deadline=None)
def test_content_never_turns_into_markup(content: str) -> None:
    added = set(codec().hf.added_tokens_decoder)
    ids = codec().encode_plain(content)
    assert not added & set(ids)
    assert codec().decode(ids) == content
    around = codec().encode_around("<|user|>", content, "<|end|>")
    assert [token for token in around if token in added] == codec().encode("<|user|><|end|>")
    assert around == codec().encode("<|user|>") + ids + codec().encode("<|end|>") or codec().is_plain(content)
    assert codec().is_plain(content) == (not any(mark in content for mark in MARKS))


@given(TEXT)
@settings(max_examples=100, deadline=None)
def test_plain_content_is_encoded_together_with_what_stands_around_it(text: str) -> None:
    if codec().is_plain(text):
        assert codec().encode_around("<|user|>", text, "<|end|>") == codec().encode(f"<|user|>{text}<|end|>")


def test_a_sentencepiece_like_tokenizer_streams_as_it_decodes() -> None:
    """Spaces and byte fallbacks that only a decoder over several ids puts right."""
    pieces = ["<unk>", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "▁Hello", "▁world", "!", "<0xC3>"]
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    stream = IncrementalDecoder(backend)
    assert [stream.push(token) for token in [5, 6, 1, 2, 3, 4, 7]] == ["Hello", " world", "", "", "", "😀", "!"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"):
        shutil.copy(MODEL / name, tmp_path / name)
    return tmp_path


def test_what_ends_a_reply_comes_from_every_place_that_names_it(directory: Path) -> None:
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    assert Codec.load(directory, 2048).stop_tokens == {2, 5, 6}
    (directory / "generation_config.json").unlink()
    assert Codec.load(directory, 2048).stop_tokens == {2}


def test_what_cannot_be_served_is_said_by_name(directory: Path) -> None:
    with pytest.raises(ModelError, match="has id 2047, the model only 2000"):
        Codec.load(directory, 2000)
    for name in ("config.json", "generation_config.json"):
        (directory / name).write_text("{}")
    settings_ = json.loads((directory / "tokenizer_config.json").read_text())
    del settings_["eos_token"]
    (directory / "tokenizer_config.json").write_text(json.dumps(settings_))
    with pytest.raises(ModelError, match="eos_token_id"):
        Codec.load(directory, 2048)
    (directory / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer could be loaded|no fast"):
        Codec.load(directory, 2048)
