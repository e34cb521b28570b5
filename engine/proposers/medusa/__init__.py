"""Medusa heads (Cai et al. 2024, arXiv 2401.10774): head i guesses the token i + 2 positions behind the target's last
state. The target itself chose the one between, the root, so head 0 guesses the root's children.
"""
