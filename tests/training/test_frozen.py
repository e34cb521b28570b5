"""The frozen target: what it gives a head is what the engine gives a drafter, for every family that is served and that
transformers knows (not MiMo).
"""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from engine.interfaces import Window
from engine.models.config import read_config
from engine.tree import DraftTree
from tests.engine import checkpoints
from tests.engine.loading import load
from tests.training.heads import KINDS, LINEAR, SMALL
from training.frozen import FrozenTarget, shape_of


@pytest.mark.parametrize("name", [name for name in checkpoints.CONFIGS if name != "mimo"])
def test_states_are_those_that_the_engine_taps(name, tmp_path):
    checkpoints.write(name, tmp_path)
    frozen, target = FrozenTarget(tmp_path), load(tmp_path, torch.float32)
    layers = frozen.shape.layers
    taps = tuple(sorted({1, layers // 2, layers - 1}))
    ids = torch.randint(0, checkpoints.VOCAB, (20,), generator=torch.Generator().manual_seed(1))
    features, last = frozen.states(ids[None], taps)
    cache = target.new_cache()
    cache.reserve(20)
    output = target.forward([Window(cache, DraftTree.chain(ids), "last")], (*taps, "norm"))[0]
    cache.close()
    width = frozen.shape.hidden
    assert output.features is not None and output.logits is not None
    for at in range(len(taps)):
        mine = features[0, :, at * width : (at + 1) * width]
        torch.testing.assert_close(mine, output.features[:, at], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(last[0], output.features[:, len(taps)], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(frozen.logits(last)[0, -1], output.logits[-1], atol=1e-3, rtol=1e-4)
    assert torch.equal(frozen.states(ids[None])[0], frozen.states(ids[None])[1])


@pytest.mark.parametrize("target_of_kind", KINDS, indirect=True)
def test_a_shape_writes_the_config_that_it_is_read_from(target_of_kind, tmp_path):
    shape = shape_of(target_of_kind)
    (tmp_path / "config.json").write_text(json.dumps(shape.config()))
    assert shape_of(tmp_path) == shape
    assert read_config(tmp_path) == read_config(target_of_kind)
    assert (shape != shape.plain) == any((shape.rope_scaling, shape.qkv_bias, shape.output_bias, shape.qk_norm))


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot read config"):
        FrozenTarget(tmp_path)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM is not supported"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "RoPE type 'yarn' is not supported"),
        ({"sliding_window": 64}, "sliding-window attention"),
        ({"mlp_bias": True}, "biases in the MLP"),
    ],
)
def test_what_is_not_served_is_refused_before_its_weights_are_read(changes, why, tmp_path):
    checkpoints.write("llama-tied", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"no drafter can be trained for .*{why}"):
        FrozenTarget(tmp_path)


def test_the_identity_is_that_of_the_weights_and_of_the_config(small_target, other_target, tmp_path):
    scaled = tmp_path / "scaled"
    shutil.copytree(small_target, scaled)
    (scaled / "config.json").write_text(json.dumps(replace(SMALL, rope_scaling=LINEAR).config()))
    identities = [FrozenTarget(path).identity() for path in (small_target, small_target, other_target, scaled)]
    assert identities[0] == identities[1] and len(set(identities)) == 3
