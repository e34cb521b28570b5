"""What a benchmark has measured so far, a line for each run as soon as it is over: one that was cut off goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class KeptError(ValueError):
    """What is there is of another setting, or is not to be gone on with."""


class Kept:
    """Results by name, in a file of JSON lines of which the first one is the setting.

    resume: those that are there are taken and not made again. Raises KeptError where they are of another setting, and
    where there are any that are not to be taken: figures of two runs must not be mixed.
    """

    def __init__(self, path: Path, setting: Mapping[str, Any], *, resume: bool) -> None:
        self._path = path
        self._found: dict[str, Any] = {}
        if path.exists():
            if not resume:
                raise KeptError(f"{path} holds the results of another run: --resume goes on with them; or give --runs")
            self._take(json.loads(json.dumps(setting)))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(setting) + "\n")

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def __getitem__(self, name: str) -> Any:
        return self._found[name]

    @property
    def everything(self) -> dict[str, Any]:
        return dict(self._found)

    def all(self, beginning: str) -> list[Any]:
        """The results whose names begin so, in the order in which they were made."""
        return [result for name, result in self._found.items() if name.startswith(beginning)]

    def put(self, name: str, result: Any) -> None:
        """Results are what JSON gives back, so that one that was kept is like one that was made now."""
        line = json.dumps([name, result])
        with self._path.open("a") as file:
            file.write(line + "\n")
        self._found[name] = json.loads(line)[1]

    def of(self, name: str, make: Callable[[], Any]) -> Any:
        """The result of that name, made now if it is not there."""
        if name not in self:
            self.put(name, make())
        return self[name]

    def _take(self, setting: Any) -> None:
        text = self._path.read_text()
        whole = text[: text.rfind("\n") + 1]  # whoever was cut off may have been writing
        if whole != text:
            self._path.write_text(whole)
        lines = whole.splitlines()
        if not lines or json.loads(lines[0]) != setting:
            raise KeptError(f"{self._path} was measured under another setting: {lines[0] if lines else 'none'}")
        self._found = dict(json.loads(line) for line in lines[1:])
