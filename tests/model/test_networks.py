"""How parameters start: from the given generator, and by a rule for every layer."""

import math

import pytest
import torch
from torch import nn

from vaecli.config.sections import ModelConfig
from vaecli.data.image_grid import ImageShape
from vaecli.errors import UsageError
from vaecli.model.networks import NETWORKS, initialise, perceptron
from vaecli.randomness import generator


def test_a_perceptron_has_its_sizes_and_an_activation_between_layers():
    layers = list(perceptron((6, 5, 4, 3), "tanh"))
    assert [(layer.in_features, layer.out_features) for layer in layers[::2]] == [(6, 5), (5, 4), (4, 3)]
    assert all(isinstance(layer, nn.Tanh) for layer in layers[1::2])


def test_a_gated_layer_is_one_linear_map_times_the_sigmoid_of_another():
    """h = (Wx + b) ⊙ σ(Vx + c): Tomczak & Welling 2018; W and V are the halves of one matrix."""
    first, activation, last = perceptron((6, 5, 4), "gated")
    x, (w, v), (b, c) = torch.randn(3, 2, 6), first.weight.chunk(2), first.bias.chunk(2)
    h = activation(first(x))
    torch.testing.assert_close(h, (x @ w.T + b) * torch.sigmoid(x @ v.T + c))
    assert (h.shape, last.in_features) == ((3, 2, 5), 5)


def test_batch_normalisation_is_over_draws_and_images_alike():
    """Mean 0 and variance 1 of each unit, and running statistics that move a tenth of the way (torch's momentum)."""
    first, normalise, *_ = perceptron((6, 5, 4), "relu", "batch")
    x = first(torch.randn(3, 20, 6))
    y = normalise(x)
    torch.testing.assert_close(y.mean((0, 1)), torch.zeros(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.var((0, 1), correction=0), torch.ones(5), rtol=0, atol=1e-3)
    torch.testing.assert_close(normalise.running_mean, 0.1 * x.mean((0, 1)))
    normalise.eval()
    torch.testing.assert_close(normalise(x[:, :1]), normalise(x)[:, :1])  # each image for itself


def test_layer_normalisation_is_over_the_units_of_each_image():
    first, normalise, *_ = perceptron((6, 5, 4), "gated", "layer")
    y = normalise(first(torch.randn(3, 2, 6)))
    assert y.shape == (3, 2, 10)
    torch.testing.assert_close(y.mean(-1), torch.zeros(3, 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [(nn.Linear(50, 40), 50), (nn.Conv2d(6, 40, 3, groups=2), 27), (nn.ConvTranspose2d(40, 6, 3), 54)],
)
def test_parameters_are_uniform_up_to_the_root_of_the_fan_in(layer, fan_in):
    """The bound is that of PyTorch: 1/√fan_in, the fan-in of a convolution counting its kernel."""
    before = torch.get_rng_state()
    initialise(layer, "torch", generator(0, "init"))
    assert torch.equal(torch.get_rng_state(), before)
    largest = [parameter.abs().max() for parameter in layer.parameters()]
    assert 0.99 / math.sqrt(fan_in) < max(largest) <= 1 / math.sqrt(fan_in)
    drawn = [parameter.clone() for parameter in layer.parameters()]
    initialise(layer, "torch", generator(0, "init"))
    assert all(torch.equal(one, two) for one, two in zip(drawn, layer.parameters(), strict=True))


def test_the_biases_of_pixels_start_at_zero():
    _, decoder = NETWORKS["conv"](ModelConfig(network="conv"), ImageShape(1, 4, 4), 2, 1)
    initialise(decoder, "normal", generator(0, "init"))
    assert decoder[-1].bias.tolist() == [0] * 16


def test_normalisation_layers_keep_their_ones_and_zeros():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    initialise(network, "paper", generator(0, "init"))
    assert network[1].weight.tolist() == [1] * 4
    assert network[1].bias.tolist() == [0] * 4


@pytest.mark.parametrize(("scheme", "stddev"), [("paper", 0.1), ("normal", 0.01)])
def test_the_papers_001_is_read_in_two_ways(scheme, stddev):
    """As the variance, and as the standard deviation; 1,200 draws tell it to some 2 %."""
    layer = nn.Linear(300, 4)
    initialise(layer, scheme, generator(0, "init"))
    assert layer.weight.std().item() == pytest.approx(stddev, rel=0.1)


@pytest.mark.parametrize(
    ("layer", "fans"), [(nn.Linear(50, 40), 90), (nn.Conv2d(6, 40, 3), 9 * 46), (nn.ConvTranspose2d(40, 6, 3), 9 * 46)]
)
def test_glorots_weights_are_uniform_up_to_the_root_of_six_over_both_fans(layer, fans):
    """Glorot & Bengio 2010, equation 16; the fans of a convolution count its kernel."""
    initialise(layer, "glorot", generator(0, "init"))
    assert 0.99 * math.sqrt(6 / fans) < layer.weight.abs().max() <= math.sqrt(6 / fans)
    assert layer.bias.tolist() == [0] * len(layer.bias)


def test_glorots_weights_keep_the_variance_of_what_passes_layers_of_one_size():
    """Of 100 units the variance of w is 1/100, so that the sum of 100 products has that of an input."""
    network = perceptron((100, 100, 100, 100), "relu")[::2]  # without activations
    initialise(network, "glorot", generator(0, "init"))
    assert network(torch.randn(4000, 100)).var().item() == pytest.approx(1, rel=0.1)


def test_a_layer_without_a_rule_is_an_error_and_not_left_at_random():
    with pytest.raises(TypeError, match="no rule for the parameters of Bilinear"):
        initialise(nn.Sequential(nn.Bilinear(2, 2, 2)), "torch", generator(0, "init"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 7), (2, 2), (3, 4), (5, 6), (28, 28), (31, 32), (32, 31), (33, 31)]
)
def test_a_decoder_of_convolutions_mirrors_the_encoder_at_any_size(height, width, channels):
    shape = ImageShape(channels, height, width)
    config = ModelConfig(network="conv", channels=[4, 5] if max(height, width) > 2 else 4, hidden_dim=6, latent_dim=2)
    encoder, decoder = NETWORKS["conv"](config, shape, 4, 2)
    assert encoder(torch.zeros(3, shape.n_pixels)).shape == (3, 4)
    assert decoder(torch.zeros(2, 3, 2)).shape == (2, 3, 2 * shape.n_pixels)
    assert decoder(torch.zeros(2)).shape == (2 * shape.n_pixels,)
    of_encoder = [layer.weight.shape for layer in encoder if isinstance(layer, nn.Conv2d)]
    of_decoder = [layer.weight.shape for layer in decoder if isinstance(layer, nn.ConvTranspose2d)]
    assert of_encoder[0] == (4, channels, 3, 3)
    assert of_decoder[-1] == (4, 2 * channels, 3, 3)  # a transposed one has its inputs first
    assert of_decoder[-2::-1] == of_encoder[1:]


def test_convolutions_see_pictures_and_keep_channels_apart():
    """An impulse in one pixel moves the outputs near it, in the channel that the kernel of the first layer leads to."""
    shape = ImageShape(3, 8, 8)
    config = ModelConfig(network="conv", channels=2, hidden_dim=[], latent_dim=1)
    encoder, _ = NETWORKS["conv"](config, shape, 2, 1)
    convolution = encoder[1]
    image = torch.zeros(8, 8, 3)
    image[4, 6, 2] = 1
    seen = convolution(encoder[0](image.reshape(1, -1))).squeeze(0) - convolution.bias[:, None, None]
    expected = torch.zeros(2, 4, 4)
    expected[:, 2, 3] = convolution.weight[:, 2, 1, 1]  # stride 2, padding 1: output (2, 3) is centred on (4, 6)
    torch.testing.assert_close(seen, expected)


def test_more_convolutions_than_an_image_has_halves_are_refused():
    config = ModelConfig(network="conv", channels=[4, 4, 4, 4])
    with pytest.raises(UsageError, match="has 4 convolutions, and images of 5 x 4 pixels are 1 x 1 after 3"):
        NETWORKS["conv"](config, ImageShape(1, 5, 4), 2, 1)
