"""A grown model computes what the small one does, and its grown drafters draft the same trees."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.grow import WIDTH_FACTOR, grow
from bench.grow.target import spread
from engine.interfaces import Window
from engine.proposers.pairs.proposer import PairProposer
from engine.tree import DraftTree
from tests.bench.drafting import assert_drafts_are_the_same, drafted, load
from tests.engine import checkpoints
from tests.engine.proposers import heads, medusa_heads, modules

TAPS = [1, 3, 4]
EPS = 0.1  # so large that a wrong one shows
SHAPES = {"llama-tied": (4, 7), "llama-untied-llama3-rope": (4, 9), "mistral": (3, 6)}
"""Layers before and after. Tied and untied, and a head_dim that is not the width over the heads."""


@pytest.fixture(scope="module", params=list(SHAPES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(small, grown) in float32, each with drafters beside it."""
    small, grown = tmp_path_factory.mktemp("small"), tmp_path_factory.mktemp("grown")
    before, after = SHAPES[request.param]
    checkpoints.write(request.param, small, num_hidden_layers=before, rms_norm_eps=EPS)
    config = load(small).config
    taps = [min(tap, before) for tap in TAPS]
    more = {"eagle_aux_hidden_state_layer_ids": taps, "head_dim": 16, "rope_theta": 300.0, "rms_norm_eps": EPS}
    heads.write(small / "eagle3", narrow(heads.random_head(config)), heads.head_config(config, **more))
    medusa_heads.write(
        small / "medusa", narrow(medusa_heads.random_heads(2, blocks=2, own_output=request.param != "mistral"))
    )
    module = modules.random_module(config)
    if request.param == "mistral":  # brings its own of what the others share with the target
        g = torch.Generator().manual_seed(5)
        for name in ("embed_tokens.weight", "shared_head.head.weight"):
            module[name] = torch.randn(config.vocab_size, config.hidden_size, generator=g)
    modules.write(small / "mtp", narrow(modules.deepseek(module, before)))
    shutil.copy(small / "config.json", small / "mtp")
    grow(small, grown, num_layers=after, dtype=torch.float32)
    return small, grown


def narrow(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


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
    for layer in grown.layers:
        assert float((layer.qkv == 0).float().mean()) < 0.01
        assert float((layer.gate_up == 0).float().mean()) < 0.01


@pytest.mark.parametrize("kind", ["eagle3", "medusa", "mtp"])
def test_the_grown_drafters_draft_the_same_trees(kind: str, pair: tuple[Path, Path]) -> None:
    small, grown = (drafted(directory, kind) for directory in pair)
    assert_drafts_are_the_same(small, grown)
    if isinstance(small.proposer, PairProposer) and isinstance(grown.proposer, PairProposer):
        assert grown.proposer.head.num_kv_heads == WIDTH_FACTOR * small.proposer.head.num_kv_heads


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
