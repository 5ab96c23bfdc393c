"""The one table of decoders: what each is called and what its likelihood is a statement about.

It needs no torch, so that a config can be checked against it at once. A new decoder is one final class in
`vaecli.model.conditionals` and one entry here.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, Field


class Support(StrEnum):
    """Name what x is in p(x|z), for pixels k in 0..255 or a real vector v.

    Numbers of different supports are never ranked together.
    """

    BINARY = "binary"
    """A mass on b in {0, 1}."""
    UNIT_INTERVAL = "unit interval"
    """A density on y = (k + u)/256 with u ~ U[0, 1)."""
    LEVELS = "levels"
    """A mass on k itself, written as x = k/255."""
    REAL = "real"
    """A density on x = (v - m)/s, with the mean m and the deviation s of each number over the training vectors."""


@dataclass(frozen=True)
class Likelihood:
    """Describe a decoder: its class in `vaecli.model.conditionals`, and which `ModelConfig` settings it takes."""

    class_name: str
    support: Support
    settings: tuple[str, ...] = ()
    learns_scale: bool = False
    """Whether a scale is learned, unless `sigma` gives it: the density has no upper bound on pixels without noise."""

    @property
    def takes_vectors(self) -> bool:
        """Return whether it can be a density on all real numbers."""
        return "mean" in self.settings


LIKELIHOODS: dict[str, Likelihood] = {
    "bernoulli": Likelihood("Bernoulli", Support.BINARY),
    "gaussian": Likelihood("Gaussian", Support.UNIT_INTERVAL, ("mean", "min_log_sigma"), learns_scale=True),
    "i-gaussian": Likelihood("IdentityGaussian", Support.UNIT_INTERVAL, ("mean", "sigma")),
    "sigma-gaussian": Likelihood(
        "SigmaGaussian", Support.UNIT_INTERVAL, ("mean", "min_log_sigma", "sigma"), learns_scale=True
    ),
    "continuous-bernoulli": Likelihood("ContinuousBernoulli", Support.UNIT_INTERVAL),
    "discretized-logistic": Likelihood("DiscretizedLogistic", Support.LEVELS, ("min_log_sigma",)),
}


def _known_decoder(name: str) -> str:
    if name not in LIKELIHOODS:
        raise ValueError(f"Input should be one of {', '.join(map(repr, LIKELIHOODS))}")
    return name


def _list_decoders(schema: dict[str, Any]) -> None:
    schema["enum"] = list(LIKELIHOODS)


Decoder = Annotated[str, AfterValidator(_known_decoder), Field(json_schema_extra=_list_decoders)]
