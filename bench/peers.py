"""transformers as a peer: its own greedy generate and its prompt lookup, timed as we time ourselves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList


class _Clock(StoppingCriteria):
    """Notes when each step of generate ended; stops nothing."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.lengths: list[int] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.at.append(time.perf_counter())
        self.lengths.append(input_ids.shape[1])
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


class TransformersPeer:
    """The same checkpoint in transformers, stateless: every reply is generated from its whole prompt."""

    def __init__(self, model: Path, dtype: torch.dtype, stop: frozenset[int]) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        self._stop = sorted(stop)

    @torch.inference_mode()
    def reply(
        self, prompt: Sequence[int], max_tokens: int, *, prompt_lookup: int | None = None
    ) -> tuple[list[int], float, int, float]:
        """(ids of the greedy reply, seconds of its first step, tokens of that step, seconds from there on)."""
        clock = _Clock()
        ids = torch.tensor([list(prompt)])
        started = time.perf_counter()
        output = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=self._stop,
            pad_token_id=self._stop[0],
            prompt_lookup_num_tokens=prompt_lookup,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        tokens = output[0, len(prompt) :].tolist()
        return tokens, clock.at[0] - started, clock.lengths[0] - len(prompt), clock.at[-1] - clock.at[0]
