"""Normalizing flows of affine layers, by zuko: invertible maps of Z numbers whose change of volume is known."""

from typing import Any, NamedTuple

import torch
from torch import nn


class FlowLayers(NamedTuple):
    """Say what the layers of a flow are: y_i = m_i + s_i x_i, with m_i and s_i made of c and some of the other x."""

    context: int
    """Numbers c that say of which image it is; 0 where it is the same of all."""
    transforms: int
    """Layers, the order of x turned round from one to the next."""
    hidden: int
    """Units of the one hidden layer that makes m and s."""
    passes: int | None
    """How often x is computed anew until it is that of a given y: 2, where the second half of x is shifted and scaled
    by the first; None for Z, where each is by all before it."""
    from_identity: bool
    """Whether y = x at first."""

    def n_outputs(self, latent_dim: int) -> int:
        """Return how many numbers a posterior with these layers takes of the encoder."""
        return 2 * latent_dim + self.context

    def build(self, latent_dim: int) -> Any:
        """Return the layers as one module of zuko: called with c, it is the map x to y."""
        import zuko  # noqa: PLC0415 (it is large, and few models have a flow)

        place = torch.get_default_device()
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):  # masks are computed, also for a model of shapes
            flow = zuko.flows.MAF(
                latent_dim,
                self.context,
                transforms=self.transforms,
                passes=self.passes,
                hidden_features=(self.hidden,),
                activation=nn.Tanh,
            )
        layers = flow.transform.to(place)
        for module in layers.modules():
            for name, mask in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, mask, persistent=False)  # Z decides it; a checkpoint holds what is learned
        return layers

    @torch.no_grad()
    def start(self, layers: Any) -> None:
        """Make y = x where the layers begin so."""
        if not self.from_identity:
            return
        for layer in layers.transforms:
            for parameter in layer.hyper[-1].parameters():
                parameter.zero_()
