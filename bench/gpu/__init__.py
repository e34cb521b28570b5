"""Measures the engine on a GPU: see ``bench.gpu.__main__``."""

import time

BEGUN = time.monotonic()
"""When the run began: loading torch and what it brings is a part of the lease."""
