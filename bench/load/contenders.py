"""What is compared: settings of the engine, by name. Add a line to compare another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

Settings = Mapping[str, str | int]
"""Keys of ``[engine]``, as docs/configuration.md has them. ``{model}`` stands for the model's directory."""

CONTENDERS: Mapping[str, Settings] = {
    "ours": {},
    "plain": {"draft_mode": "plain"},
    "self-speculation": {"draft_mode": "suffix"},
    "FCFS EAGLE-3, 8 nodes": {"scheduling": "fcfs", "drafter": "eagle3:{model}/eagle3", "draft_nodes": 8},
    "FCFS EAGLE-3, 24 nodes": {"scheduling": "fcfs", "drafter": "eagle3:{model}/eagle3", "draft_nodes": 24},
    "FCFS plain": {"scheduling": "fcfs", "draft_mode": "plain"},
}
"""``ours`` is the service as it is: deadlines, and drafting by the load. FCFS: first come, first served. All of them
serve their calls in shared steps.
"""


def environment(settings: Settings, model: Path, dtype: str, speaking_rate: float) -> dict[str, str]:
    """The service's environment variables for a contender on a model. Keys that it sets itself count.

    speaking_rate: tokens a second at which the callers' speech is spoken.
    """
    base: Settings = {"model": str(model), "dtype": dtype, "threads": 1, "speaking_rate": f"{speaking_rate:g}"}
    merged = {**base, **settings}
    return {
        f"FIRSTWORD_ENGINE__{key.upper()}": str(value).replace("{model}", str(model)) for key, value in merged.items()
    }
