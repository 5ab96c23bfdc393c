"""A model as a browser computes it: the layers of its networks by name, and their numbers as one block of bytes.

The other half is JavaScript, `templates/explorer/layers.js` and `distributions.js`, which has a row for each name here.
"""

import base64
import gzip
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vaecli.data.image_grid import ImageShape
from vaecli.data.preprocess import Batch
from vaecli.errors import UsageError
from vaecli.model.conditionals import (
    Bernoulli,
    Conditional,
    ContinuousBernoulli,
    Described,
    DiscretizedLogistic,
    Gaussian,
)
from vaecli.model.distributions import DiagonalNormal
from vaecli.model.links import LINKS
from vaecli.model.networks import FromRows, Gate, ToRows
from vaecli.model.posteriors import OF_MEAN, Flow, FullCovariance, fixed_noise
from vaecli.model.priors import FlowPrior, GaussianMixture, Prior, StandardNormal, VampPrior
from vaecli.model.vae import VAE

Json = dict[str, Any]
ALIGNMENT = 8
TOLERANCE = 5e-4
"""How far half precision may move a pixel, in units of the 0..1 pixel, and a posterior's mean or deviation."""
TOLERANCE_NATS = 0.05
"""How far it may move log p(x|z) of an image."""


@dataclass
class Arrays:
    """Collect arrays as one block of little-endian bytes, in which JSON refers to each by its place."""

    _parts: list[bytes] = field(default_factory=list)
    _size: int = 0

    def add(self, values: Tensor | NDArray[Any], *, half: bool = False) -> Json:
        """Add an array of bytes or of floats, these in half precision if asked for; return what stands for it."""
        array = values.detach().numpy() if isinstance(values, Tensor) else values
        if array.dtype != np.uint8:
            array = array.astype("<f2" if half else "<f4")
        kind = {"u": "uint8", "f": f"float{8 * array.itemsize}"}[array.dtype.kind]
        reference = {"array": [kind, self._size, list(array.shape)]}
        content = array.tobytes()
        self._parts += [content, bytes(-len(content) % ALIGNMENT)]
        self._size += len(content) + -len(content) % ALIGNMENT
        return reference

    def packed(self) -> str:
        """Return the block compressed by gzip, in base 64; the same bytes for the same arrays."""
        return base64.b64encode(gzip.compress(b"".join(self._parts), 9, mtime=0)).decode()


class Precision(NamedTuple):
    """Say which network's weights are kept in half precision; everything else is in single."""

    encoder: bool
    decoder: bool


@torch.no_grad()
def choose_precision(vae: VAE, batch: Batch) -> Precision:
    """Choose half precision for each network by which nothing that is shown changes.

    Args:
        vae: The model.
        batch: Images to see that on.
    """
    encoder, decoder = _halved(vae.encoder), _halved(vae.decoder)
    q, q_halved = vae.encoder(batch.input), encoder(batch.input)
    p, p_halved = vae.decoder(q.mean), decoder(q.mean)
    log_p, log_p_halved = p.log_prob(batch.target), p_halved.log_prob(batch.target)
    return Precision(
        _is_near(q.mean, q_halved.mean, TOLERANCE) and _is_near(q.stddev, q_halved.stddev, TOLERANCE),
        _is_near(p.mean, p_halved.mean, TOLERANCE) and _is_near(log_p, log_p_halved, TOLERANCE_NATS),
    )


def _halved(conditional: Conditional) -> Conditional:
    copy = deepcopy(conditional)
    for layer in copy.network.modules():
        if isinstance(layer, MATRICES):
            layer.weight.copy_(layer.weight.half())
    return copy


def _is_near(one: Tensor, other: Tensor, tolerance: float) -> bool:
    return bool(((one - other).abs() <= tolerance).all())  # a weight beyond half precision is infinite, and not near


@torch.no_grad()
def describe_model(vae: VAE, shape: ImageShape, precision: Precision, arrays: Arrays) -> Json:
    """Describe a VAE by its layers and distributions, and add their numbers to some arrays.

    Args:
        vae: In evaluation mode, on the CPU.
        shape: Of an image.
        precision: Of the weights.
        arrays: To add to.

    Raises:
        UsageError: A layer or a distribution has no counterpart in the browser.
    """
    describe = _found(LIKELIHOODS, vae.decoder, "the decoder")
    posterior = _posterior(vae.encoder, vae.latent_dim, arrays)
    return {
        "latent_dim": vae.latent_dim,
        "image": shape._asdict(),
        "encoder": {
            "layers": _layers(vae.encoder.network, shape.n_pixels, arrays, half=precision.encoder),
            "posterior": posterior,
        },
        "decoder": {
            "layers": _layers(vae.decoder.network, vae.latent_dim, arrays, half=precision.decoder),
            "likelihood": describe(vae.decoder),
        },
        "prior": _prior(vae.prior, vae.encoder, posterior, arrays),
    }


class Met(NamedTuple):
    """Hold a layer as it is met on the way through a network, with the shapes of an example."""

    layer: Any
    inputs: list[int]
    outputs: list[int]


def _layers(network: nn.Module, n_inputs: int, arrays: Arrays, *, half: bool = False) -> list[Json]:
    """Describe the layers of a network in the order in which an example meets them."""
    met: list[Met] = []
    hooks = [
        layer.register_forward_hook(
            lambda layer, given, y: met.append(Met(layer, list(given[0].shape[1:]), list(y.shape[1:])))
        )
        for layer in network.modules()
        if not list(layer.children())
    ]
    try:
        network(torch.zeros(1, n_inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return [
        described
        for one in met
        for described in _found(LAYERS, one.layer, "a layer")(one, lambda weight: arrays.add(weight, half=half), arrays)
    ]


def _found(table: dict[type, Any], of: object, what: str) -> Any:
    """Return the row of an object's class, or of what that derives from. Raises UsageError."""
    for kind in type(of).__mro__:
        if kind in table:
            return table[kind]
    raise _no_counterpart(what, of)


def _no_counterpart(what: str, of: object) -> UsageError:
    return UsageError(f"explore: {what}, {type(of).__name__}, has no counterpart in the browser; add one to {__name__}")


def _weights(kind: str, met: Met, add: Callable[[Tensor], Json], arrays: Arrays, **more: Any) -> list[Json]:
    layer = met.layer
    weight = layer.weight * layer.mask if hasattr(layer, "mask") else layer.weight
    bias = {} if layer.bias is None else {"bias": arrays.add(layer.bias)}
    return [{"type": kind, "weight": add(weight), **bias, **more}]


def _convolution(kind: str) -> Callable[..., list[Json]]:
    def describe(met: Met, add: Callable[[Tensor], Json], arrays: Arrays) -> list[Json]:
        layer = met.layer
        shapes = {"input": met.inputs, "output": met.outputs, "stride": layer.stride[0], "padding": layer.padding[0]}
        return _weights(kind, met, add, arrays, **shapes)

    return describe


def _affine(scale: Tensor, shift: Tensor, arrays: Arrays) -> Json:
    return {"type": "affine", "scale": arrays.add(scale), "shift": arrays.add(shift)}


def _batch_norm(met: Met, add: Any, arrays: Arrays) -> list[Json]:  # noqa: ARG001
    """In evaluation it is a scale and a shift of each unit, by the running statistics."""
    layer = met.layer
    scale = layer.weight / (layer.running_var + layer.eps).sqrt()
    return [_affine(scale, layer.bias - layer.running_mean * scale, arrays)]


def _own_norm(met: Met, add: Any, arrays: Arrays) -> list[Json]:  # noqa: ARG001
    return [{"type": "normalise", "eps": met.layer.eps}, _affine(met.layer.weight, met.layer.bias, arrays)]


MATRICES = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
"""Layers whose weights may be in half precision: all that are large."""
LAYERS: dict[type, Callable[[Met, Callable[[Tensor], Json], Arrays], list[Json]]] = {
    nn.Linear: lambda met, add, arrays: _weights("linear", met, add, arrays),
    nn.Conv2d: _convolution("convolution"),
    nn.ConvTranspose2d: _convolution("transposed-convolution"),
    nn.ReLU: lambda *_: [{"type": "relu"}],
    nn.Tanh: lambda *_: [{"type": "tanh"}],
    Gate: lambda *_: [{"type": "gate"}],
    nn.modules.batchnorm._BatchNorm: _batch_norm,
    nn.LayerNorm: _own_norm,
    nn.GroupNorm: _own_norm,
    nn.Flatten: lambda *_: [],
    nn.Unflatten: lambda *_: [],
    FromRows: lambda met, *_: [{"type": "planes", "channels": met.outputs[0]}],
    ToRows: lambda met, _, arrays: [
        {"type": "pixels", "channels": met.layer.shape.channels, "blocks": met.layer.n_params},
        {"type": "affine", "shift": arrays.add(met.layer.bias)},
    ],
}
"""What the browser calls a layer, and the numbers that it needs. There everything is flat: units, or channels, rows and
columns in that order."""


def _log_scale(conditional: Any, slope: float, offset: float = 0.0) -> Json:
    """Describe a log scale as max(slope · output + offset, floor), the output being of the network's second block."""
    return {"slope": slope, "offset": offset, "floor": conditional.floor.low}


def _normal(conditional: Conditional, log_scale: Json) -> Json:
    link = next(name for name, link in LINKS.items() if link is conditional.link)
    return {"type": "normal", "link": link, "log_scale": log_scale}


def _normal_of_one_scale(conditional: Conditional) -> Json:
    """Describe any Gaussian of one scale for all pixels, given or learned. Raises UsageError where it is none."""
    outputs = torch.linspace(-3, 3, 7)
    y = conditional.distribution(outputs) if conditional.n_params == 1 else None
    if not isinstance(y, DiagonalNormal) or y.log_sigma.ndim or not y.mean.equal(conditional.link.mean(outputs)):
        raise _no_counterpart("the decoder", conditional)
    return _normal(conditional, {"slope": 0.0, "offset": y.log_sigma.item(), "floor": None})


LIKELIHOODS: dict[type, Callable[[Any], Json]] = {
    Bernoulli: lambda _: {"type": "bernoulli"},
    Gaussian: lambda p: _normal(p, _log_scale(p, 0.5)),
    ContinuousBernoulli: lambda _: {"type": "continuous-bernoulli"},
    DiscretizedLogistic: lambda p: {"type": "discretized-logistic", "log_scale": _log_scale(p, 0.5, -3.0)},
    Conditional: _normal_of_one_scale,
}
"""What the browser calls p(x|z), and how it is made of the decoder's outputs."""


def _flow(flow: Flow, latent_dim: int, arrays: Arrays) -> Json:
    """Describe the layers in the order in which noise goes through them, and the noise of the moments."""
    transforms = _transforms(flow.transform, latent_dim + flow.layers.context, arrays)
    return {"type": "flow", "noise": arrays.add(fixed_noise(latent_dim)), "of_mean": OF_MEAN, "transforms": transforms}


def _transforms(flow: Any, n_inputs: int, arrays: Arrays) -> list[Json]:
    return [{"layers": _layers(one.hyper, n_inputs, arrays), "passes": one.passes} for one in flow.transforms]


POSTERIORS: dict[type, Callable[[Any, int, Arrays], Json]] = {
    FullCovariance: lambda *_: {"type": "full"},
    Flow: _flow,
}
"""What the browser calls q(z|x), by what makes it of the encoder's outputs."""


def _posterior(encoder: Conditional, latent_dim: int, arrays: Arrays) -> Json:
    if not isinstance(encoder, Described):
        return {"type": "diagonal"}
    posterior: Json = _found(POSTERIORS, encoder.describe, "the posterior")(encoder.describe, latent_dim, arrays)
    return posterior


def _prior(prior: Prior, encoder: Conditional, posterior: Json, arrays: Arrays) -> Json:
    """Describe a prior; of a mixture, its parts as outputs of an encoder, of which posteriors are made."""
    if isinstance(prior, StandardNormal):
        return {"type": "standard"}
    if isinstance(prior, FlowPrior):
        mixture = _prior(prior.mixture, encoder, posterior, arrays)
        return {**mixture, "transforms": _transforms(prior.transform, prior.latent_dim, arrays)}
    if isinstance(prior, GaussianMixture):
        outputs, of_parts = torch.cat((prior.mean, 2 * prior.log_sigma), -1), {"type": "diagonal"}
    elif isinstance(prior, VampPrior):
        outputs, of_parts = encoder.output(prior.pseudo_inputs.clamp(0, 1)), posterior
    else:
        raise _no_counterpart("the prior", prior)
    log_shares = arrays.add(prior.log_shares)
    return {"type": "mixture", "posterior": of_parts, "outputs": arrays.add(outputs), "log_shares": log_shares}
