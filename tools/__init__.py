"""Tools for developing the pack; nothing here is needed to use it."""
