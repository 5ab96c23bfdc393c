"""The Ray engine on a real cluster of several nodes on this machine; skipped where Ray is not installed."""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from identical import traces
from vaecli.config.loading import dump_config
from vaecli.data import sources
from vaecli.errors import InterruptedRunError, LimitReachedError, ReproducibilityWarning, UsageError
from vaecli.files import lock
from vaecli.runs.checkpoint import load_checkpoint, save_checkpoint
from vaecli.runs.run import LOCK, list_runs
from vaecli.sweeps.execution import run_all
from vaecli.sweeps.jobs import JobOptions, Resources
from vaecli.training.loop import train
from vaecli.training.stopping import Limit

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")
from vaecli.sweeps import ray_driver as engine  # noqa: E402 (needs Ray)
from vaecli.sweeps import ray_worker as legs  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # Ray's own are not ours to mend
OFTEN = Resources(seconds_per_delivery=0.3)


@pytest.fixture(scope="module")
def cluster():
    """A head without cores, and two nodes with one core each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.add_node(num_cpus=1)
    made.add_node(num_cpus=1)
    ray.init(made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def work(tmp_path):
    return JobOptions(tmp_path / "runs", k=3, binarised=False)


def delivered(runs_dir: Path) -> bool:
    return any(run.last.is_file() for run in list_runs(runs_dir))


def comparable(figures: dict) -> dict:
    return {key: value for key, value in figures.items() if key not in {"seconds_per_epoch", "seconds", "path", "run"}}


def test_a_node_that_dies_midway_changes_nothing_but_the_time(cluster, work, small, tmp_path, monkeypatch):
    configs = [small(seed=seed, training={"epochs": 200}) for seed in range(4)]
    killed_at, lost, get = [], [], ray.get

    def kill_a_node() -> bool:
        """Asked again and again: once something has been delivered, until something is lost with its node."""
        if not lost and delivered(work.runs_dir) and (not killed_at or time.monotonic() - killed_at[-1] > 5):
            cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
            killed_at.append(time.monotonic())
            cluster.add_node(num_cpus=1)
        return False

    def get_or_note(reference):
        try:
            return get(reference)
        except ray.exceptions.RayError as error:
            lost.append(error)
            raise

    monkeypatch.setattr(ray, "get", get_or_note)
    outcomes = run_all(configs, work, engine="ray", resources=OFTEN, stop=kill_a_node)
    assert lost
    assert [outcome.error for outcome in outcomes] == [None] * 4
    here = run_all(configs, JobOptions(tmp_path / "here", k=3, binarised=False), jobs=2, resources=Resources())
    for there, alone in zip(outcomes, here, strict=True):
        assert traces(there.run) == traces(alone.run)
        assert comparable(there.figures) == comparable(alone.figures)
        assert there.figures["run"] == there.run.name
    assert len(list_runs(work.runs_dir)) == 4
    assert not any(run.is_training for run in list_runs(work.runs_dir))

    before = {run.path: run.last.stat().st_mtime_ns for run in list_runs(work.runs_dir)}
    again = run_all(configs, work, engine="ray", resources=OFTEN)
    assert [outcome.figures for outcome in again] == [outcome.figures for outcome in outcomes]
    assert {run.path: run.last.stat().st_mtime_ns for run in list_runs(work.runs_dir)} == before


def test_the_driver_may_be_killed_and_started_again(cluster, small, tmp_path):
    config = small(training={"epochs": 150}, name=None)
    (tmp_path / "base.yaml").write_text(dump_config(config))
    spec = {
        "base": "base.yaml",
        "grid": {"seed": [0, 1]},
        "resources": {"seconds_per_delivery": 0.3},
        "evaluation": {"k": 3, "binarised": False},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(spec))
    command = [sys.executable, "-m", "vaecli", "sweep", "s.yaml", "--engine", "ray", "--address", cluster.address]
    runs_dir = tmp_path / "runs"
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        while not delivered(runs_dir) and first.poll() is None:
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
    assert delivered(runs_dir), first.stderr
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert again.stdout == "runs/sweeps/s/report.html\n"
    runs = {run.config.seed: run for run in list_runs(runs_dir)}
    assert len(list_runs(runs_dir)) == 2
    for seed in (0, 1):
        alone = train(small(training={"epochs": 150}, name="s", seed=seed), runs_dir=tmp_path / "alone")
        assert traces(runs[seed]) == traces(alone)


def test_a_stop_loses_no_more_than_what_was_under_way(cluster, work, small):
    config = small(training={"epochs": 300})
    with pytest.raises(InterruptedRunError, match="the same command goes on from what each run has delivered"):
        run_all([config], work, engine="ray", resources=OFTEN, stop=lambda: delivered(work.runs_dir))
    (cut,) = list_runs(work.runs_dir)
    assert cut.status["state"] == "interrupted"
    with lock(cut.path / LOCK):
        (outcome,) = run_all([config], work, engine="ray", resources=OFTEN)
        assert outcome.error == f"{cut.path}: is being trained by another process"
    (outcome,) = run_all([config], work, engine="ray", resources=OFTEN)
    assert outcome.error is None
    assert outcome.run.path == cut.path


def test_a_run_that_fails_takes_no_other_with_it(cluster, work, small, monkeypatch):
    def do_leg_or_die(leg):
        import os  # noqa: PLC0415 (this runs elsewhere)

        from vaecli.sweeps.ray_worker import do_leg  # noqa: PLC0415

        if leg.config.seed == 1:
            os._exit(1)
        if leg.config.seed == 2:
            raise ValueError("of some library")
        return do_leg(leg)

    monkeypatch.setattr(engine, "do_leg", do_leg_or_die)
    configs = [small(seed=0), small(seed=1), small(seed=2), small(optimizer={"learning_rate": 1e30})]
    whole, dead, faulty, diverged = run_all(configs, work, engine="ray")
    assert whole.error is None
    assert dead.error.startswith("lost 3 times in a row: ")
    assert faulty.error == "ValueError: of some library"
    assert diverged.error.startswith("training diverged at step 2")
    assert diverged.run.status["state"] == "diverged"


def test_a_cluster_that_is_too_small_or_not_there(cluster, work, small, monkeypatch):
    with pytest.raises(UsageError, match="no node of the cluster has 64 of a CPU for a run"):
        run_all([small()], work, engine="ray", resources=Resources(threads=64))
    with pytest.raises(UsageError, match=r"no node of the cluster has 1 of a CPU and 0\.5 of a GPU for a run"):
        run_all([small()], work, engine="ray", resources=Resources(gpus=0.5))
    with pytest.raises(UsageError, match=r"a run on CUDA needs resources\.gpus"):
        run_all([small(device="cuda")], work, engine="ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    for address in (f"127.0.0.1:{port}", "nowhere.invalid:1", "127.0.0.1:x"):
        with pytest.raises(UsageError, match=f"--address {address}: no Ray cluster is to be had there"):
            run_all([small()], work, engine="ray", address=address)
    with pytest.raises(ValidationError, match="must be a whole number, or a share of one"):
        Resources(gpus=1.5)


def test_what_cannot_be_read_here_is_one_run_s_error(cluster, work, small):
    config = small()
    (cut,) = [train(config, runs_dir=work.runs_dir)]

    def remove(news) -> None:
        shutil.rmtree(cut.path, ignore_errors=True)

    (outcome,) = run_all([config], work, engine="ray", watch=remove)
    assert outcome.error == f"{cut.path}/.lock: No such file or directory"


def test_a_run_that_goes_on_under_other_conditions_says_so_and_its_images_come_along(
    cluster, work, small, tmp_path, monkeypatch
):
    """The images lie below this process's directory and none of the nodes'."""
    monkeypatch.chdir(tmp_path)
    config = small(data={"name": "faces.npz"})
    with pytest.raises(LimitReachedError):
        train(config, runs_dir=work.runs_dir, limit=Limit(images=70))
    (cut,) = list_runs(work.runs_dir)
    save_checkpoint(cut.last, replace(load_checkpoint(cut.last), conditions={"torch": "1.0"}))
    with pytest.warns(ReproducibilityWarning, match=r"torch 1\.0 before"):
        (outcome,) = run_all([config], work, engine="ray")
    assert outcome.error is None
    assert outcome.run.environment["data_sha256"] == hashlib.sha256((tmp_path / "faces.npz").read_bytes()).hexdigest()


def test_a_leg_ends_some_seconds_after_its_first_step(monkeypatch):
    now = iter([100.0, 100.0, 101.0, 102.5])
    monkeypatch.setattr(legs.time, "monotonic", lambda: next(now))
    after = legs.After(2.0)
    next(now)
    assert [after(), after(), after()] == [False, False, True]


def test_what_killed_legs_left_on_a_node_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(legs.tempfile, "tempdir", str(tmp_path))
    left = tmp_path / "vaecli-leg-left"
    (left / "runs").mkdir(parents=True)
    with legs.scratch() as one:
        assert not left.exists()
        with legs.scratch() as other:
            assert one.is_dir()
            assert other != one
    assert not any(tmp_path.iterdir())


def test_images_that_a_node_does_not_have_are_brought_to_it(cluster, faces, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_stand_ins", {})
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(legs.tempfile, "tempdir", None)
    content, images = faces.read_bytes(), sources.load_array(str(faces)).pixels
    sha256 = hashlib.sha256(content).hexdigest()
    reference = ray.put(np.frombuffer(content, np.uint8))
    faces.unlink()
    legs.have_array(str(faces), sha256, reference)
    assert (tmp_path / f"vaecli-{sha256}.npz").read_bytes() == content
    assert (sources.load_array(str(faces)).pixels == images).all()
    assert sources.fingerprint(str(faces)) == sha256
