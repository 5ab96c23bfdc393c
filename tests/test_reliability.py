import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from faults import FAULTS, FaultyDisk, Killed
from identical import check_whole, traces
from vaecli import recording, training
from vaecli.configfile import dump_config
from vaecli.errors import VaecliError
from vaecli.runs import Run, list_runs
from vaecli.training import resume, train


@pytest.fixture
def often(monkeypatch):
    """Checkpoints and status at every report, and a report at every other step."""
    monkeypatch.setattr(recording, "SECONDS_PER_CHECKPOINT", -1.0)
    monkeypatch.setattr(recording, "SECONDS_PER_STATUS", -1.0)
    monkeypatch.setattr(training, "STEPS_PER_REPORT", 2)


@pytest.fixture
def config(small):
    return small(training={"epochs": 2}, model={"latent_dim": 2, "hidden_dim": 4})


def spread(n: int, wanted: int, *, all_of_them: bool) -> list[int]:
    """Numbers from 1 to n, about evenly: so many, or all."""
    return list(range(1, n + 1)) if all_of_them else sorted({1, *np.linspace(2, n, wanted, dtype=int).tolist()})


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_cut_at_any_write_ends_in_the_same_bits(config, tmp_path, often, fault, stress):
    uncut = traces(train(config, runs_dir=tmp_path / "uncut"))
    with FaultyDisk() as disk:
        train(config, runs_dir=tmp_path / "counted")
    n = len(disk.operations)
    assert n > 150
    assert {"open", "write", "fsync", "replace", "rename", "mkdir"} <= set(disk.operations)
    for at in spread(n, 12, all_of_them=stress):
        runs_dir = tmp_path / f"{fault} {at}"
        what = (VaecliError, "cannot be written: No space left on device") if fault == "full" else (Killed, None)
        with pytest.raises(what[0], match=what[1]), FaultyDisk(at, fault):
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
    limit = training.Limit(images=60)

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
from vaecli import load_config, recording, resume, train
from vaecli.runs import list_runs
recording.SECONDS_PER_CHECKPOINT = 0.02
found = list_runs(Path(sys.argv[2]))
say = lambda report: print("on", flush=True)
resume(found[0], report=say) if found else train(load_config(sys.argv[1]), runs_dir=sys.argv[2], report=say)
"""


def test_a_run_killed_at_any_time_ends_in_the_same_bits(small, tmp_path, stress):
    config = small(training={"epochs": 60})
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    uncut = train(config, runs_dir=tmp_path / "uncut")
    rng = np.random.default_rng()  # another time every time: the promise is for all
    for i in range(20 if stress else 2):
        runs_dir = tmp_path / f"killed {i}"
        with subprocess.Popen([sys.executable, "-c", TRAIN, path, runs_dir], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.5))
            process.kill()
            process.stdout.read()
        killed = process.returncode == -signal.SIGKILL
        (run,) = list_runs(runs_dir)
        check_whole(run)
        if killed:
            assert run.status["state"] == "interrupted"
        assert traces(resume(run)) == traces(uncut)
