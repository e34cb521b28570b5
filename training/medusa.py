"""Trains Medusa-1 heads (Cai et al. 2024, arXiv 2401.10774) for a frozen target.

`python -m training.medusa --target DIR --conversations FILE.jsonl --minutes 20 --ranks 2 --heads 4`; started again with
the same `--work` and `--heads` it goes on where it stopped.

Data, loss and schedule are those of an EAGLE-3 head, over the whole vocabulary: cross-entropy against the target's
distribution at the token that a head guesses, head i weighed 0.8^i, on the tokens of replies.
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
from training.eagle3.rows import STEPS
from training.eagle3.train import Run, Trainer, argument_parser, parse
from training.frozen import FrozenTarget
from training.llama import Shape
from training.parallel import Ranks, launch
from training.unroll import Rows


class Head(nn.Module):
    """One residual block, which begins as the identity, and output rows."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.linear = nn.Linear(shape.hidden, shape.hidden)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.lm_head = nn.Linear(shape.hidden, shape.vocab, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The states that are predicted from, of the target's, both [..., d]."""
        return x + F.silu(self.linear(x))


class Heads(nn.Module):
    """The trained parameters. Takes the place of an `Unrolled` head whose steps are the heads."""

    def __init__(self, shape: Shape, count: int) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("draft_ids", torch.arange(shape.vocab), persistent=False)
        self.heads = nn.ModuleList(Head(shape) for _ in range(count))

    @torch.no_grad()
    def begin_like(self, target: FrozenTarget) -> None:
        """Start from the target's output rows."""
        for head in self.heads:
            head.lm_head.weight.copy_(target.lm_head.weight)

    def forward(self, features: Tensor, ids: Tensor, embedding: Tensor, rows: Rows) -> list[Tensor]:
        """The states [B, M, d] that every head predicts from. features: [B, T, d], the target's behind its final norm.

        Head i reads the state at t and guesses the token at t + 2 + i, as step i of an unroll does.
        """
        x = features[torch.arange(len(ids), device=ids.device)[:, None], rows.at].float()
        return [head(x) for head in self.heads]

    def output_rows(self, step: int, target: FrozenTarget) -> Tensor:
        """[V, d], of one head."""
        return self.heads[step].lm_head.weight

    def config(self, base_model: str) -> dict[str, Any]:
        return {
            "medusa_num_heads": len(self.heads),
            "medusa_num_layers": 1,
            "base_model_name_or_path": base_model,
            "torch_dtype": "bfloat16",
        }

    def save(self, directory: Path, base_model: str) -> None:
        """The published layout of Medusa-1: of head i `{i}.0.linear.weight`, `{i}.0.linear.bias`, `{i}.1.weight`."""
        directory.mkdir(parents=True, exist_ok=True)
        published = {"linear.weight": "0.linear.weight", "linear.bias": "0.linear.bias", "lm_head.weight": "1.weight"}
        tensors = {
            f"{i}.{published[name]}": value.detach().cpu().bfloat16().contiguous()
            for i, head in enumerate(self.heads)
            for name, value in head.named_parameters()
        }
        file = directory / "medusa_lm_head.safetensors"
        save_file(tensors, file, metadata={"format": "pt"})
        file.chmod(0o644)
        (directory / "config.json").write_text(json.dumps(self.config(base_model), indent=2) + "\n")


class HeadsTrainer(Trainer):
    """One run. Its "draft vocabulary" is the target's whole one."""

    def __init__(self, num_heads: int, target: FrozenTarget, *arguments: Any, **options: Any) -> None:
        self.num_heads = num_heads
        super().__init__(target, torch.arange(target.shape.vocab), *arguments, **options)

    def begin(self, target: FrozenTarget, draft_ids: Tensor) -> tuple[Teacher, Heads]:
        heads = Heads(target.shape, self.num_heads)
        heads.begin_like(target)
        return Teacher(target), heads


def train(ranks: Ranks, arguments: argparse.Namespace) -> None:
    """One rank's part of a run; the first writes the heads."""
    run = Run.of(arguments, ranks)
    trainer = HeadsTrainer(arguments.heads, run.target, arguments, ranks)
    accepted = trainer.run(run.corpus, run.held_out)
    if ranks.first:
        trainer.head.save(arguments.out, arguments.target.name)
        trainer.note(accepted)


def main() -> None:
    parser = argument_parser(__doc__, "; for large ones 1e-3 is customary (Medusa's own README)")
    parser.add_argument("--heads", type=int, default=4, choices=range(1, STEPS + 1))
    arguments = parse(parser, "medusa")
    launch(train, arguments.ranks, arguments)


if __name__ == "__main__":
    main()
