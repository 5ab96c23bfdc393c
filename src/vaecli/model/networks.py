"""Networks and how their parameters start. Images arrive flat, as D = height · width · channels numbers.

A network that wants the picture back unflattens it by the image shape that it is built with. A new one is a function
that builds an encoder and a decoder, and a row of `NETWORKS`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vaecli.config.schema import ModelConfig
from vaecli.data.image_grid import ImageShape
from vaecli.products import Linear


class Gate(nn.Module):
    """Compute h = (Wx + b) ⊙ σ(Vx + c) from both maps side by side, W above V in one matrix.

    torch's own has no derivative in several directions at once, which fitted proposals take.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return h, half as wide as x."""
        value, gate = x.chunk(2, -1)
        return value * torch.sigmoid(gate)


class BatchNorm(nn.BatchNorm1d):
    """Normalise every unit over all leading axes: draws and images alike (Ioffe & Szegedy 2015, arXiv 1502.03167)."""

    def forward(self, x: Float[Tensor, "*batch units"]) -> Float[Tensor, "*batch units"]:
        """Return x with mean 0 and variance 1, then scaled and shifted; in evaluation by the running statistics."""
        return super().forward(x.reshape(-1, x.shape[-1])).reshape(x.shape)


class Activation(NamedTuple):
    """Hold what makes the h of a hidden layer from Wx + b."""

    module: Callable[[], nn.Module]
    n_inputs: int = 1
    """How many numbers each h is made of."""


ACTIVATIONS = {
    "relu": Activation(nn.ReLU),
    "tanh": Activation(nn.Tanh),
    "gated": Activation(Gate, n_inputs=2),
}
NORMALIZATIONS: dict[str, Callable[[int], nn.Module] | None] = {
    "none": None,
    "batch": BatchNorm,
    "layer": nn.LayerNorm,
}
"""What normalises the units of a hidden layer before their activation."""
DRAWN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Layers whose parameters are drawn at random."""
CONSTANT = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
"""Layers that start at the constants which their constructor sets."""


class Networks(NamedTuple):
    """Hold the two networks of a VAE."""

    encoder: nn.Module
    """From a flat image (*batch, D) to the posterior's parameters (*batch, n_outputs)."""
    decoder: nn.Module
    """From z (*batch, Z) to the likelihood's parameters (*batch, n_params · D), in blocks of D; its last layer has a
    bias for each."""


def perceptrons(config: ModelConfig, image_shape: ImageShape, n_outputs: int, n_params: int) -> Networks:
    """Build two perceptrons, the decoder as the mirror image of the encoder."""
    n_pixels, hidden = image_shape.n_pixels, config.hidden_dim
    return Networks(
        perceptron((n_pixels, *hidden, n_outputs), config.activation, config.normalization),
        perceptron(
            (config.latent_dim, *reversed(hidden), n_params * n_pixels), config.activation, config.normalization
        ),
    )


def perceptron(sizes: Sequence[int], activation: str, normalization: str = "none") -> nn.Sequential:
    """Stack linear layers of `sizes` = (inputs, hidden ..., outputs) with normalisation and activation between."""
    layers: list[nn.Module] = []
    *hidden, last = pairwise(sizes)
    for n_in, n in hidden:
        layers += hidden_layer(partial(Linear, n_in), n, activation, normalization)
    return nn.Sequential(*layers, Linear(*last))


def hidden_layer(linear: Callable[..., nn.Module], n: int, activation: str, normalization: str) -> list[nn.Module]:
    """Return the modules of a layer of n units.

    Args:
        linear: Builds its linear part, given the number of outputs and whether it has a `bias`: normalised outputs are
            shifted by what normalises them, which takes away their mean.
        n: Units.
        activation: By its name.
        normalization: By its name.
    """
    chosen, normalise = ACTIVATIONS[activation], NORMALIZATIONS[normalization]
    width = chosen.n_inputs * n
    if normalise is None:
        return [linear(width, bias=True), chosen.module()]
    return [linear(width, bias=False), normalise(width), chosen.module()]


NETWORKS: dict[str, Callable[[ModelConfig, ImageShape, int, int], Networks]] = {"mlp": perceptrons}
"""The networks by their names in the config. Each is called with the config's section, the shape of an image, and the
numbers of outputs: of the encoder, and of the decoder for each of D."""


@torch.no_grad()
def initialise(network: nn.Module, scheme: Literal["torch", "normal"], generator: torch.Generator) -> None:
    """Draw the parameters of every layer from the given generator.

    Args:
        network: Its parameters are overwritten in place; normalisation layers keep their ones and zeros.
        scheme: "torch" for U(-1/√fan_in, 1/√fan_in), PyTorch's own; "normal" for N(0, 0.01²) (the paper, section 5,
            read as a standard deviation of 0.01).
        generator: On the CPU, so that the start does not depend on the device.

    Raises:
        TypeError: A layer has parameters and no rule here says how they start.
    """
    for layer in network.modules():
        parameters = list(layer.parameters(recurse=False))
        if not parameters or isinstance(layer, CONSTANT):
            continue
        if not isinstance(layer, DRAWN):
            raise TypeError(f"initialise: no rule for the parameters of {type(layer).__name__}")
        bound = 1 / math.sqrt(layer.weight[0].numel())
        for parameter in parameters:
            if scheme == "normal":
                parameter.normal_(0, 0.01, generator=generator)
            else:
                parameter.uniform_(-bound, bound, generator=generator)
