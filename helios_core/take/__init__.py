"""A take: one complete render, from the history it starts with to its chunks on disk."""
