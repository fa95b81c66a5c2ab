"""Video files: written at once, or growing chunk by chunk."""
