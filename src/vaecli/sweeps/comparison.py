"""Comparing decoders: the same config trained with each of them and several seeds, evaluated alike."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vaecli.config.schema import Config
from vaecli.data.sources import fingerprint
from vaecli.sweeps.claims import claim
from vaecli.sweeps.execution import run_all
from vaecli.sweeps.jobs import JobOptions, JobResult, values
from vaecli.sweeps.news import Watch, ignore
from vaecli.training.stopping import Stop, never

TUTORIAL = ("gaussian", "i-gaussian", "bernoulli")
"""The decoders that the usual tutorial compares."""
PLAN = "comparison.json"


@dataclass(frozen=True)
class Comparison:
    """All outcomes, by decoder in the order asked for and by seed."""

    base: Config
    decoders: tuple[str, ...]
    seeds: tuple[int, ...]
    k: int
    outcomes: tuple[JobResult, ...]
    data_dir: Path | None = None
    """Where torchvision's data sets are."""

    def of(self, decoder: str) -> list[JobResult]:
        """The outcomes of a decoder that have figures."""
        return [o for o in self.outcomes if o.decoder == decoder and not o.error]

    def values(self, decoder: str, name: str) -> list[float]:
        """A figure over the seeds of a decoder; empty where the decoder has none."""
        return values(self.of(decoder), name)

    @property
    def failed(self) -> list[JobResult]:
        """The runs that came to nothing."""
        return [o for o in self.outcomes if o.error]


def compare(
    base: Config,
    decoders: Sequence[str],
    n_seeds: int,
    out: Path,
    *,
    runs_dir: Path,
    data_dir: Path | None = None,
    jobs: int = 1,
    k: int = 100,
    watch: Watch = ignore,
    stop: Stop = never,
) -> Comparison:
    """Train and evaluate every decoder with every seed; what is complete already is not done again.

    Args:
        base: The config that all share; its seed is the first.
        decoders: Names of `LIKELIHOODS`.
        n_seeds: How many seeds, counted up from the base's.
        out: The report's directory; it remembers which comparison it holds.
        runs_dir: Where the runs are looked for and made.
        data_dir: As for `train`.
        jobs: Runs at a time, each in a process with its share of the cores.
        k: Importance samples per image.
        watch: Is told of every run that begins or ends.
        stop: Is asked again and again whether to checkpoint and stop.

    Raises:
        UsageError: The directory holds another comparison.
        DataError: The images cannot be read.
        VaecliError: The directory cannot be written.
        InterruptedRunError: `stop` said so.
    """
    seeds = tuple(range(base.seed, base.seed + n_seeds))
    shared = json.loads(base.identity)
    shared["model"].pop("decoder")
    members = [[decoder, seed] for decoder in decoders for seed in seeds]
    terms = {"base": shared, "data_sha256": fingerprint(base.data.name), "k": k}
    claim(out, PLAN, terms, members)
    wanted = [member(base, decoder, seed) for seed in seeds for decoder in decoders]
    outcomes = run_all(wanted, JobOptions(runs_dir, data_dir, k), jobs=jobs, watch=watch, stop=stop)
    in_order = sorted(outcomes, key=lambda o: (decoders.index(o.decoder), o.seed))
    return Comparison(base, tuple(decoders), seeds, k, tuple(in_order), data_dir)


def member(base: Config, decoder: str, seed: int) -> Config:
    """The config of one run of a comparison."""
    model = base.model.model_copy(update={"decoder": decoder})
    return base.model_copy(update={"model": model, "seed": seed, "name": base.name or "comparison"})
