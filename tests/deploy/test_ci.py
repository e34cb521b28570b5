"""What CI runs, with a ``make`` in the place of the real one that says what it is asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.queries import ROOT

MAKE = '#!/bin/sh\necho "$1" >>asked\n[ "$1" != "$FAILING" ]\n'


@pytest.mark.parametrize(
    ("failing", "asked", "status"),
    [
        ("", ["lint", "test", "promtool", "test-alerts"], 0),
        ("lint", ["lint"], 1),
        ("test", ["lint", "test"], 1),
        ("promtool", ["lint", "test", "promtool"], 0),
        ("test-alerts", ["lint", "test", "promtool", "test-alerts"], 1),
    ],
)
def test_alerts_are_tested_and_where_they_cannot_be_it_is_said(
    failing: str, asked: list[str], status: int, tmp_path: Path
) -> None:
    (tmp_path / ".ci").mkdir()
    script = shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    (make := tmp_path / "bin" / "make").parent.mkdir()
    make.write_text(MAKE)
    make.chmod(0o755)
    environment = {"PATH": f"{make.parent}:{os.environ['PATH']}", "FAILING": failing}
    done = subprocess.run([script], env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == status
    assert (tmp_path / "asked").read_text().split() == asked
    assert ("THE ALERTS ARE NOT TESTED" in done.stderr) == (failing == "promtool")
