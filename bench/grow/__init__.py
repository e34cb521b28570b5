"""Grow a small checkpoint into one that computes the same function at a larger model's cost per step.

    python -m bench.grow --model models/receptionist --out build/grown --layers 24 [--drafter medusa:DIR]

The width is multiplied by four: the residual stream is padded with zeros that stay zero, because nothing writes there.
RMSNorm averages over four times as many places, so its weights are halved and its epsilon quartered, both exact in
binary. Layers that are added write nothing (zero output projections). What is not multiplied into the answer stays
random rather than zero, since kernels may run faster on zeros. So acceptance is that of the trained pair, and a step
costs what a larger model's step costs: the two can be measured together without downloading anything.

The drafters of a target (EAGLE-3, Medusa, MTP, a draft model) grow with it in the same way.
"""

from bench.grow.directory import grow
from bench.grow.padding import WIDTH_FACTOR

__all__ = ["WIDTH_FACTOR", "grow"]
