"""A Ray cluster on this machine, for the tests of the engine."""

import os

import pytest


@pytest.fixture(scope="module")
def cluster(request):
    """A head without cores, and two nodes with one core each; skipped where Ray is not installed.

    A module's RAY_CONFIG says how Ray differs from its defaults.
    """
    ray, cluster_utils = pytest.importorskip("ray"), pytest.importorskip("ray.cluster_utils")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": getattr(request.module, "RAY_CONFIG", {})}
    made = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    made.add_node(num_cpus=1)
    made.add_node(num_cpus=1)
    ray.init(made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()
