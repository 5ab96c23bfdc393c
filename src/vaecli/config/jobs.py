"""What is done with runs, as frozen models of YAML: how they are evaluated, and what each may use."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from vaecli.config.fields import Section


class EvaluationSpec(Section):
    """Describe how a checkpoint is evaluated."""

    proposal: Literal["fitted", "encoder"] = "fitted"
    """Where importance samples come from: a proposal fitted to each image, or q(z|x), as papers report it."""
    k: int = Field(500, ge=1, le=10_000_000)
    """Importance samples per image."""
    split: Literal["train", "validation", "test"] = "test"
    limit: int | None = Field(None, ge=1)
    """Only so many images, evenly spaced over the split; null: all."""
    seed: int = Field(0, ge=0)
    """Of evaluation's own random numbers."""
    checkpoint: Literal["best", "last"] = "best"
    """Of a run: the one with the best validation bound, where there is one; or the last, as papers take it."""
    binarised: bool = True
    """Whether the likelihood of binarised images is evaluated too."""

    @property
    def name(self) -> str:
        """Return what tells its files from those of other evaluations of a checkpoint."""
        name = f"{self.split}-{self.proposal}-k{self.k}"
        name += "" if self.limit is None else f"-{self.limit}images"
        return name + f"-seed{self.seed}" + ("" if self.binarised else "-no-binarised")


class FurtherSpec(Section):
    """Describe which images a further evaluation is of, beside that by an `EvaluationSpec`."""

    split: Literal["train", "validation", "test"] = "test"
    limit: int | None = Field(None, ge=1)
    """Only so many images, evenly spaced over the split; null: all."""
    seed: int = Field(0, ge=0)
    """Of evaluation's own random numbers."""
    checkpoint: Literal["best", "last"] = "best"
    """As of an `EvaluationSpec`."""

    @property
    def of_images(self) -> EvaluationSpec:
        """Return which images these are, and the fitted proposals that give their evidence."""
        return EvaluationSpec(split=self.split, limit=self.limit, seed=self.seed, checkpoint=self.checkpoint)


class AnnealingSpec(FurtherSpec):
    """Describe how the evidence is estimated by other means than importance sampling."""

    method: Literal["ais", "posterior"] = "ais"
    """Annealed importance sampling, or the estimator from posterior samples (Kingma & Welling 2013, appendix D)."""
    temperatures: int = Field(1000, ge=1, le=1_000_000)
    """Transitions of every chain."""
    chains: int = Field(8, ge=2, le=10_000)
    """For each image."""
    start: Literal["fitted", "prior"] = "fitted"
    """Where annealing begins: at the proposal fitted to an image, or at the prior, which knows nothing of it."""
    bracket: bool = False
    """Whether to bracket the evidence of images that the model draws, from below and above."""
    limit: int | None = Field(100, ge=1)
    """Only so many images, evenly spaced over the split; null: all."""

    @property
    def name(self) -> str:
        """Return what tells its files from those of other evaluations of a checkpoint."""
        settings = f"{self.method}{self.temperatures}-{self.chains}chains-{self.start}" + "-bracket" * self.bracket
        return f"{self.of_images.name}-{settings}"


class GapsSpec(FurtherSpec):
    """Describe how what the bound loses is split into approximation and amortisation gap."""

    limit: int | None = Field(1000, ge=1)
    """Only so many images, evenly spaced over the split; null: all."""

    @property
    def name(self) -> str:
        """Return what tells its files from those of other evaluations of a checkpoint."""
        return f"{self.of_images.name}-gaps"


AnySpec = EvaluationSpec | AnnealingSpec | GapsSpec
"""How a checkpoint is evaluated, in one way or another."""


OF_MANY_RUNS = EvaluationSpec(limit=1000)
"""How the runs of sweeps and comparisons are evaluated, unless it is said otherwise."""


def _whole_or_share(gpus: float) -> float:
    if gpus > 1 and not gpus.is_integer():
        raise ValueError("must be a whole number, or a share of one, as 0.5")
    return gpus


class Resources(Section):
    """Describe what each run may use."""

    threads: int | None = Field(1, ge=1, le=1024)
    """Of the CPU, which are part of what fixes a run's bits; None for a share of the cores, which depends on how many
    run at a time, and on a cluster for one."""
    gpus: Annotated[float, AfterValidator(_whole_or_share)] = Field(0.0, ge=0, le=64)
    """On a cluster, where a run sees no others; on this machine, the workers take its GPUs in turn."""
    replicates: int = Field(16, ge=1, le=1024)
    """Seeds of one config that are trained as one batched program, at most: on this machine, on CUDA."""
    sync_interval: float = Field(60.0, gt=0)
    """On a cluster, after how many seconds of training a run's files come back: what is lost at most with a node."""
