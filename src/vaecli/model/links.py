"""How a network's outputs become means and scales."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import sigmoid

from vaecli.model.special import clamp_with_gradient


def _logit(mean: Tensor, margin: float = 1e-3) -> Tensor:
    """Return the logit, with pixels that are always off or on kept at a finite distance."""
    return torch.logit(mean, eps=margin)


def _identity(output: Tensor) -> Tensor:
    return output


@dataclass(frozen=True)
class Link:
    """Map a network's output to a mean, and a mean in units of the 0..1 pixel back to an output."""

    mean: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]


SIGMOID = Link(sigmoid, _logit)
LINEAR = Link(_identity, _identity)
LINKS = {"sigmoid": SIGMOID, "linear": LINEAR}
"""Gaussian means in the unit interval (paper, appendix C.2), or anywhere."""


@dataclass(frozen=True)
class Floor:
    """Keep a learned log scale at or above `low`; None for no floor.

    On pixels that hardly vary a learned scale shrinks without end, and the density has no upper bound.
    """

    low: float | None = None

    def __call__(self, log_scale: Tensor) -> Tensor:
        """Return max(log_scale, low), from which the scale can rise again."""
        return log_scale if self.low is None else clamp_with_gradient(log_scale, self.low)

    def reached(self, log_scale: Tensor) -> Tensor | None:
        """Return where a log scale sits on the floor; None where there is no floor."""
        return None if self.low is None else log_scale <= self.low


NO_FLOOR = Floor()
