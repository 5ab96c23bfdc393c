import os

import numpy as np
import pytest
from google.protobuf.text_format import Parse
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from vaecli.evaluation.generation import encode
from vaecli.runs.run import LOGS, load_run
from vaecli.training.logs import RunLogs
from vaecli.training.loop import train


def read(path) -> EventAccumulator:
    found = EventAccumulator(str(path), size_guidance={"images": 0, "scalars": 0, "tensors": 0, "histograms": 0})
    found.Reload()
    return found


def test_tensorboard_reads_the_same_tags_of_both_splits_over_images_seen(small, tmp_path):
    run = train(small(), runs_dir=tmp_path)
    boards = {split: read(run.path / "tensorboard" / split) for split in ("train", "validation")}
    for tag in ("elbo", "log_likelihood", "kl"):
        for split, board in boards.items():
            rows = [row for row in run.metrics if row["split"] == split]
            assert [event.step for event in board.Scalars(tag)] == [row["images"] for row in rows]
            assert [event.value for event in board.Scalars(tag)] == pytest.approx([row[tag] for row in rows], rel=1e-6)
    tags = boards["validation"].Tags()
    assert {"reconstructions", "prior_samples"} <= set(tags["images"])
    assert "latent/kl_per_dimension" in tags["histograms"]
    assert "config/text_summary" in tags["tensors"]
    assert "_hparams_/experiment" in boards["validation"].summary_metadata


def test_the_projector_has_a_point_a_label_and_a_thumbnail_for_each_test_image(small, tmp_path):
    run = train(small(), runs_dir=tmp_path)
    directory = run.path / "tensorboard" / "validation"
    points = np.loadtxt(directory / "embedding.tsv")
    assert points == pytest.approx(encode(load_run(run.last), split="test").mean, rel=1e-3, abs=1e-4)
    assert (directory / "labels.tsv").read_text().split() == ["4", "0", "1", "2", "3", "4"]
    with Image.open(directory / "thumbnails.png") as sprite:
        assert sprite.size == (3 * 5, 2 * 6)  # six images of 6x5 in three columns
    config = Parse((directory / "projector_config.pbtxt").read_text(), ProjectorConfig())
    assert list(config.embeddings[0].sprite.single_image_dim) == [5, 6]


def test_the_projector_is_given_three_dimensions_of_two(small, tmp_path):
    """With two it finds no principal components, and shows an empty space."""
    run = train(small(model={"latent_dim": 2}), runs_dir=tmp_path)
    points = np.loadtxt(run.path / "tensorboard" / "validation" / "embedding.tsv")
    means = encode(load_run(run.last), split="test").mean
    assert points == pytest.approx(np.column_stack([means, np.zeros(6)]), rel=1e-3, abs=1e-4)


def test_a_log_is_cut_back_to_a_recorded_length(tmp_path):
    logs = RunLogs(tmp_path, LOGS, {})
    logs.row({"a": 1.0, "b": float("nan")})
    logs.train.scalars({"elbo": 1.0}, 10)
    lengths = logs.lengths()
    logs.row({"a": 2.0})
    logs.train.scalars({"elbo": 2.0}, 20)
    logs.close()
    again = RunLogs(tmp_path, LOGS, lengths)
    again.row({"a": 3.0})
    again.train.scalars({"elbo": 3.0}, 20)
    again.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"a": 1.0, "b": null}\n{"a": 3.0}\n'
    points = [(event.step, event.value) for event in read(tmp_path / "tensorboard" / "train").Scalars("elbo")]
    assert points == [(10, 1.0), (20, 3.0)]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_copy_of_links_leaves_the_logs_of_the_other_alone(tmp_path, link):
    """As `cp -al` and `cp -as` make them."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    logs = RunLogs(one, LOGS, {})
    logs.row({"a": 1.0})
    lengths = logs.lengths()
    logs.row({"a": 2.0})
    logs.close()
    before = {name: (one / name).read_bytes() for name in LOGS}
    for name in LOGS:
        (two / name).parent.mkdir(parents=True, exist_ok=True)
        link(one / name, two / name)
    again = RunLogs(two, LOGS, lengths)
    again.row({"a": 3.0})
    again.train.scalars({"elbo": 3.0}, 20)
    again.close()
    assert {name: (one / name).read_bytes() for name in LOGS} == before
    assert (two / "metrics.jsonl").read_text() == '{"a": 1.0}\n{"a": 3.0}\n'
