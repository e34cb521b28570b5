"""Trains an MTP module (DeepSeek-V3, arXiv 2412.19437, section 2.2) for a frozen target.

`python -m training.mtp --target DIR --conversations FILE.jsonl --minutes 20 --ranks 2`; started again with the same
`--work` it goes on where it stopped.

The one module drafts every level, so it is unrolled over its own normed states. Data, loss and schedule are those of
an EAGLE-3 head, over the whole vocabulary. Embeddings and output rows are the target's, tied or not, and its block is
of the target's kind: with its biases, its norms of queries and keys, its RoPE.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from training.eagle3.objective import Teacher
from training.eagle3.train import Run, Trainer, argument_parser, parse
from training.frozen import FrozenTarget
from training.llama import Layer, RMSNorm, Shape
from training.parallel import Ranks, launch
from training.unroll import Unrolled


class Module(Unrolled):
    """The trained parameters: a block of the target's shape over a projection of [embedding, state], both normed."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape, torch.arange(shape.vocab))
        self.enorm = RMSNorm(shape.hidden, shape.norm_eps)
        self.hnorm = RMSNorm(shape.hidden, shape.norm_eps)
        self.eh_proj = nn.Linear(2 * shape.hidden, shape.hidden, bias=False)
        self.layer = Layer(shape)
        self.norm = RMSNorm(shape.hidden, shape.norm_eps)
        self.draw()

    @torch.no_grad()
    def begin_like(self, target: FrozenTarget) -> None:
        """Start from the target: its last norm, and its state passed through."""
        size = self.shape.hidden
        self.eh_proj.weight[:, size:] += torch.eye(size)
        self.norm.weight.copy_(target.model.norm.weight)

    def fuse(self, features: Tensor) -> Tensor:
        return features

    def join(self, embedded: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        x = self.eh_proj(torch.cat([self.enorm(embedded), self.hnorm(hidden)], -1)).float()
        return self.layer.input_layernorm(x), x

    def close(self, x: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.norm(x)
        return normed, normed

    def output_rows(self, step: int, target: FrozenTarget) -> Tensor:
        return target.lm_head.weight

    def whole(self, states: Tensor, ids: Tensor, embedding: Tensor) -> Tensor:
        """Normed states [B, T, d] of all pairs of a target's state [B, T, d] and the token that followed it in ids
        [B, T]: the one at t predicts the token at t + 2.
        """
        length = ids.shape[1]
        _, x = self.join(embedding[F.pad(ids[:, 1:], (0, 1))], states)
        return self.norm(self.layer(x, self.cos[:length], self.sin[:length]))

    def config(self) -> dict[str, Any]:
        """`config.json`: the target's, whose layers the module is counted behind."""
        architecture = f"{self.shape.architecture}NextN"
        return self.shape.config() | {
            "architectures": [architecture],
            "num_nextn_predict_layers": 1,
            "torch_dtype": "bfloat16",
        }

    def save(self, directory: Path) -> None:
        """DeepSeek's names; without `embed_tokens` and `shared_head.head`, which are the target's."""
        directory.mkdir(parents=True, exist_ok=True)
        prefix = f"model.layers.{self.shape.layers}."
        tensors = {}
        for name, value in self.named_parameters():
            published = "shared_head.norm.weight" if name == "norm.weight" else name.removeprefix("layer.")
            tensors[prefix + published] = value.detach().cpu().bfloat16().contiguous()
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        (directory / "model.safetensors").chmod(0o644)
        (directory / "config.json").write_text(json.dumps(self.config(), indent=2) + "\n")


class ModuleTrainer(Trainer):
    """One run. Its "draft vocabulary" is the target's whole one."""

    def begin(self, target: FrozenTarget, draft_ids: Tensor) -> tuple[Teacher, Unrolled]:
        module = Module(target.shape)
        module.begin_like(target)
        return Teacher(target), module


def train(ranks: Ranks, arguments: argparse.Namespace) -> None:
    """One rank's part of a run; the first writes the module."""
    run = Run.of(arguments, ranks)
    trainer = ModuleTrainer(run.target, torch.arange(run.target.shape.vocab), arguments, ranks)
    accepted = trainer.run(run.corpus, run.held_out)
    if ranks.first:
        trainer.head.save(arguments.out)
        trainer.note(accepted)


def main() -> None:
    arguments = parse(argument_parser(__doc__), "mtp")
    launch(train, arguments.ranks, arguments)


if __name__ == "__main__":
    main()
