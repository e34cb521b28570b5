"""What would change an EAGLE-3 head's function is computed or refused by name, never ignored, and nothing is held on
to that drafting does not need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.errors import ModelError
from engine.models.decoder import Decoder
from engine.proposers.eagle3.checkpoint import read_head
from engine.proposers.eagle3.head import Head
from tests.engine.proposers import heads
from tests.engine.proposers.test_eagle3 import features
from tests.engine.proposers.test_eagle3_load import LAYER_IDS, eagle, layered, read, speculators, without

WIDTH = 48


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("midlayer.self_attn.q_proj.bias", 64),
        ("midlayer.self_attn.o_proj.bias", WIDTH),
        ("midlayer.self_attn.k_norm.weight", 16),
        ("midlayer.mlp.down_proj.bias", WIDTH),
        ("fc.bias", WIDTH),
        ("fc_norm.1.weight", WIDTH),
        ("mask_hidden", WIDTH),
    ],
)
def test_a_tensor_that_would_be_ignored_is_refused(
    tmp_path: Path, target: Decoder, tensors: dict[str, Tensor], name: str, size: int
) -> None:
    head = heads.write(tmp_path, tensors | {name: torch.ones(size)}, eagle(target))
    with pytest.raises(ModelError, match=name.removeprefix("midlayer.")):
        read(head, target)


def test_tensors_that_carry_nothing_are_left(tmp_path: Path, target: Decoder, tensors: dict[str, Tensor]) -> None:
    more = {
        "verifier_norm.weight": torch.ones(WIDTH),
        "verifier_lm_head.weight": torch.ones(5, WIDTH),
        "midlayer.self_attn.rotary_emb.inv_freq": torch.ones(8),
    }
    read(heads.write(tmp_path, layered(tensors | more), speculators(target)), target)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"norm_before_fc": True}, "norm_before_fc.*input_norm.weight"),
        ({"fc_norm": True}, "fc_norm.*fc_norm.0.weight"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"num_key_value_heads": 3}, "4 attention heads do not share 3"),
        ({"num_attention_heads": None}, "num_attention_heads is None"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
        ({"transformer_layer_config": "llama"}, "transformer_layer_config is 'llama'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "RoPE type 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "lacks low_freq_factor"),
        ({LAYER_IDS: ["low", "mid", "high"]}, LAYER_IDS),
    ],
)
def test_a_config_that_promises_something_else_is_refused(
    tmp_path: Path, target: Decoder, tensors: dict[str, Tensor], config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        read(heads.write(tmp_path, tensors, eagle(target, **config)), target)


def test_an_activation_in_the_nested_config_is_refused(
    tmp_path: Path, target: Decoder, tensors: dict[str, Tensor]
) -> None:
    head = heads.write(tmp_path, layered(tensors), speculators(target, layer={"hidden_act": "relu"}))
    with pytest.raises(ModelError, match="hidden_act 'relu'"):
        read(head, target)


def test_an_empty_nested_config_is_none(tmp_path: Path, target: Decoder, tensors: dict[str, Tensor]) -> None:
    read(heads.write(tmp_path, tensors, eagle(target, transformer_layer_config=None)), target)
    with pytest.raises(ModelError, match="lacks num_attention_heads"):
        read(heads.write(tmp_path, layered(tensors), {"transformer_layer_config": None}), target)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("input_norm.weight", (WIDTH,)),
        ("midlayer.mlp.gate_proj.weight", (64, WIDTH + 1)),
        ("midlayer.mlp.gate_proj.weight", (64,)),
        ("midlayer.mlp.up_proj.weight", (63, WIDTH)),
        ("midlayer.mlp.down_proj.weight", (WIDTH, 63)),
        ("lm_head.weight", (60, WIDTH + 1)),
        ("lm_head.weight", (60,)),
        ("fc.weight", (WIDTH,)),
        ("midlayer.self_attn.q_proj.weight", (64,)),
    ],
)
def test_a_tensor_of_another_shape_is_refused(
    tmp_path: Path, target: Decoder, tensors: dict[str, Tensor], name: str, shape: tuple[int, ...]
) -> None:
    head = heads.write(tmp_path, tensors | {name: torch.zeros(shape)}, eagle(target))
    with pytest.raises(ModelError, match=rf"{name.removeprefix('midlayer.')} has shape"):
        read(head, target)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_cut_file_is_refused(tmp_path: Path, target: Decoder, tensors: dict[str, Tensor], name: str) -> None:
    heads.write(tmp_path, tensors, eagle(target))
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(b"PK\3\4")
    with pytest.raises(ModelError, match=name):
        read(tmp_path, target)


def test_a_pickle_of_something_else_is_refused(tmp_path: Path, target: Decoder, tensors: dict[str, Tensor]) -> None:
    heads.write(tmp_path, without(tensors), eagle(target))
    (tmp_path / "model.safetensors").unlink()
    torch.save({"epoch": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="does not hold tensors"):
        read(tmp_path, target)


def test_the_checkpoint_is_given_up(tmp_path: Path, target: Decoder, tensors: dict[str, Tensor]) -> None:
    config, checkpoint = read_head(heads.write(tmp_path, tensors, eagle(target)), target.config)
    Head(config, checkpoint, target, tmp_path)
    assert checkpoint == {}


def test_a_waiting_feature_does_not_keep_the_prefill_alive(
    tmp_path: Path, target: Decoder, tensors: dict[str, Tensor]
) -> None:
    proposer = read(heads.write(tmp_path, tensors, eagle(target)), target)
    tokens = [5, 17, 101, 3, 44, 201, 9, 8]
    draft = proposer.start()

    def held() -> list[int]:
        """Positions whose features take memory."""
        row = 3 * WIDTH * 8
        return [piece.untyped_storage().nbytes() // row for piece in draft.waiting.rows(0, draft.length)]

    proposer.observe(draft, torch.tensor(tokens), features(target, tokens), None)
    draft.truncate(4)
    assert held() == [4]
    proposer.catch_up(draft)
    assert held() == [1]
    proposer.observe(draft, torch.tensor([1, 2]), features(target, [1, 2]), None)
    assert held() == [1, 2]
    proposer.propose([draft], [6], [None], 4)
    assert held() == [1]
    draft.close()
