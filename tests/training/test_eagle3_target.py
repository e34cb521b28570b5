"""A head belongs to one target and one draft vocabulary: for another, its training starts over."""

import pytest
import torch

from tests.training.heads import SMALL, randomise
from training.eagle3.train import Trainer
from training.llama import Llama


@pytest.mark.parametrize("changed", ["target", "draft vocabulary", "nothing"])
def test_a_head_begun_for_another_target_is_not_gone_on_with(changed, tmp_path, capsys):
    def trainer(target, draft_ids):
        return Trainer(target, draft_ids, tmp_path, minutes=1.0, seed=0)

    target, draft_ids = randomise(Llama(SMALL), 0), torch.arange(50)
    first = trainer(target, draft_ids)
    first.step, first.spent = 7, 9.0
    first.head.norm.weight.data.fill_(3.0)
    first.checkpoint()
    if changed == "target":
        target = randomise(Llama(SMALL), 1)
    elif changed == "draft vocabulary":
        draft_ids = draft_ids + 1
    again = trainer(target, draft_ids)
    kept = changed == "nothing"
    assert (again.step, again.spent) == ((7, 9.0) if kept else (0, 0.0))
    assert bool((again.head.norm.weight == 3.0).all()) == kept
    assert ("starting over" in capsys.readouterr().out) == (not kept)
