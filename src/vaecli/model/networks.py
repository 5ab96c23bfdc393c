"""Networks and how their parameters start. Images arrive flat, as D = channels · height · width numbers.

A network that wants the picture back unflattens it by the image shape that it is built with.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

from vaecli.config.schema import ModelConfig
from vaecli.data.image_grid import ImageShape
from vaecli.products import Linear

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}
DRAWN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Layers whose parameters are drawn at random."""
CONSTANT = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
"""Layers that start at the constants which their constructor sets."""


def encoder_perceptron(config: ModelConfig, image_shape: ImageShape, n_outputs: int) -> nn.Sequential:
    """Build a perceptron from a flat image (*batch, D) to (*batch, n_outputs)."""
    return perceptron((image_shape.n_pixels, *config.hidden_dim, n_outputs), config.activation)


def decoder_perceptron(config: ModelConfig, image_shape: ImageShape, n_params: int) -> nn.Sequential:
    """Build a perceptron from z (*batch, Z) to `n_params` blocks of D outputs; it mirrors the encoder's."""
    n_outputs = n_params * image_shape.n_pixels
    return perceptron((config.latent_dim, *reversed(config.hidden_dim), n_outputs), config.activation)


def perceptron(sizes: Sequence[int], activation: Literal["relu", "tanh"]) -> nn.Sequential:
    """Stack linear layers of `sizes` = (inputs, hidden ..., outputs) with the activation between."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [Linear(n_in, n_out), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


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
