"""Lets Triton's own interpreter run the kernels on a CPU: slow, and the same code."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch


def interpret_without_gpu() -> bool:
    """Whether kernels can be run here. To be called before triton is first imported, which is when it decides.

    NumPy 2.4 no longer makes an int of an array of one number, which the interpreter of Triton 3.6 asks of it for loop
    bounds; that is mended here.
    """
    if importlib.util.find_spec("triton") is None:
        return False
    if torch.cuda.is_available():
        return True
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched
    return True
