"""Every stage, in the order in which they run: what others rest on first, what is largest last."""

from __future__ import annotations

from bench.gpu import calls, check, grown, large, pages, peers, profiles, steps
from bench.gpu.stages import Stage

STAGES = (
    Stage("device", 10, steps.describe),
    Stage("check", 150, check.check),
    Stage("plain", 25, steps.plain),
    Stage("verify", 35, steps.verify),
    Stage("cycle", 45, steps.cycles),
    Stage("forced", 1, steps.forced),
    Stage("profile", 20, profiles.profile),
    Stage("start", 80, steps.start),
    Stage("first", 30, calls.first_token),
    Stage("batch", 20, steps.batches),
    Stage("hibernate", 15, pages.hibernation),
    Stage("quality", 20, large.quality),
    Stage("grown", 110, grown.grown),
    Stage("peers", 70, peers.peers),
    Stage("large", 90, large.large),
    Stage("grown_large", 70, grown.grown_large),
    Stage("grpc", 30, calls.grpc),
)
