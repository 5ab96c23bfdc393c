"""Train sweeps of many tiny runs on a local Ray cluster and count those that failed: `python scripts/ray_sweeps.py`.

Slices that begin at once on one node share its scratch directory: what they do to each other shows here. A cluster is
started for each sweep, as `vae sweep --engine ray` does.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from vaecli.config.jobs import EvaluationSpec, Resources
from vaecli.config.loading import parse_config
from vaecli.sweeps.execution import run_configs
from vaecli.sweeps.sweep import JobOptions


def main() -> None:
    """Train them, and print what became of each sweep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", type=int, default=20)
    parser.add_argument("--runs", type=int, default=20, help="of each sweep")
    parser.add_argument("--sync-interval", type=float, default=0.2, help="seconds of a slice")
    arguments = parser.parse_args()
    n_failed = 0
    with tempfile.TemporaryDirectory() as directory:
        images = Path(directory) / "images.npy"
        np.save(images, np.random.default_rng(0).integers(0, 256, (60, 6, 5), dtype=np.uint8))
        for sweep in range(arguments.sweeps):
            n_failed += _sweep(Path(directory) / f"sweep-{sweep}", images, arguments.runs, arguments.sync_interval)
    print(f"{n_failed} of {arguments.sweeps * arguments.runs} runs failed")


def _sweep(directory: Path, images: Path, n_runs: int, sync_interval: float) -> int:
    """Return how many runs of a sweep failed."""
    values = {
        "data": {"name": str(images)},
        "model": {"latent_dim": 3, "hidden_dim": 8},
        "training": {"epochs": 3, "batch_size": 10, "compile": "off"},
        "device": "cpu",
    }
    configs = [parse_config(values | {"seed": seed, "name": "tiny"}) for seed in range(n_runs)]
    options = JobOptions(directory, evaluation=EvaluationSpec(k=3, binarised=False))
    began = time.perf_counter()
    results = run_configs(configs, options, engine="ray", resources=Resources(sync_interval=sync_interval))
    failed = [result.error for result in results if result.error]
    seconds = time.perf_counter() - began
    print(f"{directory.name}: {len(results)} runs in {seconds:.0f} s, {len(failed)} failed", flush=True)
    for error in failed:
        print(f"  {error}", flush=True)
    return len(failed)


if __name__ == "__main__":
    main()
