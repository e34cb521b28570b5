"""Every stage, in the order in which they run: what others rest on, then what targets speak of, then the rest.

The time boxes of all that targets speak of fit one call of ten minutes.
"""

from __future__ import annotations

from bench.gpu import calls, check, grown, large, pages, peers, profiles, steps
from bench.gpu.stages import Stage

STAGES = (
    Stage("device", 10, steps.describe),
    Stage("check", 120, check.check),
    Stage("plain", 20, steps.plain),
    Stage("verify", 30, steps.verify),
    Stage("cycle", 45, steps.cycles),
    Stage("forced", 1, steps.forced),
    Stage("first", 20, calls.first_token),
    Stage("grown", 100, grown.grown),
    Stage("large", 80, large.large),
    Stage("start", 50, steps.start),
    Stage("hibernate", 15, pages.hibernation),
    Stage("batch", 20, steps.batches),
    Stage("grown_large", 60, grown.grown_large),
    Stage("profile", 15, profiles.profile),
    Stage("quality", 15, large.quality),
    Stage("peers", 70, peers.peers),
    Stage("grpc", 30, calls.grpc),
)
