"""Whether one driver keeps up with a cluster: many fake runs of a second each, on nodes that are simulated here.

Each run sleeps and then sends back the files of a real, small run. Printed are the time that it all took beside the
time that the sleeping alone takes, what the driver's process used, and what asking again and the report took.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import ray
import yaml

from vaecli.config.loading import dump_config
from vaecli.reports.report import write_report
from vaecli.sweeps import ray_driver
from vaecli.sweeps.execution import run_sweep
from vaecli.sweeps.jobs import run_jobs
from vaecli.sweeps.ray_worker import Slice, SliceResult, pack
from vaecli.sweeps.sweep import Job, JobOptions, RunJobs, Sweep, SweepResult, load_sweep

BASE = {
    "model": {"hidden_dim": 10},
    "data": {"validation": 59_000},
    "training": {"epochs": 2},
    "device": "cpu",
}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--at-a-time", type=int, default=50, help="runs that the simulated cluster has room for")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        _simulate(Path(directory), arguments.runs, arguments.at_a_time, arguments.seconds)


def _simulate(directory: Path, n_runs: int, at_a_time: int, seconds: float) -> None:
    sweep = _sweep(directory, n_runs)
    (real,) = run_jobs([Job(sweep.configs[0], None, JobOptions(directory / "real", evaluation=sweep.evaluation))])
    assert real.run is not None, real.error
    assert real.path is not None
    files = pack(real.run)
    size = sum(map(len, files.values())) / 1e6
    evaluation = str(real.path.relative_to(real.run.path))
    ray_driver.train_slice = _fake(files, evaluation, seconds)
    ray.init(num_cpus=at_a_time, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    _warm_up(at_a_time)

    def do_all() -> SweepResult:
        return run_sweep(sweep, directory / "out", runs_dir=directory / "runs", engine="ray")

    print(f"{n_runs:,} runs of {seconds:g} s, {at_a_time} at a time, {size:.2f} MB each, {os.cpu_count()} cores")
    swept = _timed("all runs", do_all, floor=n_runs * seconds / at_a_time)
    failed = [result.error for result in swept.results if result.error]
    assert not failed, failed[0]
    _timed("asked for again", do_all)
    _timed("report", lambda: write_report(swept, directory / "out"))
    print(f"largest memory of the driver: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")
    ray.shutdown()


def _sweep(directory: Path, n_runs: int) -> Sweep:
    (directory / "base.yaml").write_text(yaml.safe_dump(BASE))
    latent_dims = [2, 5, 10, 20, 50]
    grid = {"model.latent_dim": latent_dims, "seed": list(range(n_runs // len(latent_dims)))}
    (directory / "fake.yaml").write_text(
        yaml.safe_dump({"base": "base.yaml", "grid": grid, "evaluation": {"k": 1, "binarised": False}})
    )
    return _timed("spec read and every point validated", lambda: load_sweep(directory / "fake.yaml"))


def _fake(files: dict[str, bytes], evaluation: str, seconds: float) -> Callable[[Slice, RunJobs], SliceResult]:
    """Return what nodes do instead: sleep, and send back the same files under the config that was asked for."""

    def train_slice(work: Slice, run_jobs: RunJobs) -> SliceResult:  # noqa: ARG001
        name = f"{datetime.now():%Y%m%d-%H%M%S}-bernoulli-s{work.config.seed}"  # noqa: DTZ005 (as a run's)
        time.sleep(seconds)
        status = json.loads(files["status.json"]) | {"identity": work.config.identity}
        changed = {"status.json": json.dumps(status).encode(), "config.yaml": dump_config(work.config).encode()}
        return SliceResult(name, files | changed, evaluation)

    return train_slice


def _warm_up(at_a_time: int) -> None:
    """Have every worker started and its imports done."""

    def sleep() -> None:
        import vaecli.sweeps.ray_worker  # noqa: F401

        time.sleep(20)

    ray.get([ray.remote(sleep).remote() for _ in range(at_a_time)])


def _timed(what: str, do: Callable[[], Any], floor: float | None = None) -> Any:
    began, used = time.perf_counter(), time.process_time()
    result = do()
    took, cpu = time.perf_counter() - began, time.process_time() - used
    beside = "" if floor is None else f", {took / floor:.2f} of the {floor:,.0f} s that the runs themselves take"
    print(f"{what}: {took:,.1f} s{beside}; {cpu:,.1f} s of the driver's processor", flush=True)
    return result


if __name__ == "__main__":
    main()
