"""Servers and clients of two revisions behind one store: one takes the other's place, and back, while calls go on."""
