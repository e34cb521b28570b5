"""Every way of drafting, side by side on the same calls: what is accepted, what it costs, and how fast replies come."""
