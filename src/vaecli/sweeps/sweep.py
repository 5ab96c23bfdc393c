"""Which runs a sweep or a comparison has, and what became of each. Needs no torch.

A comparison of decoders is a sweep over decoder and seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vaecli.config.jobs import AnySpec, EvaluationSpec, Resources
from vaecli.config.loading import load_config, load_yaml, override
from vaecli.config.schema import Config, get_setting, identity, recorded_identity
from vaecli.data.summaries import fingerprint
from vaecli.errors import ConfigError, VaecliError, command_line
from vaecli.evaluation.result import Evaluation, read_evaluation, read_per_image, summarise
from vaecli.files import may_be_file, safe_name
from vaecli.runs.run import Run, list_runs
from vaecli.shown import Shown, Summary
from vaecli.stages import StageCallback, silent
from vaecli.sweeps.spec import Spec, as_yaml, beside, check_count, plan_configs, varied_keys
from vaecli.training.stopping import Stop

FINISHED = frozenset({"completed", "converged"})
"""The states of runs that are trained."""
DECODER, SEED = "model.decoder", "seed"
SHARED_CORES = Resources(threads=None)
"""Every run has its share of the cores."""


@dataclass(frozen=True)
class Sweep:
    """Hold the runs of a sweep, each a valid config, and how they are trained and evaluated."""

    kind: str
    """"sweep" or "comparison"."""
    name: str
    base: Config
    base_source: str
    """The base, as `--config` takes it."""
    keys: tuple[str, ...]
    """The settings that vary, in the order in which they were named."""
    configs: tuple[Config, ...]
    resources: Resources
    evaluation: EvaluationSpec
    further: tuple[AnySpec, ...] = ()
    """How else every run is evaluated."""
    spec: Spec | None = None
    """The YAML, if there is one."""
    extend: bool = False
    """Whether runs of a constant step size are continued that differ in nothing but having fewer epochs."""
    whole: tuple[Config, ...] = ()
    """All runs that the output directory is about, where these may be some of them; empty for these."""

    def command(self, result: "JobResult") -> str:
        """Return the command line that does a run again, or resumes it."""
        if result.run is not None and may_be_file(result.run.last):
            return command_line("vae", "train", "--resume", result.run.path)
        settings = [f"{key}={as_yaml(get_setting(result.config, key))}" for key in self.keys]
        return command_line("vae", "train", "--config", self.base_source, *settings)


def load_sweep(path: Path) -> Sweep:
    """Read the YAML of a sweep and validate all of its points. Raises ConfigError with all that is wrong with them."""
    spec = load_yaml(path, Spec)
    if not spec.grid and not spec.points:
        raise ConfigError([f"{path}: names no runs; give it a grid or points"])
    name = safe_name(path.stem) or "sweep"
    base_source = beside(spec.base, path)
    base = load_config(base_source)
    return Sweep(
        kind="sweep",
        name=name,
        base=base,
        base_source=base_source,
        keys=varied_keys(spec),
        configs=plan_configs(spec, base, str(path), name),
        resources=spec.resources,
        evaluation=spec.evaluation,
        spec=spec,
    )


def comparison(base: Config, decoders: Sequence[str], n_seeds: int, evaluation: EvaluationSpec) -> Sweep:
    """Return the sweep over decoders and seeds; all decoders of one seed come before the next seed.

    Args:
        base: The config that all share; its seed is the first of `n_seeds`.
        decoders: Names of `LIKELIHOODS`.
        n_seeds: How many.
        evaluation: How each run is evaluated.

    Raises:
        ConfigError: A decoder does not go with the rest of the config.
    """
    name = base.name or "comparison"
    check_count(name, n_seeds * len(decoders))
    of_decoders = [override(base, [f"{DECODER}={decoder}"], "decoders") for decoder in decoders]
    seeds = range(base.seed, base.seed + n_seeds)
    configs = [config.model_copy(update={"seed": seed, "name": name}) for seed in seeds for config in of_decoders]
    source = base.name or "bernoulli"
    return Sweep("comparison", name, base, source, (DECODER, SEED), tuple(configs), SHARED_CORES, evaluation)


@dataclass(frozen=True)
class JobOptions:
    """Describe what is done with every config."""

    runs_dir: Path
    data_dir: Path | None = None
    evaluation: EvaluationSpec = field(default_factory=EvaluationSpec)
    further: tuple[AnySpec, ...] = ()
    """As of a `Sweep`."""
    extend: bool = False
    """As of a `Sweep`."""


def find_evaluation(run: Run, spec: AnySpec) -> Path | None:
    """Return the file of an evaluation of a run's present checkpoint, if there is one."""
    run = run.at(spec.checkpoint)
    status = run.status
    try:
        at = status if run.checkpoint_path == run.last else status["best"]
        step = at["step"] if status["state"] in FINISHED else run.load(run.checkpoint_path).progress.step
        path = run.evaluation_path(step, spec)
    except (VaecliError, KeyError, TypeError):  # there is no checkpoint yet, or the status is damaged
        return None
    return path if may_be_file(path) else None


@dataclass(frozen=True)
class Job:
    """Describe one run that is to be trained and evaluated."""

    config: Config
    run: Run | None
    """The run, if it was begun before."""
    options: JobOptions

    @property
    def is_trained(self) -> bool:
        """Return whether the run has come to its end, or to as many epochs as were asked for."""
        if self.run is None:
            return False
        status, epochs = self.run.status, self.config.training.epochs
        if status.get("state") in FINISHED:
            enough = self.options.extend and status.get("epoch", 0) >= epochs
            return bool(enough or status.get("epochs", epochs) == epochs)
        return self.options.extend and _epochs_kept(self.run) >= epochs


def _epochs_kept(run: Run) -> int:
    """Return how many epochs the last checkpoint has: the status of a run that was killed may be ahead of it."""
    try:
        return run.load(run.last).progress.epoch if may_be_file(run.last) else 0
    except VaecliError:  # which is said when the run is resumed
        return 0


def plan_jobs(configs: Sequence[Config], options: JobOptions, on_stage: StageCallback = silent) -> list[Job]:
    """Return a job for each config, with the run that was begun before, if any. Raises DataError."""
    names, extend = {config.data.name for config in configs}, options.extend
    known = {name: known_runs(options.runs_dir, fingerprint(name, on_stage), extend=extend) for name in names}
    return [Job(c, known[c.data.name].get(identity(c, extend=extend)), options) for c in configs]


def known_runs(runs_dir: Path, data_sha256: str | None, *, extend: bool = False) -> dict[str, Run]:
    """Return the runs of these images by identity; of several with the same, the one that has come furthest.

    With `extend`, those of a constant step size are the same that differ in nothing but the number of their epochs.
    """
    known: dict[str, Run] = {}
    epochs: dict[str, int] = {}
    for run in list_runs(runs_dir):
        status = run.status
        try:
            key = recorded_identity(status.get("identity") or run.config.identity, extend=extend)
        except VaecliError:
            continue
        environment = run.environment
        if environment.get("initialised_from") or environment.get("data_sha256") != data_sha256:
            continue  # weights of another run are no seed, and images of the same name may be others
        if key not in known or status.get("epoch", 0) > epochs[key]:
            known[key], epochs[key] = run, status.get("epoch", 0)
    return known


@dataclass(frozen=True)
class JobResult:
    """Hold the outcome of one job: a run and its evaluation, or an error."""

    config: Config
    run: Run | None
    evaluation: Evaluation | None = None
    seconds_per_epoch: float | None = None
    path: Path | None = None
    """The file of the evaluation; beside it, an .npz of the same name has the metrics of every image."""
    error: str | None = None

    @classmethod
    def read(cls, config: Config, run: Run, path: Path) -> "JobResult":
        """Return the result of a run whose evaluation stands in a file. Raises VaecliError where it cannot be used."""
        seconds = [row["seconds"] for row in run.metrics if row["split"] == "train"]
        # the median over epochs, whatever slowed some of them down
        median = float(np.median(np.diff(seconds, prepend=0.0))) if seconds else None
        return cls(config, run, read_evaluation(path), median, path)

    @property
    def decoder(self) -> str:
        """Return the decoder's name."""
        return self.config.model.decoder

    @property
    def seed(self) -> int:
        """Return the seed."""
        return self.config.seed

    def metric(self, name: str) -> float | None:
        """Return a metric of the evaluation, or the seconds per epoch; None where the run has none."""
        if name == "seconds_per_epoch":
            return self.seconds_per_epoch
        value = None if self.evaluation is None else getattr(self.evaluation, name)
        return None if value is None else float(value)

    def per_image(self, name: str) -> NDArray[np.float64] | None:
        """Return a metric for every image that was evaluated, if there is one."""
        return None if self.path is None else read_per_image(self.path, name)


RunJobs = Callable[[Sequence[Job], Stop], list[JobResult]]
"""Does one job, or several that differ in nothing but the seed; see `vaecli.sweeps.jobs.run_jobs`."""


@dataclass(frozen=True)
class SweepResult(Shown):
    """Hold a sweep and the results of its jobs; those of a comparison by decoder, then by seed."""

    sweep: Sweep
    results: tuple[JobResult, ...]
    data_dir: Path | None = None
    """Where torchvision's data sets are."""

    def summary(self) -> Summary:
        """Return what a notebook shows: a row for each run."""
        keys, found = self.sweep.keys, self.results
        named = [([str(get_setting(of.config, key)) for key in keys], of.evaluation, of.error) for of in found]
        return summarise(f"{self.sweep.kind} {self.sweep.name}", keys, named)

    @property
    def done(self) -> list[JobResult]:
        """Return the results that have an evaluation."""
        return [result for result in self.results if not result.error]

    @property
    def failed(self) -> list[JobResult]:
        """Return the results that are errors."""
        return [result for result in self.results if result.error]

    @property
    def decoders(self) -> tuple[str, ...]:
        """Return the decoders' names, in the order of the results."""
        return tuple(dict.fromkeys(result.decoder for result in self.results))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Return the seeds, in the order of the results."""
        return tuple(dict.fromkeys(result.seed for result in self.results))

    def of(self, decoder: str) -> list[JobResult]:
        """Return a decoder's results that have an evaluation."""
        return [result for result in self.done if result.decoder == decoder]


@dataclass(frozen=True)
class SweepUpdate:
    """Describe how far a sweep has come."""

    configs: Sequence[Config]
    """Of all runs."""
    results: Sequence[JobResult]
    """In the order in which they came; it grows from one update to the next."""
    running: Sequence[int]
    """The numbers of the configs that are being worked on."""
    seconds_left: float | None
    """At the pace so far; None before any run has been worked on."""
    stage: tuple[str, int, int] | None = None
    """Before the first run: what is done, how much of it, and of how much."""


SweepCallback = Callable[[SweepUpdate], None]


def metrics(results: Sequence[JobResult], name: str) -> list[float]:
    """Return a metric over runs; nothing where one of them has none."""
    values = [result.metric(name) for result in results]
    return [] if None in values else [value for value in values if value is not None]
