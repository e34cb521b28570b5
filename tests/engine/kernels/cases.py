"""Both versions of the kernels, on this machine's device."""

from __future__ import annotations

import pytest
import torch

from engine.kernels.ops import Ops, ops_for
from engine.kernels.plain import PlainOps

pytest.importorskip("triton", reason="Triton has no wheels for this platform")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PLAIN: Ops = PlainOps()
TRITON: Ops = ops_for(DEVICE, "triton")
