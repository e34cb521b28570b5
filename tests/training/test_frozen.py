"""The frozen target: what it gives a head is what the engine gives a drafter, for every family that is served and that
transformers knows (not MiMo).
"""

import pytest
import torch

from engine.interfaces import Window
from engine.tree import DraftTree
from tests.engine import checkpoints
from tests.engine.loading import load
from training.frozen import FrozenTarget


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


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no model"):
        FrozenTarget(tmp_path)


def test_the_identity_is_that_of_the_weights(small_target, other_target):
    first, again, other = FrozenTarget(small_target), FrozenTarget(small_target), FrozenTarget(other_target)
    assert first.identity() == again.identity() != other.identity()
