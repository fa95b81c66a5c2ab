"""A Ray cluster of this machine's own, two processors wide, which the farm's tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
CPUS, OBJECT_STORE = 2, 100_000_000


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator:
    """A head node in processes of its own; what it started is gone afterwards. Workers can import ``farm_stub``."""
    pytest.importorskip("ray", reason='Ray is not installed: pip install "ray[serve]"')
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER), str(FOLDER.parents[1])]))
        patch.syspath_prepend(str(FOLDER))
        node = {"num_cpus": CPUS, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
        cluster = Cluster(initialize_head=True, head_node_args=node)
        yield cluster
        cluster.shutdown()
        sys.modules.pop("farm_stub", None)
