"""Causal attention for training on a CPU: PyTorch's flash forward with a backward made of matrix products.

The flash kernel's own backward takes 40 % of a training step on a CPU (41 % measured, 16 rows of 512); recomputing
the probabilities from the saved log-sum-exp (arXiv 2205.14135, section 3.1) with ordinary products is 2 to 3 times
faster there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 256
"""Query rows at a time: blocks above the diagonal are never computed."""


class CausalAttention(torch.autograd.Function):
    """softmax(q k^T / sqrt(head_dim), causal) v for q, k, v [B, heads, T, head_dim] of one dtype."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
        ctx.save_for_backward(q, k, v, out, log_sum)
        return out

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out, log_sum = ctx.saved_tensors  # type: ignore[attr-defined]
        grad = grads[0]
        length, scale = q.shape[2], q.shape[-1] ** -0.5
        delta = (grad.float() * out.float()).sum(-1, keepdim=True)
        grad_q, grad_k, grad_v = [], torch.zeros_like(k), torch.zeros_like(v)
        for start in range(0, length, BLOCK):
            end = min(length, start + BLOCK)
            rows = slice(start, end)
            seen = torch.arange(start, end)[:, None] >= torch.arange(end)[None, :]
            scores = torch.matmul(q[:, :, rows], k[:, :, :end].mT).float() * scale
            p = torch.where(seen, torch.exp(scores - log_sum[:, :, rows, None]), 0.0)
            grad_p = torch.matmul(grad[:, :, rows], v[:, :, :end].mT).float()
            grad_s = (p * (grad_p - delta[:, :, rows]) * scale).to(q.dtype)
            grad_q.append(torch.matmul(grad_s, k[:, :, :end]))
            below = (0, 0, 0, length - end)
            grad_k = grad_k + F.pad(torch.matmul(grad_s.mT, q[:, :, rows]), below)
            grad_v = grad_v + F.pad(torch.matmul(p.to(q.dtype).mT, grad[:, :, rows]), below)
        return torch.cat(grad_q, dim=2), grad_k, grad_v
