import os
import shlex
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime

import numpy as np
import pytest
import torch

from faults import FAULTS, FaultyDisk, Killed
from identical import check_whole, traces
from vaecli.config.likelihoods import LIKELIHOODS, Support
from vaecli.config.loading import dump_config
from vaecli.errors import LimitReachedError, VaecliError
from vaecli.runs import run as runs
from vaecli.runs.checkpoint import load_checkpoint
from vaecli.runs.run import Run, list_runs
from vaecli.training import recorder, session
from vaecli.training.loop import resume, train
from vaecli.training.stopping import Limit


@pytest.fixture
def often(monkeypatch):
    """Write checkpoints and status at every update, and an update at every other step."""
    monkeypatch.setattr(session, "SECONDS_PER_CHECKPOINT", -1.0)
    monkeypatch.setattr(recorder, "SECONDS_PER_STATUS", -1.0)
    monkeypatch.setattr(session, "STEPS_PER_UPDATE", 2)
    monkeypatch.setattr(session, "SECONDS_PER_UPDATE", 0)


@pytest.fixture
def config(small):
    return small(training={"epochs": 2}, model={"latent_dim": 2, "hidden_dim": 4})


ENDS = {
    "before": (Killed, None),
    "after": (Killed, None),
    "full": (VaecliError, "cannot be written: No space left on device"),
    "read-only": (VaecliError, "cannot be written: Read-only file system"),
}
"""What a run that meets a fault ends with."""


def spread(n: int, wanted: int, *, all_of_them: bool) -> list[int]:
    """Return numbers from 1 to n, about evenly: so many, or all."""
    return list(range(1, n + 1)) if all_of_them else sorted({1, *np.linspace(2, n, wanted, dtype=int).tolist()})


OBSERVED: dict[Support, list[dict]] = {
    Support.BINARY: [{"binarize": way} for way in ("dynamic", "threshold", "static", "none")],
    Support.UNIT_INTERVAL: [{"dequantize": True}, {"dequantize": False}],
    Support.LEVELS: [{}],
}
OBJECTIVES: list[dict] = [
    {"estimator": "A", "L": 2},
    {"estimator": "B", "kl_warmup": 1},
    {"name": "iwae", "L": 3},
    {"name": "dreg", "L": 2},
]
OPTIMIZERS: list[dict] = [{"name": "adam", "schedule": "cosine"}, {"name": "adagrad", "schedule": "linear"}]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda values: values["name"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda values: values.get("estimator") or values["name"])
@pytest.mark.parametrize(
    ("decoder", "data"),
    [(name, data) for name, entry in LIKELIHOODS.items() for data in OBSERVED[entry.support]],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_a_run_resumed_mid_epoch_ends_in_the_same_bits(small, tmp_path, decoder, data, objective, optimizer, device):
    config = small(
        model={"decoder": decoder, "latent_dim": 2, "hidden_dim": 4},
        data=data, objective=objective, optimizer=optimizer, training={"epochs": 2}, device=device,
    )  # fmt: skip
    uncut = train(config, runs_dir=tmp_path / "uncut")
    with pytest.raises(LimitReachedError, match="at step 3, in epoch 1"):
        train(config, runs_dir=tmp_path / "cut", limit=Limit(images=30))
    (cut,) = list_runs(tmp_path / "cut")
    with pytest.raises(LimitReachedError, match="at step 7, in epoch 2"):
        resume(cut, limit=Limit(images=35))
    assert traces(resume(cut)) == traces(uncut)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_cut_at_any_write_ends_in_the_same_bits(config, tmp_path, often, fault, stress):
    uncut = traces(train(config, runs_dir=tmp_path / "uncut"))
    with FaultyDisk() as disk:
        train(config, runs_dir=tmp_path / "counted")
    n = len(disk.operations)
    assert n > 150
    assert {"open", "write", "fsync", "replace", "rename", "mkdir"} <= set(disk.operations)
    for at in spread(n, 10, all_of_them=stress):
        runs_dir = tmp_path / f"{fault} {at}"
        error, words = ENDS[fault]
        with pytest.raises(error, match=words), FaultyDisk(at, fault):
            train(config, runs_dir=runs_dir)
        found = list_runs(runs_dir)
        for run in found:
            check_whole(run)
        assert len(found) <= 1
        run = resume(found[0]) if found else train(config, runs_dir=runs_dir)
        assert traces(run) == uncut, f"operation {at}: {disk.operations[at - 1]}"
        assert not list(run.path.rglob(".*.tmp"))


def test_a_resumed_run_may_be_cut_at_any_write_as_well(config, tmp_path, often, stress):
    uncut = traces(train(config, runs_dir=tmp_path / "uncut"))
    limit = Limit(images=60)

    def cut(name: str) -> Run:
        with pytest.raises(VaecliError):
            train(config, runs_dir=tmp_path / name, limit=limit)
        return list_runs(tmp_path / name)[0]

    run = cut("counted")
    with FaultyDisk() as disk:
        resume(run)
    for at in spread(len(disk.operations), 6, all_of_them=stress):
        run = cut(f"at {at}")
        with pytest.raises(Killed), FaultyDisk(at, "after"):
            resume(run)
        check_whole(run)
        assert traces(resume(run)) == uncut, f"operation {at}: {disk.operations[at - 1]}"


TRAIN = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from vaecli import load_config, resume, train
from vaecli.training import session
from vaecli.runs.run import list_runs
session.SECONDS_PER_CHECKPOINT = 0.02
found = list_runs(Path(sys.argv[2]))
say = lambda update: print("on", flush=True)
resume(found[0], callback=say) if found else train(load_config(sys.argv[1]), runs_dir=sys.argv[2], callback=say)
"""


def test_a_run_killed_at_any_time_ends_in_the_same_bits(small, tmp_path, stress):
    config = small(training={"epochs": 120})
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    uncut = train(config, runs_dir=tmp_path / "uncut")
    rng = np.random.default_rng()  # another time every time: the promise is for all
    for i in range(20 if stress else 2):
        runs_dir = tmp_path / f"killed {i}"
        with subprocess.Popen([sys.executable, "-c", TRAIN, path, runs_dir], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.4))
            process.kill()
            process.stdout.read()
        (run,) = list_runs(runs_dir)
        check_whole(run)
        assert run.status["state"] in {"interrupted", "completed"}
        assert traces(resume(run)) == traces(uncut)


def test_a_clock_that_goes_backwards(config, tmp_path, often, monkeypatch):
    uncut = traces(train(config, runs_dir=tmp_path / "uncut"))
    hours = iter(range(100_000, 0, -1))
    monkeypatch.setattr(time, "time", lambda: 3600.0 * next(hours))
    monkeypatch.setattr(runs, "_now", lambda: datetime.fromtimestamp(3600.0 * next(hours), UTC))
    with pytest.raises(LimitReachedError):
        train(config, runs_dir=tmp_path / "back", limit=Limit(images=60))
    (run,) = list_runs(tmp_path / "back")
    assert traces(resume(run)) == uncut
    assert train(config, runs_dir=tmp_path / "back").name < run.name


def test_a_second_signal_ends_a_run_at_once_and_leaves_it_whole(small, tmp_path):
    config = small(training={"epochs": 100_000}, optimizer={"schedule": "constant"})
    (tmp_path / "config.yaml").write_text(dump_config(config))
    command = [sys.executable, "-m", "vaecli", "train", "--config", "config.yaml"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        process.stderr.readline()
        for _ in range(2):
            process.send_signal(signal.SIGINT)
        process.stderr.read()
    assert process.returncode == 130
    (run,) = list_runs(tmp_path / "runs")
    check_whole(run)
    assert load_checkpoint(run.last)


def test_a_path_of_spaces_and_letters_of_all_kinds(small, tmp_path):
    home = tmp_path / "Läufe & Größen 日本"
    home.mkdir()
    (home / "config.yaml").write_text(dump_config(small()), encoding="utf-8")

    def vae(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vaecli", *words]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}  # as many threads as here, so that the bits are the same
        return subprocess.run(
            command, cwd=home, env=environment, capture_output=True, text=True, encoding="utf-8", check=False
        )

    cut = vae("train", "--config", "config.yaml", "--runs-dir", "meine Läufe", "--max-images", "60")
    assert cut.returncode == 6, cut.stderr
    hint = cut.stderr.rpartition("go on with: ")[2]
    program, *words = shlex.split(hint)
    assert program == "vae"
    whole = vae(*words)
    assert whole.returncode == 0, whole.stderr
    assert traces(Run(home / whole.stdout.strip())) == traces(train(small(), runs_dir=tmp_path / "uncut"))


def test_ten_thousand_runs_are_listed(tmp_path):
    for i in range(10_000):
        path = tmp_path / "many" / f"20261122-000000-bernoulli-s{i}"
        (path / "checkpoints").mkdir(parents=True)
        (path / "config.yaml").touch()
        (path / "status.json").write_text('{"state": "completed", "best": {"elbo": -97.4, "epoch": 40}}')
    command = [sys.executable, "-m", "vaecli", "runs", "ls", "--runs-dir", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(found.stdout.splitlines()) == 10_001
