"""The Ray engine on a real cluster of several nodes on this machine; skipped where Ray is not installed."""

import gzip
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
from pydantic import ValidationError

from identical import traces
from vaecli.config.jobs import EvaluationSpec, Resources
from vaecli.data import sources, summaries
from vaecli.errors import InterruptedRunError, LimitReachedError, ReproducibilityWarning, UsageError, VaecliError
from vaecli.evaluation.result import Evaluation
from vaecli.files import lock
from vaecli.runs.checkpoint import load_checkpoint, save_checkpoint
from vaecli.runs.run import LOCK, list_runs
from vaecli.sweeps.execution import run_configs
from vaecli.sweeps.sweep import JobOptions
from vaecli.training.loop import train
from vaecli.training.stopping import Limit

ray = pytest.importorskip("ray")
from vaecli.sweeps import ray_driver, ray_worker  # noqa: E402 (need Ray)

pytestmark = pytest.mark.filterwarnings("default")  # Ray's own are not ours to mend
QUICK = EvaluationSpec(k=3, binarised=False)
OFTEN = Resources(sync_interval=0.3)


@pytest.fixture
def work(tmp_path):
    return JobOptions(tmp_path / "runs", evaluation=QUICK)


def sent_back(runs_dir: Path) -> bool:
    return any(run.last.is_file() for run in list_runs(runs_dir))


def comparable(result) -> Evaluation:
    return replace(result.evaluation, run="")


@pytest.mark.slow
def test_a_node_that_dies_midway_changes_nothing_but_the_time(cluster, work, small, tmp_path, monkeypatch):
    configs = [small(seed=seed, training={"epochs": 500}) for seed in range(4)]
    killed_at, lost, get = [], [], ray.get

    def kill_a_node() -> bool:
        """Kill nodes once a slice has come back, until something is lost with its node."""
        if not lost and sent_back(work.runs_dir) and (not killed_at or time.monotonic() - killed_at[-1] > 2):
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
    results = run_configs(configs, work, engine="ray", resources=OFTEN, stop=kill_a_node)
    assert lost
    assert [result.error for result in results] == [None] * 4
    here = run_configs(configs, JobOptions(tmp_path / "here", evaluation=QUICK), jobs=2, resources=Resources())
    for there, alone in zip(results, here, strict=True):
        assert traces(there.run) == traces(alone.run)
        assert comparable(there) == comparable(alone)
        assert there.evaluation.run == there.run.name
    assert len(list_runs(work.runs_dir)) == 4
    assert not any(run.is_training for run in list_runs(work.runs_dir))

    before = {run.path: run.last.stat().st_mtime_ns for run in list_runs(work.runs_dir)}
    again = run_configs(configs, work, engine="ray", resources=OFTEN)
    assert again == results
    assert {run.path: run.last.stat().st_mtime_ns for run in list_runs(work.runs_dir)} == before


@pytest.mark.slow
def test_the_driver_may_be_killed_and_started_again(cluster, small, two_seeds, tmp_path):
    two_seeds(small(training={"epochs": 150}, name=None))
    command = [sys.executable, "-m", "vaecli", "sweep", "s.yaml", "--engine", "ray", "--address", cluster.address]
    runs_dir = tmp_path / "runs"
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        while not sent_back(runs_dir) and first.poll() is None:
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
    assert sent_back(runs_dir), first.stderr
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
    with pytest.raises(
        InterruptedRunError, match="the same command resumes every run from the last files it sent back"
    ):
        run_configs([config], work, engine="ray", resources=OFTEN, stop=lambda: sent_back(work.runs_dir))
    (cut,) = list_runs(work.runs_dir)
    assert cut.status["state"] == "interrupted"
    with lock(cut.path / LOCK):
        (result,) = run_configs([config], work, engine="ray", resources=OFTEN)
        assert result.error == f"{cut.path}: is being trained by another process"
    (result,) = run_configs([config], work, engine="ray", resources=OFTEN)
    assert result.error is None
    assert result.run.path == cut.path


def test_a_run_that_fails_takes_no_other_with_it(cluster, work, small, monkeypatch):
    def train_slice_or_die(work, run_jobs):
        import os  # noqa: PLC0415 (this runs elsewhere)

        from vaecli.sweeps.ray_worker import train_slice  # noqa: PLC0415

        if work.config.seed == 1:
            os._exit(1)
        if work.config.seed == 2:
            raise ValueError("of some library")
        return train_slice(work, run_jobs)

    monkeypatch.setattr(ray_driver, "train_slice", train_slice_or_die)
    configs = [small(seed=0), small(seed=1), small(seed=2), small(optimizer={"learning_rate": 1e30})]
    whole, dead, faulty, diverged = run_configs(configs, work, engine="ray")
    assert whole.error is None
    assert dead.error.startswith("lost 3 times in a row: ")
    assert faulty.error == "ValueError: of some library"
    assert diverged.error.startswith("training diverged at step 2")
    assert diverged.run.status["state"] == "diverged"


def test_a_node_s_own_failure_is_no_failure_of_a_run(cluster, work, small, tmp_path, monkeypatch):
    """A full disk is the node's: the slice is done again, three times at most."""

    def train_slice_on_full_disks(work, run_jobs):
        from pathlib import Path  # noqa: PLC0415 (this runs elsewhere)

        from vaecli.sweeps.ray_worker import train_slice  # noqa: PLC0415

        tries = Path(f"{work.options.data_dir}/tries-{work.config.seed}")
        tries.touch()
        tries.write_text(f"{tries.read_text()}x")
        if work.config.seed == 1 or len(tries.read_text()) < 3:
            raise OSError(28, "No space left on device")
        return train_slice(work, run_jobs)

    monkeypatch.setattr(ray_driver, "train_slice", train_slice_on_full_disks)
    options = replace(work, data_dir=tmp_path)
    twice, always = run_configs([small(seed=0), small(seed=1)], options, engine="ray")
    assert twice.error is None
    assert always.error == "lost 3 times in a row: [Errno 28] No space left on device"


def test_twenty_runs_that_begin_at_once_do_not_harm_each_other(cluster, small, tmp_path):
    """`scripts/ray_sweeps.py` does it for 20 sweeps."""
    for sweep in range(2):
        options = JobOptions(tmp_path / str(sweep), evaluation=QUICK)
        configs = [small(seed=seed) for seed in range(20)]
        results = run_configs(configs, options, engine="ray", resources=Resources(sync_interval=0.1))
        assert [result.error for result in results] == [None] * 20


def test_a_cluster_that_is_too_small_or_not_there(cluster, work, small, monkeypatch):
    with pytest.raises(UsageError, match="no node of the cluster has 64 of a CPU for a run"):
        run_configs([small()], work, engine="ray", resources=Resources(threads=64))
    with pytest.raises(UsageError, match=r"no node of the cluster has 1 of a CPU and 0\.5 of a GPU for a run"):
        run_configs([small()], work, engine="ray", resources=Resources(gpus=0.5))
    with pytest.raises(UsageError, match=r"a run on CUDA needs resources\.gpus"):
        run_configs([small(device="cuda")], work, engine="ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with pytest.raises(UsageError, match="--address ray://h:1: name the head as host:port"):
        run_configs([small()], work, engine="ray", address="ray://h:1")
    for address in (f"127.0.0.1:{port}", "nowhere.invalid:1", "127.0.0.1:x"):
        with pytest.raises(UsageError, match=f"--address {address}: no Ray cluster answers there"):
            run_configs([small()], work, engine="ray", address=address)
    with pytest.raises(ValidationError, match="must be a whole number, or a share of one"):
        Resources(gpus=1.5)


def test_what_cannot_be_read_here_is_one_run_s_error(cluster, work, small):
    config = small()
    (cut,) = [train(config, runs_dir=work.runs_dir)]

    def remove(update) -> None:
        shutil.rmtree(cut.path, ignore_errors=True)

    (result,) = run_configs([config], work, engine="ray", callback=remove)
    assert result.error == f"{cut.path}/.lock: No such file or directory"


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
        (result,) = run_configs([config], work, engine="ray")
    assert result.error is None
    assert result.run.environment["data_sha256"] == hashlib.sha256((tmp_path / "faces.npz").read_bytes()).hexdigest()


def test_a_slice_ends_some_seconds_after_its_first_step(monkeypatch):
    now = iter([100.0, 100.0, 101.0, 102.5])
    monkeypatch.setattr(ray_worker.time, "monotonic", lambda: next(now))
    after = ray_worker.After(2.0)
    next(now)
    assert [after(), after(), after()] == [False, False, True]


def test_what_killed_slices_left_on_a_node_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_worker.tempfile, "tempdir", str(tmp_path))
    left, unlocked, young = (ray_worker.node_directory() / name for name in ("slice-left", "new-left", "new-young"))
    for path in (left, unlocked, young):
        (path / "runs").mkdir(parents=True)
    os.utime(unlocked, (0, 0))
    with ray_worker.scratch() as one:
        assert not left.exists()
        assert not unlocked.exists()
        with ray_worker.scratch() as other:
            assert one.is_dir()
            assert other != one
    assert list(ray_worker.node_directory().iterdir()) == [young]


def test_a_slice_that_is_frozen_while_it_makes_its_directory_holds_up_no_other(tmp_path, monkeypatch):
    """It is stopped with a lock in its hand; a frozen process does not let go of it."""
    monkeypatch.setattr(ray_worker.tempfile, "tempdir", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", FROZEN, tmp_path], stdout=subprocess.PIPE, text=True) as frozen:
        try:
            assert frozen.stdout.readline() == "locked\n"
            with ray_worker.scratch() as directory:
                assert directory.is_dir()
        finally:
            frozen.kill()


def test_images_that_a_node_does_not_have_are_brought_to_it(cluster, faces, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_stand_ins", {})
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(ray_worker.tempfile, "tempdir", None)
    content, images = faces.read_bytes(), sources.load_array(str(faces)).pixels
    sha256 = hashlib.sha256(content).hexdigest()
    reference = ray.put(np.frombuffer(content, np.uint8))
    faces.unlink()
    ray_worker.fetch_arrays(((str(faces), sha256, reference),))
    copy = ray_worker.node_directory() / hashlib.sha256(sha256.encode()).hexdigest() / faces.name
    assert copy.read_bytes() == content
    assert (sources.load_array(str(faces)).pixels == images).all()
    assert summaries.fingerprint(str(faces)) == sha256


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_labels_of_an_idx_file_come_along_to_a_node(cluster, work, small, images, tmp_path, monkeypatch, suffix):
    """The node, played by a function, has neither file: it answers with the labels that it reads from the copies."""
    pack = gzip.compress if suffix else bytes
    labels = (np.arange(60) % 5).astype(np.uint8)
    faces, beside = (tmp_path / f"t-{kind}-ubyte{suffix}" for kind in ("images-idx3", "labels-idx1"))
    faces.write_bytes(pack(bytes([0, 0, 8, 3]) + np.array(images.shape, ">u4").tobytes() + images.tobytes()))
    beside.write_bytes(pack(bytes([0, 0, 8, 1]) + np.array([60], ">u4").tobytes() + labels.tobytes()))

    def read_labels(work, run_jobs):
        from pathlib import Path  # noqa: PLC0415 (this runs elsewhere)

        from vaecli.data.sources import load_array  # noqa: PLC0415
        from vaecli.sweeps.ray_worker import SliceResult, fetch_arrays  # noqa: PLC0415

        for name, *_ in work.arrays:
            Path(name).unlink()
        fetch_arrays(work.arrays)
        return SliceResult("", None, error=str(load_array(work.config.data.name).labels.tolist()))

    monkeypatch.setattr(ray_driver, "train_slice", read_labels)
    (result,) = run_configs([small(data={"name": str(faces)})], work, engine="ray")
    assert result.error == str(labels.tolist())


def test_a_copy_of_other_content_under_the_right_name_is_not_trusted(cluster, faces, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_stand_ins", {})
    monkeypatch.setattr(ray_worker.tempfile, "tempdir", str(tmp_path))
    content = faces.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    copy = ray_worker.node_directory() / hashlib.sha256(sha256.encode()).hexdigest() / faces.name
    copy.parent.mkdir()
    copy.write_bytes(b"something else")
    faces.unlink()
    ray_worker.fetch_arrays(((str(faces), sha256, ray.put(np.frombuffer(content, np.uint8))),))
    assert copy.read_bytes() == content


def test_a_directory_that_others_can_write_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_worker.tempfile, "tempdir", str(tmp_path))
    ray_worker.node_directory().chmod(0o777)
    with pytest.raises(VaecliError, match="can be written by others, or belongs to another user"):
        ray_worker.node_directory()


FROZEN = """
import os, signal, sys, tempfile
from pathlib import Path
tempfile.tempdir = sys.argv[1]
from vaecli.sweeps import ray_worker
locked = ray_worker.lock
def lock_and_freeze(path):
    held = locked(path)
    print("locked", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    return held
ray_worker.lock = lock_and_freeze
with ray_worker.scratch():
    pass
"""
SCRATCH = """
import sys, tempfile
tempfile.tempdir = sys.argv[1]
from vaecli.sweeps.ray_worker import scratch
for _ in range(40):
    with scratch() as directory:
        (directory / "runs").mkdir()
        (directory / "runs" / "file").write_text("x")
        assert (directory / "runs" / "file").read_text() == "x"
"""


def test_slices_that_begin_at_once_do_not_remove_each_other(tmp_path):
    """Each makes forty directories and looks for those that were left over, as fast as it can."""
    processes = [
        subprocess.Popen([sys.executable, "-c", SCRATCH, tmp_path], stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


def test_what_ray_prints_stays_off_stdout(cluster, work, small, capsys):
    """It tells of nodes that died on the driver's stdout, which is for results."""
    from ray._private.worker import print_to_stdstream  # noqa: PLC0415 (as its listener does)

    def stop() -> bool:
        print_to_stdstream({"lines": ["a node died"], "pid": "raylet", "is_err": False}, ignore_prefix=False)
        return False

    run_configs([small(training={"epochs": 1})], work, engine="ray", stop=stop)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "a node died" in printed.err
