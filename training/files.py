"""How trainers leave files behind: whole or not at all, and with a note of what they took."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write a file or a folder to, which becomes `path` once all of it is there."""
    part = path.with_name(path.name + ".part")
    if part.is_dir():
        shutil.rmtree(part)
    yield part
    if path.is_dir():
        shutil.rmtree(path)
    part.replace(path)


def note(directory: Path, seconds: float, steps: int, **more: Any) -> None:
    """`training.json`: the minutes and steps that what is in `directory` was trained for, and more about it."""
    account = {"minutes": round(seconds / 60, 1), "steps": steps, **more}
    (directory / "training.json").write_text(json.dumps(account) + "\n")
