"""One command for everything around the pack: setup, demo, serve, test, tiny.

Uses the standard library only; what needs packages runs again inside the environment that `setup` makes.
"""

import sys

OLDEST_PYTHON = (3, 10)

if __name__ == "__main__":
    if sys.version_info < OLDEST_PYTHON:
        # Before the import: the package behind it does not parse on older interpreters.
        sys.exit(f"Helios needs Python 3.10 or newer; {sys.executable} is {sys.version.split()[0]}.")
    from helios_setup.commands import main

    sys.exit(main())
