"""Networks and how their parameters start. Images arrive flat, as D = height · width · channels numbers.

A network that wants the picture back unflattens it by the image shape that it is built with. A new one is a function
that builds an encoder and a decoder, and a row of `NETWORKS`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vaecli.config.sections import ModelConfig
from vaecli.data.image_grid import ImageShape
from vaecli.errors import UsageError
from vaecli.products import Linear


class Gate(nn.Module):
    """Compute h = (Wx + b) ⊙ σ(Vx + c) from both maps side by side, W above V in one matrix.

    torch's own has no derivative in several directions at once, which fitted proposals take.

    Args:
        axis: Of units.
    """

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """Return h, half as long as x along the axis."""
        value, gate = x.chunk(2, self.axis)
        return value * torch.sigmoid(gate)


class BatchNorm(nn.BatchNorm1d):
    """Normalise every unit over all leading axes: draws and images alike (Ioffe & Szegedy 2015, arXiv 1502.03167)."""

    def forward(self, x: Float[Tensor, "*batch units"]) -> Float[Tensor, "*batch units"]:
        """Return x with mean 0 and variance 1, then scaled and shifted; in evaluation by the running statistics."""
        return super().forward(x.reshape(-1, x.shape[-1])).reshape(x.shape)


class FromRows(nn.Module):
    """Make pictures of flat images: (N, D) to (N, C, H, W)."""

    def __init__(self, shape: ImageShape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N C H W"]:
        """Return x with its channels first in the shape, while they stay last in memory."""
        channels, height, width = self.shape
        picture: Tensor = x.unflatten(-1, (height, width, channels)).movedim(-1, 1)
        return picture


class ToRows(nn.Module):
    """Make blocks of flat images of pictures: (N, P·C, H, W) to (N, P·D), with a bias for each of these numbers.

    Args:
        shape: C, H and W.
        n_params: P.
    """

    def __init__(self, shape: ImageShape, n_params: int) -> None:
        super().__init__()
        self.shape, self.n_params = shape, n_params
        self.bias = nn.Parameter(torch.zeros(n_params * shape.n_pixels))

    def forward(self, x: Float[Tensor, "N PC H W"]) -> Float[Tensor, "N PD"]:
        """Return the blocks."""
        blocks: Tensor = x.unflatten(1, (self.n_params, self.shape.channels)).movedim(2, -1)
        return blocks.flatten(1) + self.bias


class OverRows(nn.Sequential):
    """Apply layers that know of one leading axis to any number of them."""

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Return what the layers make of every row."""
        y = x.reshape(-1, x.shape[-1])
        for layer in self:
            y = layer(y)
        return y.reshape(*x.shape[:-1], y.shape[-1])


class Beside(nn.Module):
    """Apply layers to the first n numbers of every row, and let the others follow what comes out."""

    def __init__(self, layers: nn.Module, n: int) -> None:
        super().__init__()
        self.layers, self.n = layers, n

    def forward(self, x: Float[Tensor, "N inputs"]) -> Float[Tensor, "N outputs"]:
        """Return both side by side."""
        return torch.cat([self.layers(x[:, : self.n]), x[:, self.n :]], -1)


ROWS, PICTURES = -1, 1
"""The axis along which lie the units of a layer, of perceptrons and of convolutions."""


class Activation(NamedTuple):
    """Hold what makes the h of a hidden layer from Wx + b."""

    module: Callable[[int], nn.Module]
    """Is given the axis of units."""
    n_inputs: int = 1
    """How many numbers each h is made of."""


ACTIVATIONS = {
    "relu": Activation(lambda axis: nn.ReLU()),  # noqa: ARG005
    "tanh": Activation(lambda axis: nn.Tanh()),  # noqa: ARG005
    "gated": Activation(Gate, n_inputs=2),
}
NORMALIZATIONS: dict[str, dict[int, Callable[[int], nn.Module]]] = {
    "none": {},
    "batch": {ROWS: BatchNorm, PICTURES: nn.BatchNorm2d},
    "layer": {ROWS: nn.LayerNorm, PICTURES: partial(nn.GroupNorm, 1)},
}
"""What normalises the units of a hidden layer before their activation, by the axis of units."""
KERNEL, STRIDE = 3, 2
"""Of convolutions: a side of n pixels becomes one of ⌈n/2⌉."""
DRAWN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Layers whose parameters are drawn at random."""
CONSTANT = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, ToRows)
"""Layers that start at the constants which their constructor sets."""


class Networks(NamedTuple):
    """Hold the two networks of a VAE."""

    encoder: nn.Module
    """From a flat image (*batch, D) to the posterior's parameters (*batch, n_outputs). K more numbers follow the image,
    and z of the decoder, where the model is told which of K classes it is."""
    decoder: nn.Module
    """From z (*batch, Z) to the likelihood's parameters (*batch, n_params · D), in blocks of D; its last layer has a
    bias for each."""


def perceptrons(config: ModelConfig, image_shape: ImageShape, n_outputs: int, n_params: int) -> Networks:
    """Build two perceptrons, the decoder as the mirror image of the encoder."""
    n_pixels, hidden, choices = image_shape.n_pixels, config.hidden_dim, (config.activation, config.normalization)
    return Networks(
        perceptron((n_pixels + config.n_classes, *hidden, n_outputs), *choices),
        perceptron((config.latent_dim + config.n_classes, *reversed(hidden), n_params * n_pixels), *choices),
    )


def perceptron(
    sizes: Sequence[int], activation: str, normalization: str = "none", *, bias: bool = True
) -> nn.Sequential:
    """Stack linear layers of `sizes` = (inputs, hidden ..., outputs) with normalisation and activation between.

    The last may go without its `bias`.
    """
    layers: list[nn.Module] = []
    *hidden, last = pairwise(sizes)
    for n_in, n in hidden:
        layers += hidden_layer(partial(Linear, n_in), n, activation, normalization, ROWS)
    return nn.Sequential(*layers, Linear(*last, bias=bias))


def convolutions(config: ModelConfig, image_shape: ImageShape, n_outputs: int, n_params: int) -> Networks:
    """Build convolutions below a perceptron, and their mirror image: every layer halves a picture, or doubles it.

    Raises:
        UsageError: There are more convolutions than an image can be halved.
    """
    shapes, hidden = _halved(image_shape, config.channels_of_layers), config.hidden_dim
    smallest, choices, n_classes = shapes[-1], (config.activation, config.normalization), config.n_classes
    down: list[nn.Module] = [FromRows(image_shape)]
    for large, small in pairwise(shapes):
        down += hidden_layer(partial(_halving, large), small.channels, *choices, PICTURES)
    up = hidden_layer(
        lambda n, bias: perceptron((config.latent_dim + n_classes, *reversed(hidden), n), *choices, bias=bias),
        smallest.n_pixels, *choices, ROWS,
    )  # fmt: skip
    up.append(nn.Unflatten(1, smallest))
    for small, large in pairwise(shapes[:0:-1]):
        up += hidden_layer(partial(_doubling, small, large), large.channels, *choices, PICTURES)
    up.append(_doubling(shapes[1], image_shape, n_params * image_shape.channels, bias=False))
    down.append(nn.Flatten())
    if n_classes:  # of convolutions a class is no part
        down = [Beside(nn.Sequential(*down), image_shape.n_pixels)]
    return Networks(
        OverRows(*down, *perceptron((smallest.n_pixels + n_classes, *hidden, n_outputs), *choices)),
        OverRows(*up, ToRows(image_shape, n_params)),
    )


def _halving(large: ImageShape, n: int, *, bias: bool) -> nn.Module:
    return nn.Conv2d(large.channels, n, KERNEL, STRIDE, KERNEL // 2, bias=bias)


def _doubling(small: ImageShape, large: ImageShape, n: int, *, bias: bool) -> nn.Module:
    """Build what makes 2⌈n/2⌉ - 1 pixels of ⌈n/2⌉ along a side, and one more where n is even."""
    one_more = (1 - large.height % STRIDE, 1 - large.width % STRIDE)
    return nn.ConvTranspose2d(small.channels, n, KERNEL, STRIDE, KERNEL // 2, one_more, bias=bias)


def _halved(image_shape: ImageShape, channels: Sequence[int]) -> list[ImageShape]:
    """Return the shapes of an image and of what each convolution makes of it."""
    shapes = [image_shape]
    for n in channels:
        _, height, width = shapes[-1]
        if len(shapes) > 1 and height == width == 1:
            raise UsageError(
                f"model.channels: has {len(channels)} convolutions, and images of {image_shape.height} x "
                f"{image_shape.width} pixels are 1 x 1 after {len(shapes) - 1}; leave out those beyond"
            )
        shapes.append(ImageShape(n, -(-height // STRIDE), -(-width // STRIDE)))
    return shapes


def hidden_layer(
    linear: Callable[..., nn.Module], n: int, activation: str, normalization: str, axis: int
) -> list[nn.Module]:
    """Return the modules of a layer of n units.

    Args:
        linear: Builds its linear part, given the number of outputs and whether it has a `bias`: normalised outputs are
            shifted by what normalises them, which takes away their mean.
        n: Units.
        activation: By its name.
        normalization: By its name.
        axis: Of units.
    """
    chosen, normalise = ACTIVATIONS[activation], NORMALIZATIONS[normalization].get(axis)
    width = chosen.n_inputs * n
    if normalise is None:
        return [linear(width, bias=True), chosen.module(axis)]
    return [linear(width, bias=False), normalise(width), chosen.module(axis)]


NETWORKS: dict[str, Callable[[ModelConfig, ImageShape, int, int], Networks]] = {
    "mlp": perceptrons,
    "conv": convolutions,
}
"""The networks by their names in the config. Each is called with the config's section, the shape of an image, and the
numbers of outputs: of the encoder, and of the decoder for each of D."""


NORMAL_STARTS = {"normal": 0.01, "paper": 0.1}
"""The standard deviation from which every parameter is drawn, by the name of the scheme."""
AT_MEAN_IMAGE = {"mean_image": "torch", "glorot": "glorot"}
"""The schemes whose decoder's mean starts at the mean training image, and how all other parameters start."""


@torch.no_grad()
def initialise(network: nn.Module, scheme: str, generator: torch.Generator) -> None:
    """Draw the parameters of every layer from the given generator.

    Args:
        network: Its parameters are overwritten in place; normalisation layers keep their ones and zeros.
        scheme: "torch" for U(-1/√fan_in, 1/√fan_in), PyTorch's own; "paper" for N(0, 0.01), section 5 of the paper
            with 0.01 read as the variance, as in its N(0, I); "normal" for 0.01 read as the standard deviation;
            "glorot" for U(-√(6/(fan_in + fan_out)), √(6/(fan_in + fan_out))) and biases of 0 (Glorot & Bengio 2010,
            equation 16), by which the variance of what a tanh layer passes on stays nearly the same.
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
            if scheme in NORMAL_STARTS:
                parameter.normal_(0, NORMAL_STARTS[scheme], generator=generator)
            elif scheme == "glorot" and parameter is layer.bias:
                parameter.zero_()
            elif scheme == "glorot":
                nn.init.xavier_uniform_(parameter, generator=generator)
            else:
                parameter.uniform_(-bound, bound, generator=generator)
