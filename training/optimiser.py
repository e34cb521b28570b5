"""Muon for the matrices, AdamW for the rest. Owns the update rules only."""

import torch
from torch import Tensor, nn

from training.precision import matrix_dtype

MUON_RATE = 0.5
"""Muon's learning rate over AdamW's. At 2e-3 it washed out the target's induction head before dialogues began
(measured).
"""
RATE_HELP = (
    f"highest learning rate of AdamW; Muon, for the hidden matrices, takes {MUON_RATE:g} of it (default %(default)s)"
)


def orthogonalise(update: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix to each of `update` [n, rows, columns], roughly, by a quintic Newton-Schulz
    iteration (Jordan et al. 2024, "Muon").
    """
    x = update.to(matrix_dtype(update.device.type))
    wide = x if x.shape[-2] <= x.shape[-1] else x.mT
    wide = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = wide @ wide.mT
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return (wide if x.shape[-2] <= x.shape[-1] else wide.mT).float()


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose matrix is orthogonalised; `lr` is the update's root mean square entry, as for Adam
    (arXiv 2502.16982).
    """

    def __init__(
        self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.1
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            same_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                same_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in same_shape.items():
                updates = []
                for parameter in parameters:
                    momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                    momentum.lerp_(parameter.grad, 1 - group["momentum"])
                    updates.append(parameter.grad.lerp(momentum, group["momentum"]))
                scale = group["lr"] * max(shape) ** 0.5
                for parameter, update in zip(parameters, orthogonalise(torch.stack(updates)), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=scale)


def is_token_table(name: str) -> bool:
    """Whether a parameter has a row per token."""
    return "embed" in name or "lm_head" in name


def optimisers(model: nn.Module, muon: bool) -> list[torch.optim.Optimizer]:
    """The optimisers of a model's parameters: hidden matrices apart from embeddings and output rows. The schedule sets
    their learning rates before each step.
    """
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and not is_token_table(name)]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or is_token_table(name)]
    settings = {"lr": 0.0, "betas": (0.9, 0.95), "fused": True}
    if muon:
        return [Muon(matrices, 0.0), torch.optim.AdamW(others, weight_decay=0.0, **settings)]
    return [
        torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], **settings
        )
    ]


def rate_at(peak: float, warm_up_steps: int, step: int, progress: float) -> float:
    """Learning rate of a step: linear to 0 over the time (`progress`: the share that is used), after a warm-up."""
    return peak * min(1.0, (step + 1) / warm_up_steps) * max(0.0, 1.0 - progress)


def update(used: list[torch.optim.Optimizer], rate: float) -> None:
    """Take a step at AdamW's learning rate `rate`, and clear the gradients."""
    for optimiser in used:
        for group in optimiser.param_groups:
            group["lr"] = rate * MUON_RATE if isinstance(optimiser, Muon) else rate
        optimiser.step()
        optimiser.zero_grad()
