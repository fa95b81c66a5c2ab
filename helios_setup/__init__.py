"""What `run.py` does: the environment, the ComfyUI tree, the server and the commands over them.

Everything here imports the standard library only at module level, because it runs before any package is
installed.
"""
