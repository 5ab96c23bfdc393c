"""Multi-layer perceptrons and how their parameters start."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


class _Linear(nn.Linear):
    """A linear layer that does not draw its parameters, which would change the global generator."""

    def reset_parameters(self) -> None:
        """Leave them as they are: `initialise` draws them."""


def perceptron(sizes: Sequence[int], activation: Literal["relu", "tanh"], device: str = "cpu") -> nn.Sequential:
    """Linear layers of `sizes` = (inputs, hidden ..., outputs) with the activation between; no parameter is drawn."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [_Linear(n_in, n_out, device=device), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def initialise(module: nn.Module, scheme: Literal["torch", "normal"], generator: torch.Generator) -> None:
    """Draw every linear layer's parameters.

    Args:
        module: Its parameters are overwritten in place.
        scheme: "torch" for U(-1/√fan_in, 1/√fan_in), PyTorch's own; "normal" for N(0, 0.01²) (the paper, section 5,
            read as a standard deviation of 0.01).
        generator: On the CPU, so that the start does not depend on the device.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            bound = 1 / math.sqrt(layer.in_features)
            for parameter in layer.parameters():
                if scheme == "normal":
                    parameter.normal_(0, 0.01, generator=generator)
                else:
                    parameter.uniform_(-bound, bound, generator=generator)
