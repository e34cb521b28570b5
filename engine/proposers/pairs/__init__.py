"""Heads of one layer that read pairs: a state of the target, and the token that the target chose there."""
