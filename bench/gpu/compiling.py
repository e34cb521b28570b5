"""Compiles every kernel for a card that is not there: Triton needs none until it launches.

    python -m bench.gpu.compiling [--dtype bfloat16]

Goes through the same functions that forwards call, with launches left out, and prints what ptxas says of each binary:
registers, spills, shared memory. Not in a process that interprets kernels (``TRITON_INTERPRET``).
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from bench.gpu.cases import random_case, random_choice
from bench.harness import table
from engine.kernels.fused import attention, block, choose, matmul
from engine.models.layers import HeadNorms, Rotary
from engine.quantize import PRECISIONS, quantise

TARGET = GPUTarget("cuda", 90, 32)
"""H100 and H200."""
DTYPES = ("bfloat16", "float16", "float32")
CPU = torch.device("cpu")


class NoCard(DriverBase):  # type: ignore[misc]
    """Answers what the compiler asks of a driver."""

    def __init__(self) -> None:
        pass

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return CPU

    def get_benchmarker(self) -> Any:
        raise NotImplementedError

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty


@dataclass(frozen=True)
class Binary:
    """One compiled kernel. shared: bytes of a block."""

    kernel: str
    case: str
    registers: int
    spilled_bytes: int
    shared: int


def compiled(dtypes: Sequence[str]) -> Iterator[Binary]:
    """Every kernel, in shapes of 8B and 70B, and attention of the broadest heads that are served."""
    driver.set_active(NoCard())
    found: list[tuple[str, Any]] = []
    run = JITFunction.run

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        found.append((self.__name__, kernel))
        return kernel

    JITFunction.run = compile_only
    try:
        for case, work in _cases(dtypes):
            found.clear()
            work()
            for name, kernel in dict(found).items():
                yield Binary(name, case, *_said_by_ptxas(kernel.asm["ptx"]), kernel.metadata.shared)
    finally:
        JITFunction.run = run


def _said_by_ptxas(ptx: str) -> tuple[int, int]:
    """(registers, bytes of spills)."""
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "kernel.ptx"
        source.write_text(ptx)
        arch = re.search(r"\.target (\w+)", ptx)
        assert arch is not None
        command = [str(ptxas), "-v", f"--gpu-name={arch[1]}", str(source), "-o", str(source.with_suffix(".cubin"))]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, spills = re.search(r"Used (\d+) registers", said), re.findall(r"(\d+) bytes spill", said)
    assert registers is not None
    return int(registers[1]), sum(map(int, spills))


def _cases(dtypes: Sequence[str]) -> Iterator[tuple[str, Callable[[], object]]]:
    for name in dtypes:
        dtype = getattr(torch, name)
        yield from _attention(dtype, name)
        yield from _block(dtype, name)
        for kind in filter(None, PRECISIONS.values()):
            for outputs in (64, 10_240):  # tiles of few and of many units
                matrix = quantise(torch.randn(outputs, 512), kind)
                for n in (1, 64):
                    x, case = torch.zeros(n, 512, dtype=dtype), f"{kind}, {n} rows to {outputs}, {name}"
                    yield case, lambda x=x, m=matrix: matmul.scaled_linear(x, m.weight, m.scale, 512)
    logits = torch.zeros(2, 128_256, dtype=torch.bfloat16)
    allowed = torch.zeros(2, -(-128_256 // 32), dtype=torch.int32)
    choice = replace(random_choice(random.Random(0), CPU, 2, 128_256, filters=True), allowed=None)
    yield "[2, 128256]", lambda: choose.choose(logits, choice)
    yield "[2, 128256], masked", lambda: choose.choose(logits, replace(choice, allowed=allowed))
    yield "[2, 128256]", lambda: choose.noise(choice.seed, choice.index, 128_256)


def _attention(dtype: torch.dtype, name: str) -> Iterator[tuple[str, Callable[[], object]]]:
    rng = random.Random(0)
    for heads, kv_heads, head_dim in ((32, 8, 128), (64, 8, 128), (16, 4, 256)):
        if head_dim == 256 and dtype == torch.float32:
            continue  # which is not served
        for rows, chains in ((1, False), (60, False), (256, True)):
            case = random_case(rng, CPU, rows=rows, length=4096, chains=chains)
            query = torch.zeros(rows, heads, head_dim, dtype=dtype)
            kv = torch.zeros(2, case.slots, kv_heads, head_dim, dtype=dtype)
            shape = f"{heads}/{kv_heads} heads of {head_dim}, {rows} rows{' of a chain' if chains else ''}, {name}"
            yield shape, lambda query=query, kv=kv, case=case: attention.attend(query, kv, case.rows)


def _block(dtype: torch.dtype, name: str) -> Iterator[tuple[str, Callable[[], object]]]:
    for width in (4096, 8192):
        x, weight = torch.zeros(2, width, dtype=dtype), torch.zeros(width, dtype=dtype)
        yield f"[2, {width}], {name}", lambda x=x, w=weight: block.add_norm(x, x, w, 1e-5)
    gate_up = torch.zeros(2, 2 * 14_336, dtype=dtype)
    yield f"[2, 14336], {name}", lambda: block.gate(gate_up)
    case = random_case(random.Random(0), CPU, rows=4, length=40)
    rotary = Rotary({"rope_type": "default", "rope_theta": 5e5}, 128, 64, dtype, CPU)
    qkv, kv = torch.zeros(4, 48, 128, dtype=dtype), torch.zeros(2, case.slots, 8, 128, dtype=dtype)
    weight = torch.zeros(128, dtype=dtype)
    for norms in (None, HeadNorms(weight, weight, 1e-5)):
        shape = f"32/8 heads of 128{'' if norms is None else ', normed'}, {name}"
        yield shape, lambda norms=norms: block.write(qkv, norms, kv, case.rows, rotary)


def main() -> None:
    header = ["kernel", "case", "registers", "bytes spilled", "shared memory"]
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.compiling", description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", choices=DTYPES, action="append")
    dtypes = parser.parse_args().dtype or DTYPES
    print(f"Compiled for sm_{TARGET.arch} by Triton {triton.__version__}\n\n{table(header, [])}", flush=True)
    for binary in compiled(dtypes):
        print(f"| {' | '.join(map(str, astuple(binary)))} |", flush=True)


if __name__ == "__main__":
    main()
