import numpy as np
import pytest
import torch

from vaecli.config.likelihoods import LIKELIHOODS
from vaecli.errors import DataError
from vaecli.evaluation.evaluate import evaluate
from vaecli.evaluation.generation import encode, interpolate, manifold, reconstruct, sample
from vaecli.training.loop import train


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


def test_the_manifold_has_cells_of_equal_prior_mass(small, tmp_path):
    run = train(small(model={"latent_dim": 2}, training={"epochs": 1}), runs_dir=tmp_path)
    images = manifold(run, 3).reshape(3, 3, 6, 5)
    # centres at the 1/6, 1/2 and 5/6 quantiles: ±0.967422; first latent to the right, second upwards
    z = torch.tensor([[0.0, 0.0], [0.967422, 0.0], [0.0, 0.967422]])
    with torch.no_grad():
        centre, right, up = run.vae.decoder(z).mean.reshape(3, 6, 5).numpy()
    assert images[1, 1] == pytest.approx(centre, abs=1e-5)
    assert images[1, 2] == pytest.approx(right, abs=1e-5)
    assert images[0, 1] == pytest.approx(up, abs=1e-5)


def test_interpolation_goes_from_one_reconstruction_to_the_other(run):
    line = interpolate(run, 0, 3, 5)
    assert line.shape == (5, 6, 5)
    assert not np.array_equal(line[0], line[-1])
    assert line[[0, -1]] == pytest.approx(interpolate(run, 0, 3, 2), abs=1e-6)
    assert line[2] == pytest.approx(interpolate(run, 3, 0, 3)[1], abs=0.05)  # halfway is halfway from either end


def test_a_data_set_that_has_gone(run, faces):
    faces.unlink()
    with pytest.raises(DataError, match="no such file"):
        encode(run)


def test_a_data_set_that_has_changed_is_not_taken_for_the_one_that_was_trained_on(run, faces, images):
    """What is held out goes by position: with the order reversed all but a few were trained on."""
    np.savez(faces, images=images[::-1])
    for use in (encode, reconstruct, evaluate):
        with pytest.raises(DataError, match=r"faces.npz: has changed since .* put the file back, or train on this one"):
            use(run)
    assert sample(run, 2).shape == (2, 6, 5)
    np.savez(faces, images=images, labels=np.arange(60) % 5)
    assert encode(run).mean.shape[0] == 6
