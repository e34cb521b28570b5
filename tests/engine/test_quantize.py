"""Weights in eight bits: made at load, read from published layouts, and near to what they stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.errors import ModelError
from engine.interfaces import Window
from engine.models.decoder import Decoder, load_target
from engine.models.scheme import FP8
from engine.quantize import ScaledMatrix, quantise
from engine.tree import DraftTree
from tests.engine import checkpoints
from tests.engine.embedded import MODEL
from tests.engine.equal import embedded_prompts

KINDS = {"fp8": FP8, "int8": torch.int8}
ERROR = {FP8: 0.04, torch.int8: 0.01}
"""Of a matrix of Gaussian numbers, as a share of its norm: three bits of mantissa, and seven bits of the largest."""


def logits_of(target: Decoder, tokens: Tensor) -> Tensor:
    cache, chain = target.new_cache(), DraftTree.chain(tokens)
    cache.reserve(len(chain))
    with torch.inference_mode():
        logits = target.forward([Window(cache, chain)])[0].logits
    cache.close()
    assert logits is not None
    return logits


@pytest.mark.parametrize("kind", list(KINDS.values()))
@given(st.integers(1, 40), st.integers(1, 300), st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_a_quantised_matrix_is_near_and_its_product_is_its_own(
    kind: torch.dtype, rows: int, inputs: int, seed: int
) -> None:
    torch.manual_seed(seed)
    matrix, x = torch.randn(rows, inputs) * torch.rand(rows, 1), torch.randn(3, inputs)
    small = quantise(matrix, kind)
    full = small.full(torch.float32)
    assert float((full - matrix).norm()) <= 1.5 * ERROR[kind] * float(matrix.norm()) + 1e-9
    torch.testing.assert_close(small.linear(x), x @ full.T, rtol=1e-4, atol=1e-4)
    assert small.weight.element_size() == 1


@pytest.mark.parametrize("precision", list(KINDS))
def test_the_trained_model_keeps_its_choices(precision: str) -> None:
    """Of its most likely tokens over a held-out call, almost all stay, and the logits are near."""
    prompt = torch.tensor(embedded_prompts(1)[0])
    exact = logits_of(load_target(MODEL, pool_tokens=2048), prompt)
    near = logits_of(load_target(MODEL, pool_tokens=2048, precision=precision), prompt)
    assert float((near - exact).norm() / exact.norm()) < {"fp8": 0.08, "int8": 0.03}[precision]
    assert float((near.argmax(-1) == exact.argmax(-1)).float().mean()) > {"fp8": 0.93, "int8": 0.97}[precision]


def config_of(kind: torch.dtype, strategy: str, **more: Any) -> dict[str, Any]:
    weights = {
        "num_bits": 8,
        "type": "float" if kind == FP8 else "int",
        "strategy": strategy,
        "symmetric": True,
        **more,
    }
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


def write_quantised(directory: Path, kind: torch.dtype, layout: str) -> dict[str, Tensor]:
    """A checkpoint whose projections are quantised in a published layout; returns what its tensors stand for."""
    checkpoints.write("llama-untied-llama3-rope", directory)
    tensors = load_file(directory / "model.safetensors")
    stand_for = {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        matrix = tensors[name].float()
        if layout == "block":
            blocks = quantise_blocks(matrix, 8)
            tensors[name], scale = blocks.weight, blocks.scale[::8].contiguous()
            tensors[name.removesuffix("weight") + "weight_scale_inv"] = scale
            stand_for[name] = blocks.full(torch.float32)
            continue
        small = quantise(matrix if layout == "channel" else matrix.reshape(1, -1), kind)
        tensors[name] = small.weight.view(matrix.shape)
        scale = small.scale if layout == "channel" else small.scale.view(1)
        tensors[name.removesuffix("weight") + "weight_scale"] = scale.bfloat16() if layout == "channel" else scale
        tensors[name.removesuffix("weight") + "input_scale"] = torch.ones(1)
        used = tensors[name.removesuffix("weight") + "weight_scale"].float()
        stand_for[name] = tensors[name].float() * used
    save_file(tensors, directory / "model.safetensors")
    said = config_of(kind, layout) if layout != "block" else {"quant_method": "fp8", "weight_block_size": [8, 8]}
    change_config(directory, quantization_config=said)
    return stand_for


def quantise_blocks(matrix: Tensor, block: int) -> ScaledMatrix:
    """[8 x 8] blocks, as DeepSeek and Qwen publish theirs of 128."""
    rows, inputs = (size // block for size in matrix.shape)
    tiles = matrix.view(rows, block, inputs, block).transpose(1, 2)
    scale = tiles.abs().amax((2, 3)) / 448.0
    small = (tiles / scale[:, :, None, None]).to(FP8)
    weight = small.transpose(1, 2).reshape(matrix.shape)
    return ScaledMatrix(weight.contiguous(), scale.repeat_interleave(block, 0), block)


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("kind", "layout"), [(FP8, "channel"), (FP8, "tensor"), (FP8, "block"), (torch.int8, "channel")]
)
def test_published_layouts_give_the_matrices_that_they_stand_for(
    kind: torch.dtype, layout: str, tmp_path: Path
) -> None:
    stand_for = write_quantised(tmp_path / "small", kind, layout)
    checkpoints.write("llama-untied-llama3-rope", tmp_path / "full")
    tensors = load_file(tmp_path / "full" / "model.safetensors")
    save_file(tensors | stand_for, tmp_path / "full" / "model.safetensors")
    tokens = torch.arange(30) * 7 % checkpoints.VOCAB
    small, full = (load_target(tmp_path / name, pool_tokens=512) for name in ("small", "full"))
    assert isinstance(small.layers[0].qkv, ScaledMatrix)
    torch.testing.assert_close(logits_of(small, tokens), logits_of(full, tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"quant_method": "awq"}, "quantisation by 'awq' is not supported"),
        (config_of(FP8, "channel", num_bits=4), "weights of 4 bits"),
        (config_of(torch.int8, "channel", symmetric=False), "zero points"),
        (config_of(FP8, "group"), "scales by 'group'"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "0 groups"),
        (config_of(torch.int8, "channel"), r"torch\.float8_e4m3fn, and the config says torch\.int8"),
        ({"quant_method": "fp8", "weight_block_size": [16, 16]}, "weight_scale_inv is missing"),
        (config_of(FP8, "block", block_structure="128x128"), "block_structure or weight_block_size .* no numbers"),
        (None, "which nothing in the config explains"),
    ],
)
def test_what_is_not_served_is_refused_by_name(said: dict[str, Any] | None, message: str, tmp_path: Path) -> None:
    write_quantised(tmp_path, FP8, "channel")
    change_config(tmp_path, quantization_config=said)
    with pytest.raises(ModelError, match=message):
        load_target(tmp_path, pool_tokens=512)


def test_a_precision_is_known_and_does_not_fight_the_checkpoint(tmp_path: Path) -> None:
    write_quantised(tmp_path, FP8, "channel")
    with pytest.raises(ModelError, match="weights 'int4' are not known"):
        load_target(tmp_path, pool_tokens=512, precision="int4")
    with pytest.raises(ModelError, match="quantised already"):
        load_target(tmp_path, pool_tokens=512, precision="int8")
    assert load_target(tmp_path, pool_tokens=512, precision="fp8").vocab_size == checkpoints.VOCAB
