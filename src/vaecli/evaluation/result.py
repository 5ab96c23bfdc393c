"""The metrics of one checkpoint on one split, and reading them again. Needs no torch."""

import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from vaecli.config.likelihoods import Support
from vaecli.errors import VaecliError
from vaecli.shown import Shown, Summary

FEW = 5.0
"""An image with fewer effective samples than this is counted by `..._low_share`."""
KNOWN_FROM = 10.0
"""The median effective sample size from which an estimate counts as known; below it is a bound, and ranks nothing."""
ESTIMATES = ("log_evidence", "bits_per_dim", "binarised_nll")
"""The metrics that are estimated by importance samples."""

TITLES = {
    "elbo": "ELBO",
    "log_likelihood": "log-likelihood",
    "kl": "rate",
    "log_evidence": "log evidence",
    "log_evidence_effective_sample_size": "ESS",
    "bits_per_dim": "bits/dim",
    "binarised_nll": "binarised NLL",
    "mean_squared_error": "MSE",
    "active_units": "active units",
    "seconds_per_epoch": "s/epoch",
}
"""What the metrics of a run are called in notebooks and reports."""
SHOWN = {
    "elbo": 2,
    "log_likelihood": 2,
    "kl": 2,
    "log_evidence": 2,
    "bits_per_dim": 3,
    "binarised_nll": 2,
    "mean_squared_error": 4,
    "active_units": 0,
}
"""The metrics that a notebook shows of an evaluation, and the digits of each."""
SHOWN_OF_MANY = ("elbo", "log_evidence", "bits_per_dim", "binarised_nll", "mean_squared_error", "kl")


@dataclass(frozen=True)
class Origin:
    """Say of which checkpoint and which images the metrics of a result are."""

    run: str
    checkpoint: str
    split: str
    n_images: int
    seed: int
    decoder: str
    support: str
    observed: str
    """How pixels became x."""
    is_likelihood: bool
    caveat: str | None

    @property
    def what(self) -> str:
        """Return what they are one of: an image, or a vector."""
        return "vector" if self.support == Support.REAL else "image"

    @property
    def images(self) -> str:
        """Say which images, and how they were seen."""
        what = "vectors," if self.support == Support.REAL else "images, pixels"
        return f"{self.n_images:,} {self.split} {what} {self.observed}"


@dataclass(frozen=True)
class Evaluation(Origin, Shown):
    """Hold the metrics of one checkpoint on one split: means over images, in nats per image unless said otherwise."""

    proposal: str
    """Where importance samples come from: "fitted" or "encoder"."""
    k: int
    """Importance samples per image."""
    elbo: float
    elbo_se: float | None
    """Standard errors are over images; null in the file where there is one image only."""
    log_likelihood: float
    log_likelihood_se: float | None
    kl: float
    kl_se: float | None
    log_evidence: float
    log_evidence_se: float | None
    log_evidence_mc_se: float
    """The Monte-Carlo error, with the images fixed."""
    log_evidence_effective_sample_size: float
    """Median over images."""
    log_evidence_low_share: float
    """The share of images with fewer than 5 effective samples."""
    log_evidence_by_k: dict[str, float]
    active_units: int
    kl_per_dimension: list[float] | None
    """None where the KL term has no closed form."""
    mean_squared_error: float
    """Of the decoder's mean at the posterior mean, in units of the 0..1 pixel; of vectors in their deviations."""
    pixels_at_floor: float | None
    bits_per_dim: float | None
    """-log P(k)/(D ln 2) on the 256 levels, a density integrated over each level only."""
    bits_per_dim_se: float | None
    bits_per_dim_mc_se: float | None
    bits_per_dim_effective_sample_size: float | None
    bits_per_dim_low_share: float | None
    mass_outside: float | None
    """The mass of a pixel outside [0, 1), on average: with those of the 256 levels it adds up to 1."""
    bits_per_dim_clamped: float | None
    """With the tails given to the edge levels: another, censored model. It ranks nothing."""
    binarised_nll: float | None
    """-log p(b) for one dynamic binarisation of the split, the same for every run."""
    binarised_nll_se: float | None
    binarised_nll_mc_se: float | None
    binarised_nll_effective_sample_size: float | None
    binarised_nll_low_share: float | None
    binarised_nll_by_k: dict[str, float] | None

    def summary(self) -> Summary:
        """Return what a notebook shows of it: the metrics with their standard errors over images."""
        rows = []
        for metric, digits in SHOWN.items():
            error = getattr(self, f"{metric}_se", None)
            spread = "" if error is None else f" ± {error:.{digits}f}"
            rows.append((TITLES[metric], f"{self.cell(metric)}{spread}"))
        about = f"{self.run}, {self.checkpoint}: {self.images}"
        notes = [f"In nats per {self.what}, ± the standard error over {self.what}s."]
        return Summary(about, rows, notes=[*notes, f"The bound is {self.caveat}."] if self.caveat else notes)

    def cell(self, metric: str) -> str:
        """Format a metric for a table: what is only a bound as such, and what there is not as a dash."""
        value = getattr(self, metric)
        bound = "" if self.is_known(metric) else " (bound)"
        return "–" if value is None else f"{value:.{SHOWN[metric]}f}{bound}"

    def is_known(self, metric: str) -> bool:
        """Return whether a metric is known: one estimated by too few effective samples is only a bound."""
        size = getattr(self, f"{metric}_effective_sample_size") if metric in ESTIMATES else None
        return size is None or size >= KNOWN_FROM


@dataclass(frozen=True)
class AnnealedEvaluation(Origin):
    """Hold the evidence by annealing, or by the paper's estimator: means over images, in nats per image."""

    method: str
    start: str
    temperatures: int
    """Transitions of every chain."""
    chains: int
    log_evidence: float
    log_evidence_se: float | None
    log_evidence_mc_se: float | None
    """The Monte-Carlo error, with the images fixed; None for the paper's estimator, which has none to state."""
    acceptance: float | None
    fitted_log_evidence: float
    """Of the same images, by 500 importance samples from fitted proposals."""
    difference: float
    """The first less the second."""
    largest_difference: float
    """Of an image, without its sign."""
    simulated_lower: float | None
    """On images that the model has drawn, as many: a bound from below on their evidence, on average."""
    simulated_upper: float | None
    """The same from above."""
    simulated_fitted: float | None
    """The same by importance samples from fitted proposals."""
    simulated_gap: float | None
    """The upper bound less the lower: the evidence lies between them, on average over draws."""


@dataclass(frozen=True)
class Gaps(Origin):
    """Hold where the bound is lost: means over images, in nats per image."""

    log_evidence: float
    log_evidence_se: float | None
    best_elbo: float
    """With the best diagonal Gaussian of each image."""
    best_elbo_se: float | None
    elbo: float
    """With the encoder's."""
    elbo_se: float | None
    approximation_gap: float
    """The evidence less the best ELBO."""
    approximation_gap_se: float | None
    amortisation_gap: float
    """The best ELBO less the encoder's."""
    amortisation_gap_se: float | None
    kl: float
    """KL(q(z|x) ‖ p(z))."""
    mutual_information: float
    """Of image and code under the encoder; at most log n_images."""
    kl_of_aggregate: float
    """KL(q(z) ‖ p(z)) of the mean q(z) of q(z|x) over these images: the rest of the KL."""


class NotFiniteError(VaecliError):
    """Signal an evaluation some of whose metrics are not finite numbers."""


_SCHEMA = TypeAdapter(Evaluation)


def read_evaluation(path: Path) -> Evaluation:
    """Read an evaluation, and check every part of it, and that the file of every image's metrics is there.

    Raises:
        NotFiniteError: A metric is not finite, and stands as null in the file.
        VaecliError: The file cannot be read, or is damaged.
    """
    try:
        found = _SCHEMA.validate_json(path.read_bytes(), strict=True)
        zipfile.ZipFile(_beside(path)).close()
    except ValidationError as error:
        missing = [str(e["loc"][0]) for e in error.errors() if e["loc"] and e["input"] is None]
        if missing and len(missing) == error.error_count():
            raise NotFiniteError(f"{path}: not finite: {', '.join(dict.fromkeys(missing))}") from error
        raise VaecliError(f"{path}: is not a whole evaluation: {error.errors()[0]['msg']}") from error
    except (OSError, zipfile.BadZipFile) as error:
        raise VaecliError(f"{path}: cannot be read: {error}") from error
    return found


def read_per_image(path: Path, name: str) -> NDArray[np.float64] | None:
    """Read a metric for every image of the evaluation in a file, if there is one. Raises VaecliError."""
    try:
        with np.load(_beside(path), allow_pickle=False) as arrays:
            return arrays[name].astype(np.float64) if name in arrays.files else None
    except Exception as error:  # numpy and zipfile share no error for a damaged file
        message = f"{_beside(path)}: is damaged; delete it, and the same command makes it again"
        raise VaecliError(message) from error


def _beside(path: Path) -> Path:
    """Return the file with the metrics of every image."""
    return path.with_suffix(".npz")


def summarise(
    title: str, keys: Sequence[str], results: Iterable[tuple[Sequence[str], Evaluation | None, str | None]]
) -> Summary:
    """Return what a notebook shows of several runs: for each its settings of the keys, and its metrics or its error."""
    rows = [
        [*settings, *("–" if found is None else found.cell(metric) for metric in SHOWN_OF_MANY), error or ""]
        for settings, found, error in results
    ]
    columns = [*(key.rpartition(".")[2] for key in keys), *(TITLES[metric] for metric in SHOWN_OF_MANY), ""]
    notes = ["ELBO, log evidence and bits per dimension are compared between runs of one support only."]
    return Summary(f"{title}: {len(rows)} runs", rows, columns, notes)
