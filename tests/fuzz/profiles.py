"""Hypothesis profiles, and how many examples a test of each cost gets.

- ``ci``, the default: the same few examples on every machine and in every run.
- ``long``: 1,000 fresh examples a test; ``HYPOTHESIS_PROFILE=long`` or ``--hypothesis-profile=long``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

LONG_EXAMPLES = 1000
# Fixtures are folders and servers that no example changes for the next; examples load models, so they are slow.
_CHECKS = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture)


def register() -> None:
    """Makes both profiles known and chooses; before pytest reads ``--hypothesis-profile``."""
    # The guards of `oracles` bound an example's time: hypothesis' own deadline fails on a busy machine.
    common: dict[str, Any] = {"deadline": None, "suppress_health_check": _CHECKS, "print_blob": True}
    settings.register_profile("ci", derandomize=True, **common)
    settings.register_profile("long", max_examples=LONG_EXAMPLES, database=None, **common)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
    # Hypothesis also draws the constants of whatever modules of the checkout are loaded, `derandomize` or not:
    # the examples of a test would depend on the tests that ran before it. Random examples may have them.
    if settings.default.derandomize:
        providers.is_local_module_file = lambda path: False


def tries(in_ci: int) -> Callable[[Any], Any]:
    """How often a test is tried: ``in_ci`` times, or 1,000 in the long profile."""

    def decorate(test: Any) -> Any:
        is_long = settings.get_current_profile_name() == "long"
        return settings(max_examples=LONG_EXAMPLES if is_long else in_ci)(test)

    return decorate
