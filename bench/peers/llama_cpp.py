"""llama.cpp as a peer, by its Python binding: plain greedy, and the speculation that the binding brings.

Neither ``llama-cpp-python`` nor ``gguf``, which writes its file, is a dependency; without them there is no such peer.
The binding's speculation is prompt lookup (``LlamaPromptLookupDecoding``), a chain verified in one forward. Any
callable from ids to ids can take its place, but the binding ships no draft model.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bench.peers.gguf_file import write_gguf
from bench.peers.reply import Reply
from engine.models.config import read_config

if TYPE_CHECKING:
    from llama_cpp import Llama

NEEDED = {"llama_cpp": "llama-cpp-python", "gguf": "gguf"}
"""Module to package."""


def load_llama_cpp(model: Path, dtype: torch.dtype, stop: frozenset[int]) -> LlamaCppPeer | None:
    """The peer, or None and a printed line where what it needs is not installed."""
    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    if missing:
        print(f"llama.cpp is left out: pip install {' '.join(missing)} to have it", flush=True)
        return None
    return LlamaCppPeer(model, dtype, stop)


class LlamaCppPeer:
    """The same weights in llama.cpp on one thread, stateless: every reply reads its whole prompt."""

    def __init__(self, model: Path, dtype: torch.dtype, stop: frozenset[int]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._file = Path(self._folder.name) / "model.gguf"
        write_gguf(model, self._file, dtype)
        self._context = read_config(model).max_positions
        self._dtype = dtype
        self._stop = stop
        self._loaded: dict[bool, Llama] = {}

    def reply(self, prompt: Sequence[int], max_tokens: int, *, prompt_lookup: int | None = None) -> Reply:
        """Greedy. prompt_lookup: most tokens drafted from the text at each step. The first step brings one token."""
        llama = self._llama(prompt_lookup)
        llama.reset()  # or it would not read again what this prompt shares with the last one
        tokens: list[int] = []
        started = first = ended = time.perf_counter()
        for token in islice(llama.generate(list(prompt), temp=0.0), max_tokens):
            ended = time.perf_counter()
            if not tokens:
                first = ended
            tokens.append(token)
            if token in self._stop:
                break
        return Reply(tokens, first - started, 1, ended - first)

    def _llama(self, prompt_lookup: int | None) -> Llama:
        """A context of its own for each of the two: speculation needs the logits of all tokens, which plain decoding
        need not pay for. They map the same file.
        """
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

        drafts = prompt_lookup is not None
        if drafts not in self._loaded:
            self._loaded[drafts] = self._load(logits_all=drafts)
        llama = self._loaded[drafts]
        if prompt_lookup is not None:
            llama.draft_model = LlamaPromptLookupDecoding(num_pred_tokens=prompt_lookup)
        return llama

    def _load(self, *, logits_all: bool) -> Llama:
        import llama_cpp

        # Keys and values are float16 by default, which is as large as bfloat16 but would round float32.
        kind = llama_cpp.GGML_TYPE_F32 if self._dtype == torch.float32 else None
        return llama_cpp.Llama(
            str(self._file),
            n_ctx=self._context,
            n_threads=1,
            n_threads_batch=1,
            type_k=kind,
            type_v=kind,
            logits_all=logits_all,
            verbose=False,
        )
