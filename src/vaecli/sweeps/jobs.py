"""Doing jobs: train what is not trained, evaluate what is not evaluated. Jobs that fail take no other with them."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from vaecli.config.jobs import AnySpec, EvaluationSpec, GapsSpec
from vaecli.config.schema import Config
from vaecli.errors import InterruptedRunError, ReproducibilityWarning, VaecliError, in_plain_words
from vaecli.evaluation.result import NotFiniteError, read_evaluation
from vaecli.runs.records import read_object
from vaecli.runs.run import Run
from vaecli.stages import silent, stoppable
from vaecli.sweeps.sweep import Job, JobResult, find_evaluation
from vaecli.training.stopping import Stop, never


def finished_result(job: Job) -> JobResult | None:
    """Return the result of a run that needs nothing more; only its status is read, since there may be very many."""
    if job.run is None or not job.is_trained:
        return None
    try:
        path, *others = (find_evaluation(job.run, spec) for spec in (job.options.evaluation, *job.options.further))
        if path is None or not all(other is not None and _is_object(other) for other in others):
            return None
        return JobResult.read(job.config, job.run, path)
    except (VaecliError, OSError, KeyError, TypeError, ValueError):
        return None  # whatever is damaged is reported, or mended, when the job is run


def run_jobs(jobs: Sequence[Job], stop: Stop = never) -> list[JobResult]:
    """Train and evaluate jobs; configs that differ in nothing but the seed are trained as one batched program.

    Args:
        jobs: One job, or several that differ in nothing but the seed.
        stop: Is asked again and again whether to checkpoint and stop.

    Raises:
        InterruptedRunError: `stop` asked for it; anything else that is wrong stands in the result.
    """
    runs, failures = _train(jobs, stop)
    for failure in failures.values():
        if isinstance(failure, InterruptedRunError):
            raise failure
    results = []
    for i, job in enumerate(jobs):
        if i and stop():
            raise InterruptedRunError("stopped before all runs were evaluated")
        results.append(_failed(job, job.run, failures[i]) if i in failures else _evaluate(job, runs[i]))
    return results


def _train(jobs: Sequence[Job], stop: Stop) -> tuple[dict[int, Run], dict[int, Exception]]:
    """Return the trained run of every job, by its place among them, or what went wrong with it."""
    from vaecli.training.opening import resume_session, start_session  # noqa: PLC0415 (torch)
    from vaecli.training.replicates import train_replicates  # noqa: PLC0415
    from vaecli.training.session import Controls, Session  # noqa: PLC0415

    runs = {i: job.run for i, job in enumerate(jobs) if job.run and job.is_trained}
    sessions: dict[int, Session] = {}
    failures: dict[int, Exception] = {}
    poll = _Poll(stop)
    n, controls = len(jobs) - len(runs), Controls(stop=poll, on_stage=stoppable(silent, stop))
    for i, job in enumerate(jobs):
        options, share = job.options, next(iter(sessions.values()), None)
        try:
            if job.run is None:
                sessions[i] = start_session(job.config, options.runs_dir, options.data_dir, controls, share=share)
            elif i not in runs:
                sessions[i] = resume_session(
                    job.run, _as_long(job), options.data_dir, controls, replicates=n, share=share
                )
        except Exception as error:  # noqa: BLE001 (whatever it is, it is this job's alone)
            failures[i] = in_plain_words(error, n)
    if len({session.state.progress.step for session in sessions.values()}) > 1:
        message = "runs that are trained as one program were cut at different steps, and may not end in the same bits"
        warnings.warn(message, ReproducibilityWarning, stacklevel=2)
    failures |= train_replicates(sessions, poll.ask)
    return runs | {i: session.run for i, session in sessions.items()}, failures


def _as_long(job: Job) -> Config | None:
    """Return the config of a run that is to have another number of epochs than before; None for as it was."""
    assert job.run is not None
    config, epochs = job.run.config, job.config.training.epochs
    if config.training.epochs == epochs:
        return None
    return config.model_copy(update={"training": config.training.model_copy(update={"epochs": epochs})})


class _Poll:
    """Ask once a round whether to stop, so that all runs of the round stop at the same step."""

    def __init__(self, stop: Stop) -> None:
        self._stop, self._answer = stop, False

    def ask(self) -> None:
        """Ask, unless the answer was yes before."""
        self._answer = self._answer or self._stop()

    def __call__(self) -> bool:
        """Return the last answer."""
        return self._answer


def _evaluate(job: Job, run: Run) -> JobResult:
    """Return the result of a run that is trained; evaluate it where no whole evaluation is there."""
    from vaecli.evaluation.evaluate import evaluate_spec  # noqa: PLC0415 (torch)

    config, options = job.config, job.options
    try:
        run = run.at(options.evaluation.checkpoint)
        path = run.evaluation_path(run.checkpoint.progress.step, options.evaluation)
        if not _is_whole(path):
            evaluate_spec(run, options.evaluation, device=config.device, data_dir=options.data_dir)
        for further in options.further:
            _evaluate_further(Run(run.path), further, job)
        return JobResult.read(config, Run(run.path), path)
    except Exception as error:  # noqa: BLE001 (whatever it is, it is this job's alone)
        return _failed(job, run, error)


def _evaluate_further(run: Run, spec: AnySpec, job: Job) -> None:
    """Evaluate a run in another way, unless a whole evaluation is there."""
    from vaecli.evaluation.annealed import evaluate_annealed  # noqa: PLC0415 (torch)
    from vaecli.evaluation.evaluate import evaluate_spec  # noqa: PLC0415
    from vaecli.evaluation.gaps import evaluate_gaps  # noqa: PLC0415

    device, data_dir = job.config.device, job.options.data_dir
    run = run.at(spec.checkpoint)
    if _is_object(run.evaluation_path(run.checkpoint.progress.step, spec)):
        return
    if isinstance(spec, EvaluationSpec):
        evaluate_spec(run, spec, device=device, data_dir=data_dir)
    elif isinstance(spec, GapsSpec):
        evaluate_gaps(run, spec, device=device, data_dir=data_dir)
    else:
        evaluate_annealed(run, spec, device=device, data_dir=data_dir)


def _is_whole(path: Path) -> bool:
    """Return whether an evaluation is there and needs not be made again: metrics that are not finite stay so."""
    try:
        read_evaluation(path)
    except NotFiniteError:
        return True
    except VaecliError:
        return False
    return True


def _is_object(path: Path) -> bool:
    """Return whether a file is there that holds a JSON object, as an evaluation of any kind does."""
    try:
        return bool(read_object(path))
    except VaecliError:
        return False


def _failed(job: Job, run: Run | None, error: Exception) -> JobResult:
    what = str(error) if isinstance(error, VaecliError) else f"{type(error).__name__}: {error}"
    return JobResult(job.config, run, error=what)
