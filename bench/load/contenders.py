"""What is compared: settings of the engine, by name. Add a line to compare another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

Settings = Mapping[str, str | int]
"""Keys of ``[engine]``, as docs/configuration.md has them. ``{model}`` stands for the model's directory."""

OURS, PLAIN, FCFS_PLAIN = "ours", "plain", "FCFS plain"
TREES = {nodes: f"FCFS EAGLE-3, {nodes} nodes" for nodes in (4, 8, 24)}
"""What always drafts a tree of one size, by its size."""
CONTENDERS: Mapping[str, Settings] = {
    OURS: {},
    PLAIN: {"drafter": "none", "draft_mode": "plain"},
    "self-speculation": {"drafter": "suffix", "draft_mode": "suffix"},
    **{
        name: {"scheduling": "fcfs", "drafter": "eagle3:{model}/eagle3", "draft_nodes": nodes}
        for nodes, name in TREES.items()
    },
    FCFS_PLAIN: {"scheduling": "fcfs", "drafter": "none", "draft_mode": "plain"},
}
"""``ours`` is the service as it is: deadlines, and drafting by the load. FCFS: first come, first served. All of them
serve their calls in shared steps; none has a drafter loaded that it does not ask.
"""


def environment(settings: Settings, model: Path, dtype: str, speaking_rate: float) -> dict[str, str]:
    """The service's environment variables for a contender on a model. Keys that it sets itself count.

    speaking_rate: tokens a second at which the callers' speech is spoken. Nobody is refused for the speech that there
    is already: it is to be seen how much of it each contender carries.
    """
    base: Settings = {"model": str(model), "dtype": dtype, "threads": 1, "speaking_rate": f"{speaking_rate:g}"}
    merged = {**base, **settings}
    engine = {
        f"FIRSTWORD_ENGINE__{key.upper()}": str(value).replace("{model}", str(model)) for key, value in merged.items()
    }
    return {**engine, "FIRSTWORD_ADMISSION__MAX_SPEECH_LOAD": "1000"}
