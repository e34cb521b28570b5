"""Trains an EAGLE-3 head (Li et al. 2025, arXiv 2503.01840) for the embedded target: `python -m training.eagle3`."""
