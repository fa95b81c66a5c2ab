"""A short soak: the same jobs, measurements and bounds as ``benchmarks/soak.py``."""

import sys

import pytest
from helios_benchmarks import soak

JOBS, WARM, INTERRUPTS = 24, 12, 6


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures through /proc")
def test_jobs_leave_nothing_behind(comfyui_tree, tmp_path, monkeypatch):
    monkeypatch.setenv(soak.LIMIT_VARIABLE, str(soak.QUOTA_MIB / 1024))
    with soak.start(comfyui_tree, tmp_path) as server:
        rows = list(soak.soak(server, tmp_path, soak.plan(JOBS, INTERRUPTS, seed=0)))
    figures = soak.summary(rows, WARM)
    assert not figures["failed"], [row.outcome for row in rows]
    assert figures["rss_growth"] <= soak.ALLOWED_MIB
    assert figures["handles_growth"] <= soak.ALLOWED_HANDLES and figures["threads_growth"] <= soak.ALLOWED_THREADS
    assert figures["store_largest"] <= soak.QUOTA_MIB
