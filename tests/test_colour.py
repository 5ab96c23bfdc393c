"""Colour images, (N, H, W, C): as data, through training, and in every picture."""

from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vaecli import cli
from vaecli.config.likelihoods import Support
from vaecli.config.sections import DataConfig
from vaecli.data.dataset import Dataset
from vaecli.data.image_grid import ImageShape
from vaecli.errors import DataError
from vaecli.evaluation.evaluate import evaluate
from vaecli.evaluation.generation import interpolate, manifold, reconstruct, sample
from vaecli.reports.plots import panel
from vaecli.sweeps.sweep import SweepResult
from vaecli.training.loop import train

COLOURS = np.array([[250, 20, 20], [20, 250, 20], [20, 20, 250]], np.uint8)


@pytest.fixture
def flags(tmp_path):
    """60 images of 4 x 5 pixels, each red, green or blue all over."""
    path = tmp_path / "flags.npz"
    labels = np.arange(60) % 3
    np.savez(path, images=np.broadcast_to(COLOURS[labels][:, None, None], (60, 4, 5, 3)), labels=labels)
    return path


@pytest.fixture
def run(small, flags, tmp_path):
    """Trained until the three colours are told apart."""
    config = small(
        data={"name": str(flags)},
        model={"decoder": "sigma-gaussian", "latent_dim": 2, "hidden_dim": 16, "mean": "linear"},
        training={"epochs": 30},
        optimizer={"learning_rate": 0.03},
    )
    return train(config, runs_dir=tmp_path)


def dataset(path) -> Dataset:
    return Dataset(DataConfig(name=str(path)), Support.LEVELS)


def test_colour_images_are_rows_of_pixels_whose_channels_lie_side_by_side(flags):
    images = dataset(flags).train
    assert images.shape == ImageShape(channels=3, height=4, width=5)
    assert images.pixels.shape == (45, 60)
    assert images.pixels[1].reshape(images.shape.picture)[3, 4].tolist() == [20, 250, 20]


def test_one_channel_is_grey(tmp_path):
    np.save(tmp_path / "grey.npy", np.zeros((30, 4, 5, 1), np.uint8))
    grey = dataset(tmp_path / "grey.npy")
    assert grey.train.shape.picture == grey.test.shape.picture == (4, 5)


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [((30, 3, 6, 5), r"x.transpose\(0, 2, 3, 1\)"), ((30, 5), r"\(N, H, W, C\)"), ((3, 3, 3, 3, 3), r"\(N, H, W, C\)")],
)
def test_axes_in_another_order_are_refused_with_the_remedy(tmp_path, shape, remedy):
    np.save(tmp_path / "x.npy", np.zeros(shape, np.uint8))
    with pytest.raises(DataError, match=remedy):
        _ = dataset(tmp_path / "x.npy").train


def test_all_that_a_run_shows_is_in_colour(run):
    assert sample(run, 3).shape == (3, 4, 5, 3)
    assert manifold(run, 2).shape == (4, 4, 5, 3)
    assert interpolate(run, 0, 1, 3).shape == (3, 4, 5, 3)
    pair = reconstruct(run, 6)
    assert np.array_equal((pair.originals[:, 0, 0] * 255).round(), COLOURS[[0, 1, 2] * 2])
    assert np.abs(pair.reconstructions - pair.originals).mean() < 0.05  # so channels have stayed where they were
    with Image.open(run.path / "samples" / "prior.png") as picture:
        assert picture.mode == "RGB"


def test_tensorboard_and_its_projector_are_in_colour(run):
    directory = run.path / "tensorboard" / "validation"
    board = EventAccumulator(str(directory)).Reload()
    for tag in ("reconstructions", "prior_samples"):
        assert board.Images(tag)[-1].encoded_image_string[25] == 2  # PNG's type of true colour, byte 25 of its header
    with Image.open(directory / "thumbnails.png") as sprite:
        pixels = np.asarray(sprite)
    assert pixels.shape == (2 * 4, 3 * 5, 3)  # six images in three columns
    assert pixels[0, ::5].tolist() == COLOURS.tolist()


@pytest.mark.parametrize("command", ["sample", "reconstruct", "manifold", "interpolate"])
def test_commands_write_colour_pictures(run, tmp_path, monkeypatch, command):
    out = tmp_path / "out.png"
    labels = ["--labels"] if command != "sample" else []
    monkeypatch.setattr("sys.argv", ["vae", command, "--ckpt", str(run.path), "--out", str(out), *labels])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    with Image.open(out) as picture:
        assert picture.mode == "RGB"


def test_a_colour_counts_as_three_dimensions(run):
    found = evaluate(run, k=10, limit=6)
    assert run.vae.decoder(torch.zeros(1, 2)).mean.shape == (1, 60)
    assert found.mean_squared_error < 0.01
    assert found.bits_per_dim is not None


def test_a_report_shows_its_panel_in_colour(run):
    found = Mock(SweepResult, decoders=("sigma-gaussian",), data_dir=None)
    found.of.return_value = [SimpleNamespace(run=run)]
    shown = [axis.get_images()[0].get_array() for axis in panel(found).axes]
    assert [array.shape for array in shown] == [(3 * 4, 5 * 5, 3)] * 3
    assert shown[0][0, 0].tolist() == pytest.approx(COLOURS[0] / 255)
