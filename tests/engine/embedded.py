"""The embedded model's directory and tokenizer, for tests that want real text."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from engine.grammar.library import GrammarLibrary
from engine.models.config import read_json
from engine.text.codec import Codec

MODEL = Path(__file__).resolve().parents[2] / "models" / "receptionist"
HEAD = MODEL / "eagle3"


@cache
def codec() -> Codec:
    return load_codec()


def load_codec() -> Codec:
    """A codec of one's own, for tests that change its tokenizer."""
    return Codec.load(MODEL, read_json(MODEL / "config.json")["vocab_size"])


@cache
def grammars() -> GrammarLibrary:
    return GrammarLibrary(codec(), read_json(MODEL / "config.json")["vocab_size"], torch.device("cpu"))
