"""Examples of a property are not timed: the machine that runs them may be busy with something else."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("service", deadline=None)
settings.load_profile("service")
