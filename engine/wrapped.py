"""A target around another one: what of it stays as it is."""

from __future__ import annotations

import torch

from engine.cache import KVCache
from engine.interfaces import Target


class WrappedTarget:
    """A ``Target`` but for its forward."""

    def __init__(self, wrapped: Target) -> None:
        self.wrapped = wrapped

    @property
    def vocab_size(self) -> int:
        return self.wrapped.vocab_size

    @property
    def num_layers(self) -> int:
        return self.wrapped.num_layers

    @property
    def max_context_tokens(self) -> int:
        return self.wrapped.max_context_tokens

    @property
    def device(self) -> torch.device:
        return self.wrapped.device

    @property
    def dtype(self) -> torch.dtype:
        return self.wrapped.dtype

    def new_cache(self) -> KVCache:
        return self.wrapped.new_cache()
