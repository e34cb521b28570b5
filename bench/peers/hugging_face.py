"""transformers as a peer: its own greedy generate, its prompt lookup, and its assisted generation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from bench.peers.reply import Reply

ASSISTED = 20
"""Tokens that transformers lets a draft model write at each step unless told otherwise."""


class _Clock(StoppingCriteria):
    """Notes when each step of generate ended, and how long the text was then; stops nothing.

    ``generate`` asks it once per forward of the target, however many tokens that brought. A draft model's own steps
    have other criteria and do not show here.
    """

    def __init__(self) -> None:
        self.at: list[float] = []
        self.lengths: list[int] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.at.append(time.perf_counter())
        self.lengths.append(input_ids.shape[1])
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


class TransformersPeer:
    """The same checkpoint in transformers, stateless: every reply is generated from its whole prompt.

    draft: directory of a model that speaks the same ids, for assisted replies.
    """

    def __init__(self, model: Path, dtype: torch.dtype, stop: frozenset[int], draft: Path | None = None) -> None:
        self._model = _load(model, dtype)
        self._draft = None if draft is None else _load(draft, dtype)
        self._stop = sorted(stop)

    @torch.inference_mode()
    def reply(
        self, prompt: Sequence[int], max_tokens: int, *, prompt_lookup: int | None = None, assisted: int | None = None
    ) -> Reply:
        """Greedy. prompt_lookup, assisted: most tokens drafted at each step, from the text or by the draft model.

        The draft model stops earlier where it is unsure; at which confidence is left as transformers has it.
        """
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
            assistant_model=self._assistant(assisted),
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        tokens = output[0, len(prompt) :].tolist()
        return Reply(tokens, clock.at[0] - started, clock.lengths[0] - len(prompt), clock.at[-1] - clock.at[0])

    def _assistant(self, tokens: int | None) -> PreTrainedModel | None:
        if tokens is None:
            return None
        if self._draft is None:
            raise ValueError("no draft model was given to assist with")
        self._draft.generation_config.num_assistant_tokens = tokens  # generate reads it nowhere else
        return self._draft


def _load(model: Path, dtype: torch.dtype) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
