"""A grown EAGLE-3 head reads the states that it read, wherever and however its config named them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.grow import grow
from engine.interfaces import Window
from engine.models.config import read_config
from engine.proposers.eagle3.checkpoint import read_head
from engine.tree import DraftTree
from tests.bench.drafting import load
from tests.engine.proposers import heads
from tests.training.heads import SMALL, randomise
from training.llama import Llama

IDS = "eagle_aux_hidden_state_layer_ids"
SHAPE = replace(SMALL, hidden=16, heads=2, kv_heads=1, intermediate=16)
"""Eight layers, of which EAGLE's own choice is 2, 4, 5."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("small")
    save_file(randomise(Llama(SHAPE), 0).state_dict(), directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(SHAPE.config()))
    return directory


def taps(directory: Path) -> tuple[int, ...]:
    return read_head(directory / "eagle3", read_config(directory))[0].taps


def states(directory: Path) -> Tensor:
    """[n, taps, width] of what the head reads of a text."""
    target = load(directory)
    cache, chain = target.new_cache(), DraftTree.chain(torch.arange(20))
    cache.reserve(len(chain))
    with torch.inference_mode():
        features = target.forward([Window(cache, chain, "none")], taps(directory))[0].features
    assert features is not None
    return features


@pytest.mark.parametrize("num_layers", [8, 11, 24])
@pytest.mark.parametrize(
    ("named", "read"),
    [
        ({}, (2, 4, 5)),
        ({IDS: [2, 4, 5]}, (2, 4, 5)),
        ({IDS: [1, 4, 8]}, (1, 4, 8)),
        ({IDS: [0, 3, 7]}, (0, 3, 7)),
        ({IDS: [1, 3, 4]}, (2, 4, 5)),  # EAGLE's choice, written in the wrong place
        ({"eagle_config": {IDS: [1, 3, 4], "use_aux_hidden_state": True}}, (2, 4, 5)),
        ({"eagle_config": {IDS: [0, 3, 7]}}, (1, 4, 8)),
        ({"eagle_config": {IDS: [0, 2, 3]}}, (1, 3, 4)),  # at the top it would be taken for EAGLE's choice
        ({"eagle_config": {IDS: [2, 4, 5]}}, (2, 4, 5)),
    ],
)
def test_the_states_read_are_the_same(
    named: dict[str, Any], read: tuple[int, ...], num_layers: int, small: Path, tmp_path: Path
) -> None:
    config = read_config(small)
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in heads.random_head(config).items()}
    heads.write(tmp_path / "eagle3", tensors, heads.head_config(config, **named))
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).symlink_to(small / file)
    assert taps(tmp_path) == read
    grow(tmp_path, tmp_path / "grown", num_layers=num_layers, dtype=torch.float32)
    one, other = states(tmp_path), states(tmp_path / "grown")
    torch.testing.assert_close(one, other[..., : SHAPE.hidden], atol=1e-4, rtol=1e-4)
    assert not other[..., SHAPE.hidden :].any()
    kept = json.loads((tmp_path / "grown" / "eagle3" / "config.json").read_text())
    nested = kept.get("eagle_config", {})
    assert (IDS in kept) != (IDS in nested), "no second place says otherwise"
    assert nested.keys() - {IDS} == named.get("eagle_config", {}).keys() - {IDS}
