"""Training by Auto-Encoding Variational Bayes (Kingma & Welling 2013, algorithm 1)."""

from contextlib import closing
from pathlib import Path

from vaecli.config.schema import Config
from vaecli.runs.run import Run
from vaecli.stages import StageCallback, silent, stoppable
from vaecli.training.accelerate import choose_step
from vaecli.training.opening import resume_session, start_session
from vaecli.training.recorder import TrainingCallback
from vaecli.training.session import Controls, Session
from vaecli.training.stopping import Limit, Stop, never


def maximise_bound(session: Session) -> Run:
    """Repeat until the parameters have converged: a random minibatch, random noise, a gradient, a step.

    A chunk is one minibatch, or as many as are replayed at once; minibatch and noise are drawn by the step
    (`vaecli.training.step.EagerStep`). The session counts, checks, reports, saves, evaluates and stops.
    """
    with session, closing(session.chunks()) as chunks:
        step = choose_step([session.state], session.on_stage)
        for chunk in chunks:
            terms = step(chunk)
            session.advance(chunk, terms)
    return Run(session.run.path)  # without what was read of it before


def train(
    config: Config,
    *,
    runs_dir: str | Path = "runs",
    data_dir: str | Path | None = None,
    init_from: Run | None = None,
    callback: TrainingCallback | None = None,
    stop: Stop = never,
    limit: Limit | None = None,
    on_stage: StageCallback = silent,
) -> Run:
    """Train a VAE from the start, in a run directory of its own.

    Args:
        config: From `load_config` or `parse_config`.
        runs_dir: Where the run directory is made.
        data_dir: Where torchvision's data sets are; None for `VAECLI_DATA_DIR` or the user's cache.
        init_from: A run whose weights to start from.
        callback: Is called with a `TrainingUpdate` some times a second, and at the end of every epoch.
        stop: Is asked after every step (or every few that are replayed at once) whether to checkpoint and stop.
        limit: Of the time or the images after which to do so; None for none.
        on_stage: Is called with what is done before a step and may take long (checksums, a mean image, an order of the
            images), how much of it is done, and of how much.

    Returns:
        The finished run.

    Raises:
        UsageError: The device is not there, the weights are those of another model, or this one is too large.
        DataError: The images cannot be read.
        DivergedError: The loss was not finite; the last good checkpoint is kept.
        InterruptedRunError: `stop` asked for it; `resume` continues.
        LimitReachedError: The limit was reached; `resume` continues.
        VaecliError: The run directory cannot be written.
    """
    controls = Controls(callback, stop, limit, stoppable(on_stage, stop))
    return maximise_bound(start_session(config, runs_dir, data_dir, controls, init_from=init_from))


def resume(
    run: Run,
    config: Config | None = None,
    *,
    data_dir: str | Path | None = None,
    callback: TrainingCallback | None = None,
    stop: Stop = never,
    limit: Limit | None = None,
    on_stage: StageCallback = silent,
) -> Run:
    """Continue a run from its last checkpoint: where it was cut, or beyond its end with more epochs.

    A run that was cut before its first checkpoint starts again, in its own directory. Where the machine is not what it
    was, a ReproducibilityWarning says so.

    Args:
        run: From `find_run` or `load_run`.
        config: The run's own, changed in nothing but training.epochs, training.patience and device; None for as it was.
        data_dir: As for `train`.
        callback: As for `train`.
        stop: As for `train`.
        limit: As for `train`.
        on_stage: As for `train`.

    Raises:
        UsageError: The changes asked for would not continue the same run.
        VaecliError: The checkpoint cannot be used, or another process trains the run; otherwise as for `train`.
    """
    controls = Controls(callback, stop, limit, stoppable(on_stage, stop))
    return maximise_bound(resume_session(run, config, data_dir, controls))
