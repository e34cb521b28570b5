"""EAGLE-3 (Li et al. 2025, arXiv 2503.01840): a one-layer head over fused target features drafts a dynamic tree."""

from engine.proposers.eagle3.load import load_eagle3

__all__ = ["load_eagle3"]
