"""Trains a target together with an MTP module from the first step, as DeepSeek-V3 was (arXiv 2412.19437, section 2.2).

`python -m training.mtp_target --data DIR --out DIR --minutes 55 --ranks 2`; `--data` is that of `training.data`. The
target is in `model` under `--out` and its module in `model/mtp`. Started again with the same `--out` it goes on where
it stopped.

Data, curriculum and schedule are the target's. The module reads the target's states and learns the text itself, one
token further on; its loss reaches the target's layers too, which learn to plan ahead.
"""

import torch
from torch import Tensor, nn

from training.corpus import Batch
from training.mtp import Module
from training.target import SHAPE, Trainer, main

SHARE = 0.3
"""Weight of the module's loss (DeepSeek's, of the first part of its training)."""


class JointTrainer(Trainer):
    """One run: the target and its module."""

    def begin(self) -> nn.Module:
        self.module = Module(self.model.shape)
        self.ahead = torch.compile(self.module.whole, dynamic=False)
        return nn.ModuleDict({"target": self.model, "module": self.module})

    def loss_of(self, batch: Batch) -> Tensor:
        embedding = self.model.model.embed_tokens.weight
        states = self.hidden(batch.ids)
        loss = self.loss(states.flatten(0, 1)[batch.at], embedding, batch.target, batch.weight)
        # What the target predicts at a position, the module predicts at the one before, where the row has one.
        has_before = batch.at % batch.ids.shape[1] > 0
        before = (batch.at - 1).clamp(min=0)
        ahead = self.ahead(states, batch.ids, embedding).flatten(0, 1)[before]
        return loss + SHARE * self.loss(ahead, embedding, batch.target, batch.weight * has_before)

    def checkpoint(self) -> None:
        super().checkpoint()
        if self.ranks.first:
            self.module.save(self.out / "model" / "mtp")


if __name__ == "__main__":
    main(__doc__, SHAPE, JointTrainer)
