"""A head belongs to one target, one draft vocabulary and one learning rate: for another, its training starts over."""

import pytest
import torch

from tests.training.heads import asked
from training.eagle3.train import Trainer
from training.frozen import FrozenTarget


@pytest.mark.parametrize("changed", ["target", "draft vocabulary", "rate", "nothing"])
def test_a_head_begun_for_another_target_is_not_gone_on_with(changed, small_target, other_target, tmp_path, capsys):
    arguments = asked(tmp_path)

    def trainer(target, draft_ids):
        return Trainer(target, draft_ids, arguments)

    target, draft_ids = FrozenTarget(small_target), torch.arange(50)
    first = trainer(target, draft_ids)
    first.step, first.spent = 7, 9.0
    first.head.norm.weight.data.fill_(3.0)
    first.checkpoint()
    if changed == "target":
        target = FrozenTarget(other_target)
    elif changed == "draft vocabulary":
        draft_ids = draft_ids + 1
    elif changed == "rate":
        arguments.rate /= 2
    again = trainer(target, draft_ids)
    kept = changed == "nothing"
    assert (again.step, again.spent) == ((7, 9.0) if kept else (0, 0.0))
    assert bool((again.head.norm.weight == 3.0).all()) == kept
    assert ("starting over" in capsys.readouterr().out) == (not kept)
