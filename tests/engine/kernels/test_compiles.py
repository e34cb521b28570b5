"""Kernels compile for the cards they are written for. Interpreted, they never meet Triton's types, nor ptxas."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton has no wheels for this platform")

ROOT = Path(__file__).resolve().parents[3]
SHARED_BYTES = 227 * 1024
"""Of one block on an H100."""
KERNELS = {"_attend_split", "_join", "_add_norm", "_gate", "_write", "_scaled_linear", "_noise"}
CHOOSING = {"_scan", "_win", "_weigh", "_judge"}


@pytest.mark.timeout(900)  # nothing is in Triton's cache on a fresh machine
def test_every_kernel_compiles_for_an_h100_and_fits_it() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.gpu.compiling", "--dtype", "bfloat16"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=880, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| _")]
    assert {row[0] for row in rows} == KERNELS | CHOOSING
    for name, case, registers, spilled, shared in rows:
        most = 256 if "heads of 256" in case else 64  # no target of ours has such heads
        assert int(registers) <= 255 and int(spilled) <= most, f"{name} of {case} spills {spilled} bytes"
        assert int(shared) <= SHARED_BYTES, f"{name} of {case} wants {shared} bytes of a block's memory"
