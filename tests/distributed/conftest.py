"""Ray clusters of this machine's own, which the farm's tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent
OBJECT_STORE = 100_000_000


def head(cpus: int) -> Iterator[Any]:
    """A head node in processes of its own; what it started is gone afterwards. Workers can import ``farm_stub``."""
    pytest.importorskip("ray", reason='Ray is not installed: pip install "ray[serve]"')
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER), str(FOLDER.parents[1])]))
        node = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
        try:
            cluster = Cluster(initialize_head=True, head_node_args=node)
        except Exception:  # Ray waits half a minute for its own processes, which a busy machine may exceed
            cluster = Cluster(initialize_head=True, head_node_args=node)
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    """Two processors wide."""
    yield from head(2)


@pytest.fixture
def ray_head() -> Iterator[Any]:
    """One processor wide, for a test that adds machines and loses them."""
    yield from head(1)


if str(FOLDER) not in sys.path:  # workers import the same module by the same name
    sys.path.append(str(FOLDER))
