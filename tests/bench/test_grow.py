"""A grown model computes what the small one does, and its grown head drafts the same trees."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from bench.grow import WIDTH_FACTOR, grow, spread
from engine.engine import Engine, Work
from engine.interfaces import Window
from engine.models.decoder import Decoder, load_target
from engine.policy import FixedPolicy
from engine.proposers.eagle3 import load_eagle3
from engine.sampling import Sampling
from engine.tree import DraftTree
from tests.engine import checkpoints
from tests.engine.proposers import heads

TAPS = [1, 3, 4]
SHAPES = {"llama-tied": (4, 7), "llama-untied-llama3-rope": (4, 9), "mistral": (3, 6)}
"""Layers before and after. Tied and untied, and a head_dim that is not the width over the heads."""


@pytest.fixture(scope="module", params=list(SHAPES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(small, grown) in float32, each with a head beside it."""
    small, grown = tmp_path_factory.mktemp("small"), tmp_path_factory.mktemp("grown")
    before, after = SHAPES[request.param]
    checkpoints.write(request.param, small, num_hidden_layers=before)
    config = load(small).config
    taps = [min(tap, before) for tap in TAPS]
    more = {"eagle_aux_hidden_state_layer_ids": taps, "head_dim": 16, "rope_theta": 300.0}
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in heads.random_head(config).items()}
    heads.write(small / "eagle3", tensors, heads.head_config(config, **more))
    grow(small, grown, num_layers=after, dtype=torch.float32)
    return small, grown


def load(directory: Path) -> Decoder:
    return load_target(directory, dtype=torch.float32, pool_tokens=1024)


def test_real_layers_stand_first_last_and_evenly_between() -> None:
    assert spread(4, 7) == [0, 2, 4, 6]
    for real, layers in ((8, 24), (8, 11), (4, 4), (2, 9)):
        places = spread(real, layers)
        assert (places[0], places[-1], len(set(places))) == (0, layers - 1, real)


def test_the_grown_model_is_larger_and_says_the_same(pair: tuple[Path, Path]) -> None:
    small, grown = (load(directory) for directory in pair)
    assert grown.config.hidden_size == WIDTH_FACTOR * small.config.hidden_size
    assert grown.num_layers > small.num_layers
    rng = random.Random(0)
    tokens = torch.tensor([rng.randrange(checkpoints.VOCAB) for _ in range(60)])
    logits = []
    for target in (small, grown):
        cache, chain = target.new_cache(), DraftTree.chain(tokens)
        cache.reserve(len(chain))
        with torch.inference_mode():
            logits.append(target.forward([Window(cache, chain)])[0].logits)
    one, other = logits
    assert one is not None
    assert other is not None
    torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-5)


def test_what_was_added_is_noise_where_it_is_multiplied_away(pair: tuple[Path, Path]) -> None:
    """Kernels may run faster on zeros, and then a step would not cost what a larger model's costs."""
    grown = load(pair[1])
    for layer in grown._layers:
        assert float((layer.qkv == 0).float().mean()) < 0.01
        assert float((layer.gate_up == 0).float().mean()) < 0.01


def test_the_grown_head_drafts_the_same_trees(pair: tuple[Path, Path]) -> None:
    rng = random.Random(1)
    prompts = [[rng.randrange(checkpoints.VOCAB) for _ in range(rng.randint(2, 40))] for _ in range(4)]
    drafted = []
    for directory in pair:
        target = load(directory)
        proposer = load_eagle3(directory / "eagle3", target, pool_tokens=1024)
        engine, trees = Engine(target, proposer, FixedPolicy(1)), []
        for prompt in prompts:
            session = engine.open("call", prompt)
            turn = engine.submit(session, Sampling(), max_tokens=4)
            while turn.finish is None:
                engine.step([Work(session)])
                if turn.finish is None:
                    with torch.inference_mode():
                        trees.append(proposer.propose([session.draft], [session.tokens[-1]], [None], 16)[0])  # type: ignore[list-item]
            engine.close(session)
        drafted.append((len(proposer.taps), proposer.head.config.num_heads, trees))
    (taps, few, small), (grown_taps, many, grown) = drafted
    assert (grown_taps, many) == (taps, WIDTH_FACTOR * few)
    assert len(small) == 12
    for one, other in zip(small, grown, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.parents.tolist() == other.parents.tolist()
        torch.testing.assert_close(one.score, other.score, atol=1e-5, rtol=1e-3)


def test_the_command_grows_the_embedded_model(tmp_path: Path) -> None:
    """Its tokenizer comes along, and its bfloat16 weights stay what they are."""
    from tests.engine.embedded import MODEL, codec

    grow(MODEL, tmp_path, num_layers=9, dtype=torch.bfloat16)
    small, grown = load(MODEL), load(tmp_path)
    ids = torch.tensor(codec().encode("<|begin|><|system|>Hello there<|end|><|user|>Hi<|end|><|assistant|>"))
    logits = []
    for target in (small, grown):
        cache, chain = target.new_cache(), DraftTree.chain(ids)
        cache.reserve(len(chain))
        with torch.inference_mode():
            logits.append(target.forward([Window(cache, chain, "last")])[0].logits)
    torch.testing.assert_close(logits[0], logits[1], atol=1e-3, rtol=0)
    assert (tmp_path / "tokenizer.json").read_bytes() == (MODEL / "tokenizer.json").read_bytes()
