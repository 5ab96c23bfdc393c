"""A Ray cluster on this machine, for the tests of the engine."""

import os

import pytest
import yaml

from vaecli.config.loading import dump_config


@pytest.fixture
def two_seeds(tmp_path):
    """Write a sweep of a config with two seeds, `s.yaml` in the test's folder, whose runs send back often."""

    def write(config):
        (tmp_path / "base.yaml").write_text(dump_config(config))
        spec = {
            "base": "base.yaml",
            "grid": {"seed": [0, 1]},
            "resources": {"sync_interval": 0.3},
            "evaluation": {"k": 3, "binarised": False},
        }
        (tmp_path / "s.yaml").write_text(yaml.safe_dump(spec))

    return write


@pytest.fixture(scope="module")
def cluster(request):
    """A head without cores, and two nodes with one core each; skipped where Ray is not installed.

    A parameter is Ray's own settings.
    """
    ray, cluster_utils = pytest.importorskip("ray"), pytest.importorskip("ray.cluster_utils")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": getattr(request, "param", None)}
    made = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    made.add_node(num_cpus=1)
    made.add_node(num_cpus=1)
    ray.init(made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()
