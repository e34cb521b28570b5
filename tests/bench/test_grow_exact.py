"""The embedded model grown to another shape exactly: the same logits, the same trees, the same text."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from bench.gpu.sizes import LLAMA_8B
from bench.grow.exact import Grown, Places, exact_config, grow_target
from bench.grow.exact_drafters import grow_head, grow_medusa, grow_module
from engine.engine import Engine, Work
from engine.interfaces import Window
from engine.models.config import DecoderConfig, read_config
from engine.models.decoder import Decoder, load_target
from engine.policy import FixedPolicy
from engine.proposers import mtp
from engine.proposers.eagle3 import load_eagle3
from engine.proposers.medusa.load import load as load_medusa
from engine.proposers.pairs.proposer import PairProposer
from engine.proposers.setup import Setup
from engine.sampling import Sampling
from engine.tree import DraftTree
from tests.engine.embedded import HEAD, MODEL
from tests.engine.equal import embedded_prompts

CPU = torch.device("cpu")
SHAPE = replace(
    LLAMA_8B,
    vocab_size=2500,
    hidden_size=512,  # a factor whose root is no power of two
    intermediate_size=700,
    num_layers=9,
    num_heads=12,
    num_kv_heads=3,
    max_positions=2048,
)


@cache
def grown_target() -> Grown:
    return grow_target(MODEL, SHAPE, device=CPU, dtype=torch.float32, pool_tokens=2048, kernels="plain")


@cache
def grown() -> tuple[Decoder, PairProposer]:
    return grown_target().target, grow_head(HEAD, grown_target(), 2048)


def test_the_shape_is_the_one_asked_for() -> None:
    target, head = grown()
    config = target.config
    assert (config.hidden_size, config.num_layers, config.vocab_size) == (512, 9, 2500)
    assert (head.head.head_dim, head.head.num_kv_heads) == (128, 3)
    assert target.layers[0].qkv.shape == ((12 + 2 * 3) * 128, 512)
    for layer in target.layers:
        assert float((layer.gate_up == 0).float().mean()) < 0.01, "what is multiplied away is not zero"


def test_logits_are_the_small_model_s_and_the_rest_is_masked() -> None:
    small = load_target(MODEL, pool_tokens=2048)
    prompt = torch.tensor(embedded_prompts(1)[0])
    logits = []
    for target in (small, grown()[0]):
        cache_, chain = target.new_cache(), DraftTree.chain(prompt)
        cache_.reserve(len(chain))
        with torch.inference_mode():
            logits.append(target.forward([Window(cache_, chain)])[0].logits)
        cache_.close()
    assert logits[0] is not None
    assert logits[1] is not None
    torch.testing.assert_close(logits[1][:, :2048], logits[0], rtol=1e-3, atol=1e-3)
    assert bool((logits[1][:, 2048:] == -torch.inf).all())


@pytest.mark.parametrize("drafter", ["eagle3", "mtp", "medusa"])
def test_replies_and_what_is_accepted_are_the_small_pair_s(drafter: str) -> None:
    small = load_target(MODEL, pool_tokens=2048)
    setup = Setup(small, MODEL, 2048)
    if drafter == "eagle3":
        pair = (load_eagle3(HEAD, small, pool_tokens=2048), grown()[1])
    elif drafter == "mtp":
        pair = (mtp.load(MODEL / "mtp", setup), grow_module(MODEL / "mtp", small, grown_target(), 2048))
    else:
        pair = (load_medusa(MODEL / "medusa", setup), grow_medusa(MODEL / "medusa", grown_target()))
    said = []
    for target, proposer in zip((small, grown()[0]), pair, strict=True):
        engine = Engine(target, proposer, FixedPolicy(16))
        session = engine.open("call", embedded_prompts(1)[0])
        turn = engine.submit(session, Sampling(), max_tokens=40)
        while turn.finish is None:
            engine.step([Work(session, max_tokens=4096)])
        said.append((turn.tokens, turn.stats.steps, turn.stats.accepted_at))
        engine.close(session)
    assert said[0] == said[1]


def test_a_shape_that_does_not_hold_the_model_is_refused() -> None:
    small = read_config(MODEL)
    few = exact_config(MODEL, DecoderConfig(**{**SHAPE.__dict__, "num_kv_heads": 1, "num_heads": 4}))
    with pytest.raises(ValueError, match="4 heads on 2"):
        Places.of(small, few)
