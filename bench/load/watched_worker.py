"""An engine process that tells of each of its steps as well: ``engine.worker``, with ``bench.load.engine_steps``."""

from __future__ import annotations

import sys

from bench.load.engine_steps import watch
from engine import records, worker
from engine.config import EngineConfig
from engine.host import EngineHost
from engine.load import load_host
from engine.ranks.launch import Ranks


def load_watched(config: EngineConfig, ranks: Ranks | None = None) -> tuple[EngineHost, records.Ready]:
    host, ready = load_host(config, ranks)
    watch(host)
    return host, ready


if __name__ == "__main__":
    worker.load_host = load_watched  # type: ignore[attr-defined]
    sys.exit(worker.main(sys.argv))
