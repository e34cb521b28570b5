"""Every kind of drafter drafts for a grown target what it drafted for the small one, as the trainers write them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.grow import WIDTH_FACTOR, grow
from engine.proposers.draft_model import DraftModelProposer
from tests.bench.drafting import Drafted, assert_drafts_are_the_same, drafted
from tests.training.heads import SMALL, randomise
from training.llama import Llama
from training.medusa import Heads
from training.mtp import Module

SHAPE = replace(SMALL, norm_eps=0.1)
"""Eight layers, and an epsilon so large that a wrong one shows."""
DRAFT = replace(SHAPE, hidden=32, layers=3, heads=2, kv_heads=1, intermediate=40)
KINDS = ("medusa", "mtp", "draft")
NUM_LAYERS = 16


def write(directory: Path, model: Llama) -> None:
    directory.mkdir(exist_ok=True)
    save_file(model.state_dict(), directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(model.shape.config()))
    (directory / "README.md").write_text("Random weights.\n")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("small")
    write(directory, randomise(Llama(SHAPE), 0))
    randomise(Heads(SHAPE, 3), 1).save(directory / "medusa", "small")
    randomise(Module(SHAPE), 2).save(directory / "mtp")
    write(directory / "draft", randomise(Llama(DRAFT), 3))
    return directory


@pytest.fixture(scope="module")
def grown(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("grown")
    grow(small, directory, num_layers=NUM_LAYERS, dtype=torch.float32)
    return directory


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_drafts_is_the_same(kind: str, small: Path, grown: Path) -> None:
    assert_drafts_are_the_same(drafted(small, kind), drafted(grown, kind))


def test_a_draft_model_grows_in_the_targets_proportion(grown: Path) -> None:
    assert draft_shape(drafted(grown, "draft")) == (6, WIDTH_FACTOR * DRAFT.hidden)
    assert (grown / "draft" / "README.md").read_text() == "Random weights.\n"


def draft_shape(of: Drafted) -> tuple[int, int]:
    """(layers, width)"""
    assert isinstance(of.proposer, DraftModelProposer)
    return of.proposer.model.num_layers, of.proposer.model.config.hidden_size


def test_a_drafter_elsewhere_grows_too_and_a_draft_model_to_the_layers_asked_for(small: Path, tmp_path: Path) -> None:
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    write(elsewhere, randomise(Llama(DRAFT), 4))
    grow(small, out, num_layers=8, draft_layers=5, dtype=torch.float32, drafters={"draft": elsewhere})
    here = drafted(small, "draft", elsewhere)
    assert_drafts_are_the_same(here, drafted(out, "draft"))
    assert draft_shape(drafted(out, "draft")) == (5, WIDTH_FACTOR * DRAFT.hidden)
    own = drafted(small, "draft")
    assert any(one.tokens.tolist() != other.tokens.tolist() for one, other in zip(own.trees, here.trees, strict=True))


def test_what_was_added_is_noise_where_the_outcome_allows_it(grown: Path) -> None:
    """Kernels may run faster on zeros. What must be zero writes the stream, whose added places stay zero."""
    writers = ("o_proj.weight", "down_proj.weight", "eh_proj.weight")
    for file in ("medusa/medusa_lm_head.safetensors", "mtp/model.safetensors"):
        for name, tensor in load_file(grown / file).items():
            if not name.endswith(writers):
                assert float((tensor == 0).float().mean()) < 0.01, name


def test_the_configs_say_what_the_tensors_are(grown: Path) -> None:
    target, module = (json.loads((path / "config.json").read_text()) for path in (grown, grown / "mtp"))
    assert module == target | {
        "architectures": ["LlamaForCausalLMNextN"],
        "num_nextn_predict_layers": 1,
        "torch_dtype": "float32",
    }
    assert json.loads((grown / "medusa" / "config.json").read_text())["torch_dtype"] == "float32"
    assert all(name.startswith(f"model.layers.{NUM_LAYERS}.") for name in load_file(grown / "mtp/model.safetensors"))


def test_what_is_not_known_is_refused(small: Path, tmp_path: Path) -> None:
    """Leaving a tensor out would grow another function."""
    weights = load_file(small / "model.safetensors")
    for name in ("model.layers.1.self_attn.q_proj.bias", "model.layers.8.mlp.up_proj.weight", "lm_head.bias"):
        save_file(weights | {name: torch.ones(4)}, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(SHAPE.config()))
        with pytest.raises(ValueError, match=name):
            grow(tmp_path, tmp_path / "grown", dtype=torch.float32)
    with pytest.raises(ValueError, match="8 layers cannot grow to 7"):
        grow(small, tmp_path / "grown", num_layers=7)
    with pytest.raises(ValueError, match="eagle9"):
        grow(small, tmp_path / "grown", drafters={"eagle9": small})
