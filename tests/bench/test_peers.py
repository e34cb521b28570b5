"""Peers say what plain greedy decoding says, however they draft, and tell what their first step brought."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import harness
from bench.peers import Reply, TransformersPeer
from tests.engine import checkpoints
from tests.engine.embedded import MODEL

MAX_TOKENS = 24


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return [prompt.ids for prompt in harness.prompts(harness.load_tokenizer(MODEL), harness.IN_DOMAIN, 1)][:3]


@pytest.fixture(scope="module")
def peer() -> TransformersPeer:
    """Assisted by itself: a draft model that is always right."""
    return TransformersPeer(MODEL, torch.float32, harness.stop_tokens(MODEL), draft=MODEL)


@pytest.fixture(scope="module")
def plain(peer: TransformersPeer, prompts: list[list[int]]) -> list[Reply]:
    return replies(peer, prompts)


def replies(peer: TransformersPeer, prompts: list[list[int]], **how: int) -> list[Reply]:
    return [peer.reply(prompt, MAX_TOKENS, **how) for prompt in prompts]


def test_prompt_lookup_says_the_same(peer: TransformersPeer, prompts: list[list[int]], plain: list[Reply]) -> None:
    looked_up = replies(peer, prompts, prompt_lookup=10)
    assert [reply.tokens for reply in looked_up] == [reply.tokens for reply in plain]
    assert all(reply.first_tokens == 1 for reply in plain)


def test_a_perfect_assistant_brings_several_tokens_in_the_first_step(
    peer: TransformersPeer, prompts: list[list[int]], plain: list[Reply]
) -> None:
    assisted = replies(peer, prompts, assisted=3)
    assert [reply.tokens for reply in assisted] == [reply.tokens for reply in plain]
    assert max(reply.first_tokens for reply in assisted) > 1
    assert all(1 <= reply.first_tokens <= 4 for reply in assisted)
    assert all(reply.first_seconds > 0 and reply.seconds > 0 for reply in assisted)


def test_a_random_assistant_changes_nothing_but_the_time(
    prompts: list[list[int]], plain: list[Reply], tmp_path: Path
) -> None:
    checkpoints.write("llama-tied", tmp_path, vocab_size=2048, max_position_embeddings=2048)
    peer = TransformersPeer(MODEL, torch.float32, harness.stop_tokens(MODEL), draft=tmp_path)
    assisted = replies(peer, prompts[:2], assisted=3)
    assert [reply.tokens for reply in assisted] == [reply.tokens for reply in plain[:2]]


def test_assistance_needs_a_draft_model(prompts: list[list[int]]) -> None:
    peer = TransformersPeer(MODEL, torch.float32, harness.stop_tokens(MODEL))
    with pytest.raises(ValueError, match="no draft model"):
        peer.reply(prompts[0], MAX_TOKENS, assisted=3)
