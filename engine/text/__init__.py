"""Text on both sides of the tokens: chat templates in, replies out. Ids are the truth, text is their view."""
