"""Networks, activations and decoders go together: each trains, resumes to the same bits, evaluates and samples."""

from itertools import cycle, product

import numpy as np
import pytest

from identical import traces
from vaecli.config.likelihoods import LIKELIHOODS
from vaecli.errors import LimitReachedError, UsageError
from vaecli.evaluation.evaluate import evaluate
from vaecli.evaluation.generation import manifold, reconstruct, sample
from vaecli.runs.run import list_runs
from vaecli.training.loop import resume, train
from vaecli.training.stopping import Limit

MODELS = [
    *product(["mlp", "conv"], ["none", "batch", "layer"], ["relu", "gated"]),
    ("mlp", "layer", "tanh"),
    ("conv", "batch", "tanh"),
]


@pytest.mark.parametrize(("model", "decoder"), list(zip(MODELS, cycle(LIKELIHOODS), strict=False)))
def test_any_network_trains_resumes_evaluates_and_samples(small, tmp_path, model, decoder):
    network, normalization, activation = model
    settings = {"network": network, "normalization": normalization, "activation": activation, "decoder": decoder}
    config = small(model={"latent_dim": 2, **settings}, training={"epochs": 2})
    uncut = train(config, runs_dir=tmp_path / "uncut")
    with pytest.raises(LimitReachedError):
        train(config, runs_dir=tmp_path / "cut", limit=Limit(images=70))  # in the middle of the second epoch
    (cut,) = list_runs(tmp_path / "cut")
    assert traces(resume(cut)) == traces(uncut)
    found = evaluate(uncut, k=20, limit=3)
    assert found.log_evidence >= found.elbo - 5 * found.log_evidence_mc_se - 0.5
    assert np.isfinite(sample(uncut, 3, draw=True)).all()
    assert manifold(uncut, 2).shape == (4, 6, 5)


@pytest.mark.parametrize("size", [44, 22, 11, 4, 1])
def test_batch_normalisation_needs_more_than_one_image(small, tmp_path, size):
    """45 are trained on."""
    config = small(model={"normalization": "batch"}, training={"batch_size": size})
    with pytest.raises(UsageError, match=f"training.batch_size: of 45 images, {size} at a time, the last is alone"):
        train(config, runs_dir=tmp_path)
    assert list_runs(tmp_path) == []


def test_more_convolutions_than_images_have_halves_are_refused_before_a_run_begins(small, tmp_path):
    with pytest.raises(UsageError, match="images of 6 x 5 pixels are 1 x 1 after 3"):
        train(small(model={"network": "conv", "channels": [2] * 4}), runs_dir=tmp_path)
    assert list_runs(tmp_path) == []


def test_convolutions_learn_colours(small, tmp_path):
    """Red images, green and blue ones: their colours are told apart after some epochs."""
    colours = np.array([[250, 20, 20], [20, 250, 20], [20, 20, 250]], np.uint8)
    np.save(tmp_path / "x.npy", np.broadcast_to(colours[np.arange(60) % 3][:, None, None], (60, 5, 7, 3)))
    config = small(
        data={"name": str(tmp_path / "x.npy")},
        model={"network": "conv", "channels": 8, "hidden_dim": [], "decoder": "sigma-gaussian", "mean": "linear"},
        optimizer={"learning_rate": 0.01},
        training={"epochs": 60},
    )
    pair = reconstruct(train(config, runs_dir=tmp_path), 6)
    assert pair.reconstructions.shape == (6, 5, 7, 3)
    assert np.abs(pair.reconstructions - pair.originals).mean() < 0.05
