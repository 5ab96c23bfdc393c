"""What the Ray engine does where a worker, a node, the head or all of Ray is frozen or ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer

import pytest

from identical import traces
from vaecli.config.jobs import EvaluationSpec, Resources
from vaecli.errors import VaecliError
from vaecli.runs.run import list_runs
from vaecli.sweeps.execution import run_configs
from vaecli.sweeps.jobs import run_jobs
from vaecli.sweeps.sweep import JobOptions, plan_jobs
from vaecli.training.stopping import never

ray = pytest.importorskip("ray")
from vaecli.sweeps import ray_cluster, ray_driver  # noqa: E402 (need Ray)

pytestmark = pytest.mark.filterwarnings("default")  # Ray's own are not ours to mend
QUICK = EvaluationSpec(k=3, binarised=False)
OFTEN = Resources(sync_interval=0.3)
PATIENCE = 3.0
on_linux = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the end of a process is seen on Linux only")


def run_impatiently(configs, options, stop=never):
    """Do what `run_configs` does on a cluster, with little patience for those that are silent."""
    planned, began = dict(enumerate(plan_jobs(configs, options))), []
    arrived = ray_driver.run_on_cluster(planned, run_jobs, began.append, stop, OFTEN, patience=PATIENCE)
    return [result for _, result in sorted(dict(arrived).items())]


def freezing(when: str, marks: Path):
    """Return what nodes do instead of `with_signs_of_life`: the first slice of every run freezes its worker."""

    def with_signs_of_life(train, work, run_jobs, seconds):
        import os  # noqa: PLC0415 (this runs elsewhere)
        import signal  # noqa: PLC0415
        import time  # noqa: PLC0415

        from vaecli.sweeps.ray_worker import with_signs_of_life  # noqa: PLC0415

        mark = marks / f"{work.config.seed}"
        is_first = not mark.exists()
        mark.touch()

        def freeze_if(now: str) -> None:
            if is_first and now == when:
                time.sleep(1)  # until what came before is on its way
                os.kill(os.getpid(), signal.SIGSTOP)

        def train_or_freeze(work, run_jobs):
            freeze_if("in training")
            return train(work, run_jobs)

        freeze_if("at the start")
        yield from with_signs_of_life(train_or_freeze, work, run_jobs, seconds)
        freeze_if("after its result")

    return with_signs_of_life


@pytest.mark.parametrize(
    "when",
    [
        pytest.param("at the start", marks=pytest.mark.slow),
        "in training",
        pytest.param("after its result", marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_freezes_changes_nothing_but_the_time(cluster, small, tmp_path, monkeypatch, when):
    """Each of three runs freezes a worker, and there are two cores."""
    (tmp_path / "marks").mkdir()
    configs = [small(seed=seed) for seed in range(3)]
    monkeypatch.setattr(ray_driver, "with_signs_of_life", freezing(when, tmp_path / "marks"))
    results = run_impatiently(configs, JobOptions(tmp_path / "runs", evaluation=QUICK))
    assert [result.error for result in results] == [None] * 3
    assert len(list((tmp_path / "marks").iterdir())) == 3
    here = run_configs(configs, JobOptions(tmp_path / "here", evaluation=QUICK), resources=Resources())
    assert [traces(result.run) for result in results] == [traces(result.run) for result in here]


@pytest.mark.slow
def test_a_run_whose_workers_always_freeze_is_given_up(cluster, small, tmp_path, monkeypatch):
    def freeze(work, run_jobs):
        import os  # noqa: PLC0415 (this runs elsewhere)
        import signal  # noqa: PLC0415
        import time  # noqa: PLC0415

        time.sleep(1)  # until it was heard that it had begun
        os.kill(os.getpid(), signal.SIGSTOP)

    monkeypatch.setattr(ray_driver, "train_slice", freeze)
    (result,) = run_impatiently([small()], JobOptions(tmp_path / "runs", evaluation=QUICK))
    assert result.error == "lost 3 times in a row: its worker was silent for 3 s"


HASTY = {"health_check_period_ms": 1000, "health_check_timeout_ms": 3000, "health_check_failure_threshold": 3}
"""With this, Ray takes a node that is frozen for dead after some ten seconds, not after a minute."""


@pytest.mark.slow
@pytest.mark.parametrize("cluster", [HASTY], indirect=True)
def test_a_node_that_freezes_changes_nothing_but_the_time(cluster, small, tmp_path):
    """It is one of two, with its worker, once a slice has come back; slices that are sent to it never begin."""
    runs_dir, frozen = tmp_path / "runs", []
    raylet = cluster.list_all_nodes()[-1].all_processes["raylet"][0].process.pid

    def freeze_a_node() -> bool:
        if not frozen and any(run.last.is_file() for run in list_runs(runs_dir)):
            for pid in (raylet, *descendants(raylet)):
                os.kill(pid, signal.SIGSTOP)
                frozen.append(pid)
        return False

    configs = [small(seed=seed, training={"epochs": 60}) for seed in range(2)]
    try:
        results = run_impatiently(configs, JobOptions(runs_dir, evaluation=QUICK), freeze_a_node)
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGKILL)
    assert frozen
    assert [result.error for result in results] == [None] * 2
    here = run_configs(configs, JobOptions(tmp_path / "here", evaluation=QUICK), resources=Resources())
    assert [traces(result.run) for result in results] == [traces(result.run) for result in here]


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that these have, from Linux's /proc."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended
        children.setdefault(parent, []).append(int(path.parent.name))
    found = [*children.get(pid, [])]
    for parent in found:
        found += children.get(parent, [])
    return found


def test_time_in_which_the_driver_itself_was_stopped_does_not_count(monkeypatch):
    now = iter([100.0, 100.5, 900.0, 901.0])
    monkeypatch.setattr(ray_cluster.time, "monotonic", lambda: next(now))
    clock = ray_cluster.WakingClock()
    assert [clock.look(), clock.look(), clock.look()] == [0.5, 2.5, 3.5]


IMPATIENT = """
from vaecli.cli import main
from vaecli.sweeps import ray_cluster, ray_driver
ray_cluster.SECONDS_GONE = ray_cluster.SECONDS_TO_LEAVE = ray_driver.LEAST_PATIENCE = 3
main()
"""
SWEEP = [sys.executable, "-c", IMPATIENT, "sweep", "s.yaml", "--engine", "ray", "--quiet"]


def end_ray(driver: int, runs_dir: Path, victims: str = "", number: int = signal.SIGKILL) -> list[int]:
    """Send a signal to the processes of Ray that a driver has started, or to some, once a slice has come back."""
    while not any(run.last.is_file() for run in list_runs(runs_dir)) and is_running(driver):
        time.sleep(0.05)
    of_ray = [pid for pid in descendants(driver) if ray_cluster.WITNESS not in Path(f"/proc/{pid}/cmdline").read_text()]
    for pid in of_ray:
        if victims in Path(f"/proc/{pid}/cmdline").read_text().partition("\0")[0]:
            os.kill(pid, number)
    return of_ray


def kill_the_rest(of_ray: list[int]) -> None:
    for pid in of_ray:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)


def is_running(pid: int) -> bool:
    """Return whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def check_message(errors: str, said: str) -> None:
    """Check that what was printed has one message, which begins with what is said, and has the remedy."""
    (message,) = [line for line in errors.splitlines() if line.startswith("vae: ")] or [errors]
    assert message.startswith(f"vae: {said}")
    assert message.endswith(
        "; start Ray again, and the same command resumes every run from the last files it sent back"
    )


@pytest.mark.parametrize(
    ("victims", "number", "said"),
    [
        ("", signal.SIGKILL, "Ray has ended on this machine (its head is "),
        pytest.param("raylet", signal.SIGKILL, "Ray has ended on this machine (its head is ", marks=pytest.mark.slow),
        pytest.param(
            "gcs_server", signal.SIGKILL, "the Ray cluster has ended: nobody listens at ", marks=pytest.mark.slow
        ),
        pytest.param("gcs_server", signal.SIGSTOP, "the head of the Ray cluster, ", marks=pytest.mark.slow),
    ],
)
def test_ray_that_ends_under_a_sweep_is_one_message(small, two_seeds, tmp_path, victims, number, said):
    two_seeds(small(training={"epochs": 500}, name=None))
    with subprocess.Popen(SWEEP, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as driver:
        of_ray = end_ray(driver.pid, tmp_path / "runs", victims, number)
        _, errors = driver.communicate(timeout=60)
    kill_the_rest(of_ray)
    assert driver.returncode == 1, errors
    check_message(errors, said)


@pytest.mark.slow
def test_ray_that_ends_under_an_orphan_is_one_message(small, two_seeds, tmp_path):
    """Its parent is process 1, or whoever adopts those that outlive their shell."""
    two_seeds(small(training={"epochs": 500}, name=None))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(["sh", "-c", '"$@" & echo $!', "sh", *SWEEP], cwd=tmp_path, text=True, **pipes) as shell:
        of_ray = end_ray(int(shell.stdout.readline()), tmp_path / "runs")
        _, errors = shell.communicate(timeout=60)
    kill_the_rest(of_ray)
    check_message(errors, "Ray has ended on this machine (its head is ")


@on_linux
@pytest.mark.parametrize(
    ("has_ended", "word", "said"), [(True, b"", b"Ray has ended"), (True, b"x", b""), (False, b"", b"")]
)
def test_a_witness_says_what_a_process_that_was_ended_with_ray_could_not(has_ended, word, said):
    """It sees the raylet, played by another process, and the end of the process that began it."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as raylet:
        fd = os.pidfd_open(raylet.pid)
        command = [sys.executable, "-c", ray_cluster.WITNESS, str(fd), "Ray has ended"]
        pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, pass_fds=[fd], **pipes) as witness:
            if has_ended:
                raylet.kill()
                raylet.wait()
            assert witness.communicate(word, timeout=60)[1] == said
        os.close(fd)
        raylet.kill()


@on_linux
@pytest.mark.parametrize("error", [OSError("Broken pipe"), ray.exceptions.RaySystemError("IOError"), ValueError()])
def test_an_error_that_comes_before_ray_has_ended_is_the_end_of_ray(cluster, monkeypatch, error):
    """Connections break while a process ends, and it is gone a moment later: the raylet, played by another process."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as raylet:
        monkeypatch.setattr(ray_cluster, "_watch_owner", lambda _: os.pidfd_open(raylet.pid))
        found = ray_cluster.Cluster(OFTEN, None, PATIENCE)
        with pytest.raises(VaecliError, match="Ray has ended on this machine"), found:  # noqa: PT012 (it kills, and goes on)
            found.check()
            Timer(0.3, raylet.kill).start()
            raise error
