import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from vaecli.data import minibatches as gathering
from vaecli.data.minibatches import gather
from vaecli.runs.run import list_runs
from vaecli.training.loop import train


def test_what_is_collected_ahead_is_what_is_indexed(monkeypatch):
    pixels = torch.randint(0, 256, (103, 6), dtype=torch.uint8)
    rows = torch.randperm(103).split(10)
    expected = [pixels[minibatch] for minibatch in rows]
    at_once = list(gather(pixels, rows, torch.device("cpu")))
    monkeypatch.setattr(gathering, "RESIDENT", 0)
    monkeypatch.setattr(gathering, "AHEAD", 150)  # two minibatches of 60 bytes
    ahead = list(gather(pixels, rows, torch.device("cpu")))
    in_parts = list(gathering._gather_in_parts(pixels, rows))  # as on a GPU
    for found in (at_once, ahead, in_parts):
        assert len(found) == 11
        assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
    assert list(gather(pixels, (), torch.device("cpu"))) == []


def test_a_run_on_images_in_a_file_has_the_same_bits(small, images, tmp_path, monkeypatch):
    np.save(tmp_path / "images.npy", images)
    config = small(data={"name": str(tmp_path / "images.npy")})
    resident = train(config, runs_dir=tmp_path / "resident")
    monkeypatch.setattr(gathering, "RESIDENT", 0)
    mapped = train(config, runs_dir=tmp_path / "mapped")
    one, two = resident.vae.state_dict(), mapped.vae.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


TRAIN = """
import resource, sys
import torch
torch.set_num_threads(1)
from vaecli import load_config, train
from vaecli.errors import LimitReachedError
from vaecli.training.stopping import Limit
small = load_config(None, [f"data.name={sys.argv[1]}", "data.test=10", "data.validation=0", "model.hidden_dim=8",
                           "model.latent_dim=2", "training.epochs=1", "device=cpu"])
def run(config, n):
    try: train(config, runs_dir=sys.argv[3], limit=Limit(images=n))
    except LimitReachedError: pass
run(small, 1000)
here = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (here + 300 * 2**20,) * 2)
run(small.model_copy(update={"data": small.data.model_copy(update={"name": sys.argv[2]})}), 50_000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the cap is Linux's")
def test_a_million_images_need_not_fit_into_memory(tmp_path):
    """784 MB of images, trained on with 300 MiB more than a thousand take: they stay in their file."""
    few, many = tmp_path / "few.npy", tmp_path / "many.npy"
    np.save(few, np.zeros((2000, 28, 28), np.uint8))
    np.lib.format.open_memmap(many, "w+", np.uint8, (1_000_000, 28, 28))[::1000] = 255
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", TRAIN, few, many, tmp_path / "runs"], env=environment, check=True)
    last = list_runs(tmp_path / "runs")[-1].status
    assert last["reason"].startswith("stopped after 50,000 images")
