"""The recorded call that comes with the embedded model, and the command line as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from firstword.talk.script import Script, read_call
from tests.e2e.server import MODEL, ROOT

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="session")
def script() -> Script:
    return read_call(MODEL / "examples.jsonl")


@pytest.fixture
def firstword(tmp_path: Path) -> Iterator[Start]:
    """Starts ``firstword`` with the given arguments, away from the repository and without a terminal."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FIRSTWORD_", "OTEL_"))}
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "firstword.cli", *arguments],
            cwd=tmp_path,
            env={**inherited, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=60)
