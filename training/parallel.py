"""Data-parallel training on the cores of one machine. Owns the processes and what they say to each other; knows no
model.

A rank is a process with one thread. All ranks begin with the same weights, take different rows of the same step,
average their gradients and so stay equal bit for bit. (Two ranks on two cores train 1.9 times the tokens of one;
two threads in one process, 1.2 times: the matrices are small.)
"""

import signal
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """This process's place among `count` ranks."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this rank writes the files and the log."""
        return self.rank == 0

    def once(self, work: Callable[[], None]) -> None:
        """The first rank does the work; the others go on when it is done."""
        if self.first:
            work()
        if self.count > 1:
            dist.barrier()

    def average(self, parameters: Iterable[nn.Parameter], *figures: float) -> list[float]:
        """Replace every gradient by its mean over the ranks; returns the means of `figures`."""
        if self.count == 1:
            return list(figures)
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([torch.tensor(figures, dtype=torch.float32), *(g.flatten() for g in gradients)])
        dist.all_reduce(flat)
        flat /= self.count
        means, *pieces = flat.split([len(figures), *(g.numel() for g in gradients)])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))
        return means.tolist()

    def check_equal(self, parameters: Iterable[nn.Parameter]) -> None:
        """Raises RuntimeError where the ranks' weights have come apart: the checkpoint would be of one of them."""
        if self.count == 1:
            return
        sums = torch.stack([p.detach().double().sum() for p in parameters])
        highest, lowest = sums.clone(), sums.clone()
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        dist.all_reduce(lowest, dist.ReduceOp.MIN)
        if not torch.equal(highest, lowest):
            raise RuntimeError("the ranks' weights differ")


ALONE = Ranks()
PATIENCE = timedelta(days=1)
"""How long a rank waits for another. One that fails ends all at once; one that encodes a large file may take hours."""


def _enter(rank: int, count: int, store: str, train: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    # PyTorch has a rank interrupted when its launcher dies, and what runs in the background inherits deaf ears: ranks
    # would train on, and write over what a new run writes.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=PATIENCE)
    train(Ranks(rank, count), *arguments)
    dist.barrier()  # a rank that leaves while another still talks to it takes that one down
    dist.destroy_process_group()


def launch(train: Callable[..., None], count: int, *arguments: Any) -> None:
    """Run `train(ranks, *arguments)` in `count` processes, a single one here. `train` must not belong to a package's
    `__main__`, which spawned processes do not import.

    A rank that fails ends the others. Raises torch.multiprocessing.ProcessRaisedException with its traceback.
    """
    if count == 1:
        torch.set_num_threads(1)
        train(Ranks(), *arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        torch.multiprocessing.spawn(_enter, (count, store, train, arguments), nprocs=count)


def sum_over(ranks: Ranks, counts: Tensor) -> Tensor:
    """`counts` summed over the ranks."""
    if ranks.count > 1:
        dist.all_reduce(counts)
    return counts
