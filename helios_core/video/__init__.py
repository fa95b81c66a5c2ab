"""Video files and their frames: written at once, or growing chunk by chunk."""
