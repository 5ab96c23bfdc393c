import pytest
import torch

from vaecli.config.likelihoods import Support
from vaecli.config.sections import DataConfig, ModelConfig
from vaecli.data.image_grid import ImageShape
from vaecli.data.preprocess import Batch, build_preprocess
from vaecli.model.bound import evaluate_bound
from vaecli.model.objectives import elbo
from vaecli.model.vae import build_vae
from vaecli.randomness import generator

SHAPE = ImageShape(1, 6, 5)


@pytest.fixture
def vae():
    return build_vae(ModelConfig(latent_dim=3, hidden_dim=8), SHAPE, generator(0, "init"))


@pytest.fixture
def pixels(images):
    return torch.from_numpy(images).flatten(1)


def test_the_bound_is_the_mean_of_estimator_b_on_replayed_noise(vae, pixels):
    preprocess = build_preprocess(Support.BINARY, DataConfig())
    stream = generator(7, "evaluation")
    b = preprocess(pixels, stream)
    expected = elbo(vae, Batch(*b), 1, stream)
    found = evaluate_bound(vae, pixels, preprocess, 7)
    assert found.log_likelihood == pytest.approx(expected.log_likelihood.mean().item(), rel=1e-6)
    assert found.kl == pytest.approx(expected.kl.mean().item(), rel=1e-6)
    assert found.kl_per_dimension.sum().item() == pytest.approx(found.kl)
    assert evaluate_bound(vae, pixels, preprocess, 7).elbo == found.elbo
    assert found.pixels_at_floor is None


def test_active_units_are_those_whose_posterior_mean_varies(vae, pixels):
    output = list(vae.encoder.network.children())[-1]
    torch.nn.init.zeros_(output.weight[0])  # the mean of the first latent no longer depends on x
    with torch.no_grad():
        output.weight[1:3] *= 100
    assert evaluate_bound(vae, pixels, build_preprocess(Support.BINARY, DataConfig()), 0).active_units == 2


def test_the_share_of_scales_on_their_floor():
    vae = build_vae(ModelConfig(decoder="gaussian", latent_dim=3, min_log_sigma=-1), SHAPE, generator(0, "init"))
    output = list(vae.decoder.network.children())[-1]
    torch.nn.init.zeros_(output.weight)
    with torch.no_grad():
        output.bias[30:36] = -9.0  # log variances of 6 of 30 pixels
    preprocess = build_preprocess(Support.UNIT_INTERVAL, DataConfig())
    pixels = torch.zeros(4, 30, dtype=torch.uint8)
    assert evaluate_bound(vae, pixels, preprocess, 0).pixels_at_floor == pytest.approx(6 / 30)
