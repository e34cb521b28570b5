"""Heads as SpecForge trains them: a RoPE of their own, a width of their own, EAGLE-3.1's two norms, short contexts."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.engine import Engine, Work
from engine.errors import ModelError
from engine.models.decoder import Decoder
from engine.policy import FixedPolicy
from engine.sampling import Sampling
from engine.session import Finish
from tests.engine import checkpoints
from tests.engine.proposers import heads
from tests.engine.proposers.test_eagle3_load import (
    HEAD_DIM,
    WIDTH,
    drafts_like,
    layered,
    norm,
    read,
    speculators,
    without,
)

NARROW, WIDE = 32, 80
TEXT = [(7 * i + i * i // 3) % checkpoints.VOCAB for i in range(90)]
ROUNDED = 1e-4
"""Angles are rounded to float32, which shows in a long text; what a wrong angle changes is a hundred times more."""
LLAMA3 = {"factor": 5.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0, "original_max_position_embeddings": 40}


def specforge(target: Decoder, **changes: Any) -> dict[str, Any]:
    """A config as SpecForge exports it."""
    published: dict[str, Any] = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "head_dim": HEAD_DIM,
        "draft_vocab_size": 60,
        "max_position_embeddings": 2048,
        "rope_scaling": None,
        "rope_theta": 10_000.0,
    }
    return heads.head_config(target.config, **(published | changes))


@pytest.mark.parametrize(
    ("fields", "theta"),
    [
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "rope_theta": 500.0}, 500.0),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "rope_theta": None}, 10_000.0),
        ({"rope_scaling": {"type": "llama3", **LLAMA3}, "rope_theta": 500.0}, 500.0),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 700.0, **LLAMA3}, "rope_theta": None}, 700.0),
    ],
)
def test_a_heads_own_llama3_rope(
    tmp_path: Path, target: Decoder, tensors: dict[str, Tensor], fields: dict[str, Any], theta: float
) -> None:
    """Waves of all three kinds, over a text that is longer than the context they were first trained with."""
    slow = heads.SlowHead(tensors, target.embedding, theta=theta, scaling=LLAMA3)
    stretched = [theta ** -(i / 8) / slow.frequency(i / 8) for i in range(8)]
    assert stretched[0] == 1 and stretched[-1] == 5 and any(1 < much < 5 for much in stretched)
    head = heads.write(tmp_path, tensors, specforge(target, **fields))
    drafts_like(read(head, target), slow, target, TEXT, within=ROUNDED)
    other = heads.SlowHead(tensors, target.embedding, theta=60.0, scaling=LLAMA3)
    drafts_like(read(head, target, rope_theta=60.0), other, target, TEXT, within=ROUNDED)


def own_embedding(target: Decoder, width: int) -> Tensor:
    g = torch.Generator().manual_seed(width)
    return torch.randn(target.vocab_size, width, dtype=torch.float64, generator=g)


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_a_head_of_another_width_reads_its_own_embedding(tmp_path: Path, target: Decoder, width: int) -> None:
    """fc leads from the target's width to the head's, and every norm before it is as wide as the target."""
    own = own_embedding(target, width)
    plain = heads.random_head(target.config, width=width) | {"embed_tokens.weight": own}
    config = specforge(target, hidden_size=width, target_hidden_size=WIDTH)
    drafts_like(read(heads.write(tmp_path, plain, config), target), heads.SlowHead(plain, own), target)
    newer = plain | {f"fc_norm.{tap}.weight": norm() + tap for tap in range(3)}
    nested = speculators(target, layer={"hidden_size": width}, target_hidden_size=WIDTH, norm_output=True, fc_norm=True)
    slow = heads.SlowHead(newer, own, norm_before_residual=True, feed_normed=True)
    drafts_like(read(heads.write(tmp_path, layered(newer), nested), target), slow, target)


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_a_head_of_another_width_cannot_borrow_from_the_target(tmp_path: Path, target: Decoder, width: int) -> None:
    """Neither what it embeds tokens with, nor what it predicts them with, nor either of the target's width."""
    own = own_embedding(target, width)
    whole = heads.random_head(target.config, width=width) | {"embed_tokens.weight": own}
    config = specforge(target, hidden_size=width, target_hidden_size=WIDTH)

    def refused(message: str, tensors: dict[str, Tensor]) -> None:
        with pytest.raises(ModelError, match=message):
            read(heads.write(tmp_path, tensors, config), target)

    refused(f"{width} wide and brings no embedding, the target's has {WIDTH}", without(whole, "embed_tokens.weight"))
    refused("embed_tokens.weight has shape", whole | {"embed_tokens.weight": target.embedding})
    refused("lm_head.weight is missing", without(whole, "lm_head.weight", "d2t", "t2d"))
    refused("lm_head.weight has shape", whole | {"lm_head.weight": target.lm_head_weight})


@pytest.mark.parametrize("fc_norm", [False, True])
@pytest.mark.parametrize("norm_output", [None, False, True])
def test_each_of_eagle_3_1s_norms_alone_and_together(
    tmp_path: Path, target: Decoder, tensors: dict[str, Tensor], fc_norm: bool, norm_output: bool | None
) -> None:
    """fc_norm norms each of the target's states, norm_output feeds the normed output back; neither needs the other.
    What lm_head reads is normed in any case."""
    more = tensors | {f"fc_norm.{tap}.weight": norm() + tap for tap in range(3)} if fc_norm else tensors
    stated: dict[str, Any] = {"fc_norm": fc_norm} | ({} if norm_output is None else {"norm_output": norm_output})
    slow = heads.SlowHead(more, target.embedding, feed_normed=norm_output is True)
    drafts_like(read(heads.write(tmp_path, more, specforge(target, **stated)), target), slow, target)


@pytest.mark.parametrize("length", [8, 9, 90])
def test_a_heads_short_context_limits_nothing(
    tmp_path: Path, target: Decoder, tensors: dict[str, Tensor], length: int
) -> None:
    head = heads.write(tmp_path, tensors, specforge(target, max_position_embeddings=8))
    drafts_like(read(head, target), heads.SlowHead(tensors, target.embedding), target, TEXT[:length], within=ROUNDED)
    nested = speculators(target, layer={"max_position_embeddings": 8}, norm_before_residual=False)
    slow = heads.SlowHead(tensors, target.embedding)
    drafts_like(
        read(heads.write(tmp_path, layered(tensors), nested), target), slow, target, TEXT[:length], within=ROUNDED
    )


def test_a_reply_is_drafted_to_the_end_of_the_targets_context(
    tmp_path: Path, target: Decoder, tensors: dict[str, Tensor]
) -> None:
    proposer = read(heads.write(tmp_path, tensors, specforge(target, max_position_embeddings=8)), target)
    engine = Engine(target, proposer, FixedPolicy(8))
    prompt = (TEXT * 6)[: target.max_context_tokens - 24]
    said, drafted = [], []
    for drafting in (False, True):
        session = engine.open("call", prompt)
        turn = engine.submit(session, Sampling(), max_tokens=100, drafting=drafting)
        while turn.finish is None:
            (step,) = engine.step([Work(session)])
            if drafting and step.tokens:
                drafted.append(step.drafted)
        assert turn.finish is Finish.CONTEXT and len(session.tokens) == target.max_context_tokens
        said.append(turn.tokens)
        engine.close(session)
    assert said[0] == said[1]
    assert drafted[0] == 0 and all(drafted[1:-1]) and all(a >= b for a, b in pairwise(drafted[1:]))
