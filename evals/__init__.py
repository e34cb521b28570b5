"""Quality: what the models say. Imports the rest; nothing imports it."""
