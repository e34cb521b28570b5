"""``firstword top``: what an instance does now, in the terminal, from its Prometheus endpoint alone."""
