import numpy as np
import pytest
import torch

from vaecli.errors import DataError
from vaecli.generation import encode, reconstruct, sample
from vaecli.likelihoods import LIKELIHOODS
from vaecli.training import train


@pytest.fixture(params=LIKELIHOODS)
def run(request, small, tmp_path):
    return train(small(model={"decoder": request.param}, training={"epochs": 1}), runs_dir=tmp_path)


def test_samples_are_means_of_the_decoder_at_draws_from_the_prior(run):
    images = sample(run, 7, seed=3)
    assert images.shape == (7, 6, 5)
    assert np.array_equal(images, sample(run, 7, seed=3))
    assert not np.array_equal(images, sample(run, 7, seed=4))
    assert images.min() >= 0
    assert images.max() <= 1
    draws = sample(run, 7, seed=3, draw=True)
    assert not np.array_equal(draws, images)
    if run.config.model.decoder == "bernoulli":
        assert set(np.unique(draws)) <= {0.0, 1.0}


def test_reconstructions_stand_beside_their_originals(run, images):
    pair = reconstruct(run, 4, split="test")
    assert pair.originals == pytest.approx(images[54:58] / 255, abs=1e-6)
    assert pair.reconstructions.shape == (4, 6, 5)
    assert len(reconstruct(run, 400, split="validation").originals) == 9


def test_encodings_are_the_posteriors_of_a_split(run):
    found = encode(run, split="train")
    assert found.mean.shape == found.stddev.shape == (45, 3)
    assert (found.stddev > 0).all()
    assert found.labels.tolist() == [i % 5 for i in range(45)]
    assert np.array_equal(found.mean, encode(run, split="train").mean)
    if run.config.model.decoder == "i-gaussian":
        y = torch.from_numpy(reconstruct(run, 45, split="train").originals).flatten(1) * 255 / 256
        # y = (k + u)/256 lies within 1/256 of k/256, so the posteriors nearly agree
        assert found.mean == pytest.approx(run.vae.encoder(y).mean.detach().numpy(), abs=0.05)


def test_a_data_set_that_has_gone(run, faces):
    faces.unlink()
    with pytest.raises(DataError, match="no such file"):
        encode(run)
